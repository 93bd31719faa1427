"""``export``, ``demo`` and ``benchmark``."""

from mobilenetv2.cli.arguments import made, parse
from mobilenetv2.cli.console import console
from mobilenetv2.cli.voice import remark, teller
from mobilenetv2.command_config import BenchmarkConfig, DemoConfig, ExportConfig


def export_command(arguments: list[str]) -> int:
    """Write a proven file that runs without this program."""
    config = parse("export", ExportConfig, arguments)
    from mobilenetv2.runtimes.installed import require
    from mobilenetv2.shipping.export import FORMATS, export, libraries, target
    from mobilenetv2.shipping.held_out import held_out
    from mobilenetv2.shipping.web_export import export_page, page_folder
    from mobilenetv2.training.load import load

    notes: list[str] = []
    classifier = load(config.model, notes.append)
    require(*libraries(config))  # said before a folder of photos is decoded
    is_page = config.format == "web"
    path = page_folder(config) if is_page else target(config, FORMATS[config.format])
    tell = teller(config.quiet)
    pictures = held_out(classifier, config.model, config.verify, config.source.data_dir, tell)
    shown = console(quiet=config.quiet)
    if is_page:
        certificate = export_page(config, classifier, pictures, path, shown, notes)
    elif config.int8:
        from mobilenetv2.shipping.int8 import export_int8

        certificate = export_int8(config, classifier, pictures, path, shown, notes)
    else:
        certificate = export(config, classifier, pictures, path, notes=notes)
    shown.print(certificate.table())
    print(path)
    return 0


def demo_command(arguments: list[str]) -> int:
    """Try a classifier in the browser of this computer."""
    config = parse("demo", DemoConfig, arguments)
    from mobilenetv2.shipping.demo import demo

    demo(config, console(stderr=True, quiet=config.quiet))
    return 0


def benchmark_command(arguments: list[str]) -> int:
    """Find what runs a classifier fastest on this machine."""
    config = parse("benchmark", BenchmarkConfig, arguments)
    from mobilenetv2.evaluation import plots
    from mobilenetv2.files import write_text
    from mobilenetv2.shipping.benchmark import run
    from mobilenetv2.shipping.benchmark_report import figure, table
    from mobilenetv2.training.load import load

    report = run(config, load(config.model, remark), console(stderr=True, quiet=config.quiet))
    console().print(table(report))
    for name, why in report.missing.items():
        print(f"not measured: {name}: {why}")
    shares = ", ".join(f"{share:.2f} at batch {batch}" for batch, share in report.shares.items())
    print(f"speed of {report.winner} as a share of the best that agrees: {shares}")
    stays = f"; for these weights {report.stays} stays noted" if report.stays else ""
    print(f"fastest: {report.winner}; noted in {report.noted_in}{stays}")
    if config.report:
        made("--report", config.report)
        write_text(config.report / "benchmark.json", report.to_json())
        plots.save(figure(report), config.report / "benchmark.png")
    return 0
