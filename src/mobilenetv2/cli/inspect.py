"""``inspect``: a model's layers and costs, or the health of a folder."""

from pathlib import Path
from typing import get_args

from rich.console import Console

from mobilenetv2.cli.arguments import made, parse
from mobilenetv2.command_config import InspectConfig
from mobilenetv2.config import NetworkName
from mobilenetv2.terminal import print_classifier, print_network


def inspect_command(arguments: list[str]) -> int:
    """Show a model or examine a folder."""
    config = parse("inspect", InspectConfig, arguments)
    path = Path(config.thing)
    if config.thing in get_args(NetworkName) and not path.exists():
        _inspect_network(config)
    elif path.is_dir() and not _is_run(path):
        return _inspect_folder(config, path)
    else:
        from mobilenetv2.training.load import load

        print_classifier(load(path))
    return 0


def _is_run(folder: Path) -> bool:
    try:
        return (folder / "config.yaml").is_file()
    except PermissionError:  # told in words where its pictures are looked for
        return False


def _inspect_network(config: InspectConfig) -> None:
    import torch

    from mobilenetv2.network.build import build_network, complete

    side = config.image_size
    settings = config.network.model_copy(update={"network": config.thing})
    settings = complete(settings, side, side)
    with torch.device("meta"):
        network = build_network(settings, config.classes, config.channels)
    print_network(network, settings, (config.channels, side, side))


def _inspect_folder(config: InspectConfig, folder: Path) -> int:
    from mobilenetv2.data.contact_sheet import contact_sheet
    from mobilenetv2.data.doctor import examine
    from mobilenetv2.data.doctor_table import render
    from mobilenetv2.data.folders import scan_folder
    from mobilenetv2.files import write_text, written_whole

    examination = examine(scan_folder(folder))
    if not config.quiet:
        render(examination, Console())
    if config.report:
        made("--report", config.report)
        write_text(config.report / "doctor.json", examination.to_json())
        with written_whole(config.report / "doctor.png") as file:
            contact_sheet(examination).save(file, "PNG")
        print(f"report: {config.report}")
    serious = [finding for finding in examination.findings if finding.severity != "note"]
    return 1 if config.strict and serious else 0
