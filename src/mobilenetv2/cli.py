"""The command line: the only place that parses arguments and words errors for the terminal.

Each command is a settings model, which tyro turns into flags and help, and a function. PyTorch is
imported inside the functions, so that help comes at once.
"""

import io
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args

import tyro
from pydantic import model_validator
from rich.console import Console

from mobilenetv2 import __version__
from mobilenetv2.config import (
    BenchmarkConfig,
    DataConfig,
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    InspectConfig,
    NetworkName,
    PredictConfig,
    Section,
    TrainConfig,
    TransferConfig,
    suggestion,
)
from mobilenetv2.cores import share_cores
from mobilenetv2.errors import ConfigError, DataError, Interrupted, Mobilenetv2Error
from mobilenetv2.settings import merge, read_settings, validate
from mobilenetv2.terminal import print_classifier, print_evaluation, print_network, track

if TYPE_CHECKING:
    from mobilenetv2.classifier import Classifier
    from mobilenetv2.distributed import Processes

_STYLE = (tyro.conf.OmitArgPrefixes,)  # --lr, not --optimizer.lr

Settings = TypeVar("Settings", bound=Section)


@dataclass(frozen=True)
class Command:
    """A word on the command line: its arguments to an exit code, and what it does in a line."""

    run: Callable[[list[str]], int]
    summary: str


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 failed, 2 impossible request, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    share_cores()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a log in another encoding is no reason to stop
            stream.reconfigure(errors="replace")
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except Mobilenetv2Error as error:
        if _is_first() or not isinstance(error, Interrupted):
            _complain(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        code = 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _dispatch(arguments: list[str]) -> int:
    word = arguments[0] if arguments else "--help"
    if word in ("-h", "--help"):
        _print_help()
        return 0
    if word == "--version":
        print(f"mobilenetv2 {__version__}")
        return 0
    if word not in COMMANDS:
        raise ConfigError(
            f"{word}: no such command ({', '.join(COMMANDS)}){suggestion(word, COMMANDS)}"
        )
    return COMMANDS[word].run(arguments[1:])


def _print_help() -> None:
    print("usage: mobilenetv2 COMMAND [ARGUMENTS]\n")
    print("From a folder of pictures to a proven MobileNetV2 classifier.\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<10} {command.summary}")
    print("\n`mobilenetv2 COMMAND --help` shows the arguments of a command.")


def _is_first() -> bool:
    """Whether this process speaks for all that ``torchrun`` has started."""
    return os.environ.get("RANK", "0") == "0"


def _complain(message: str) -> None:
    Console(stderr=True, soft_wrap=True).print(
        f"mobilenetv2: {message}", style="red", markup=False, highlight=False
    )


# ------------------------------------------------------------------------- train


def _train(arguments: list[str]) -> int:
    config = _read_train_config("train", arguments)
    from mobilenetv2.training.train import resume, train

    console = Console(quiet=config.quiet)
    result = resume(config.resume, console, config) if config.resume else train(config, console)
    if not _is_first():
        return 0
    set_name, key = "test", "test_accuracy"
    if result[key] is None:
        set_name, key = "validation", "val_accuracy"
    low, high = result["accuracy_interval"]
    print(
        f"{set_name} accuracy {result[key]:.2%} (95 % interval {low:.2%} to {high:.2%}), "
        f"best epoch {result['best_epoch']} of {result['epochs']}, "
        f"{result['seconds']:.1f} s: {result['run']}"
    )
    return 0


def _find_lr(arguments: list[str]) -> int:
    config = _read_train_config("find-lr", arguments)
    from mobilenetv2.evaluation import plots
    from mobilenetv2.training.train import run_range_test

    test = run_range_test(config)
    print(f"suggested learning rate: {test.suggestion:g}")
    if not config.quiet:
        print(f"{test.reason}.")
    picture = _made("--out", config.out or Path()) / "find-lr.png"
    plots.save(plots.lr_range(test.lrs, test.losses, test.smoothed, test.suggestion), picture)
    if not config.quiet:
        print(f"The curve: {picture}")
    return 0


class _FirstLook(TrainConfig):
    """The same flags, to see which were given; what they add up to is checked later."""

    data: DataConfig = DataConfig(data="")
    transfer: TransferConfig = TransferConfig(weights="")
    epochs: int = 0

    @model_validator(mode="after")
    def _fits_together(self) -> "_FirstLook":
        return self


def _read_train_config(command: str, arguments: list[str]) -> TrainConfig:
    """Default < recipe of the data set < ``--config`` file < flag.

    For ``--resume``, the run's own settings take the place of the first two.
    """
    path, arguments = _take_option("--config", arguments)
    helpless = [argument for argument in arguments if argument not in ("-h", "--help")]
    # Data and length of the run decide the defaults of everything else.
    first, _ = tyro.cli(
        _FirstLook,
        args=helpless,
        prog=f"mobilenetv2 {command}",
        config=_STYLE,
        return_unknown_args=True,
    )
    from mobilenetv2.training.recipes import asked_weights, recipe_settings

    from_file = read_settings(Path(path)) if path else {}
    if first.resume:
        recipe = _settings_of(first.resume)
    else:
        data = first.data.data or from_file.get("data", {}).get("data", DataConfig().data)
        weights = first.transfer.weights or asked_weights(from_file)
        recipe = recipe_settings(str(data), first.epochs or from_file.get("epochs"), weights)
    defaults = validate(merge(recipe, from_file), f"--config {path}" if path else "recipe")
    return tyro.cli(
        TrainConfig,
        args=arguments,
        prog=f"mobilenetv2 {command}",
        config=_STYLE,
        default=defaults,
        description=f"{TrainConfig.__doc__} --config FILE reads settings from YAML first.",
    )


def _settings_of(run: Path) -> dict[str, Any]:
    """What a run was begun with, so that whatever differs from it was asked for."""
    from mobilenetv2.training.run_folder import RunFolder

    return RunFolder.open(run).read_config().model_dump(mode="json")


def _take_option(name: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of ``name`` and the arguments without it."""
    for place, argument in enumerate(arguments):
        if argument == name:
            if place + 1 == len(arguments):
                raise ConfigError(f"{name} needs a value")
            return arguments[place + 1], arguments[:place] + arguments[place + 2 :]
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}="), arguments[:place] + arguments[place + 1 :]
    return None, arguments


# ------------------------------------------------------- evaluate, predict, inspect


def _evaluate(arguments: list[str]) -> int:
    config = _parse("evaluate", EvaluateConfig, arguments)
    from mobilenetv2.distributed import joined

    with joined() as processes:
        return _evaluate_with(config, processes)


def _evaluate_with(config: EvaluateConfig, processes: "Processes") -> int:
    """Processes take turns with the batches; the first one prints and writes."""
    from mobilenetv2.data.sources import load_data, load_for_measuring
    from mobilenetv2.evaluation import plots
    from mobilenetv2.evaluation.evaluate import evaluate
    from mobilenetv2.files import write_text
    from mobilenetv2.training.device import find_device
    from mobilenetv2.training.load import load, own_data

    classifier = load(config.model)
    classifier.network.to(find_device(config.machine.device))
    wanted = classifier.preprocessing
    runtime = config.machine.runtime
    if config.data is None:
        runtime = "torch" if runtime == "auto" else runtime  # the run's numbers to the last digit
        own = load_data(own_data(config.model, config.source.data_dir), wanted)
        if own.classes != classifier.labels:
            raise DataError(
                f"{own.name}: its classes are no longer those that {config.model} was trained on "
                f"({', '.join(own.classes[:5])}, … now; {', '.join(classifier.labels[:5])}, … then)"
            )
        sets = {"validation": own.val} | ({"test": own.test} if own.test else {})
    else:
        data = DataConfig(data=config.data, data_dir=config.source.data_dir)
        sets = dict([load_for_measuring(data, wanted, classifier.labels)])
    if config.report:
        _made("--report", config.report)
    report: dict[str, Any] = {}
    most = max(map(len, sets.values()))
    classifier = _in_runtime(classifier, runtime, most, config.quiet)
    for name, pictures in sets.items():
        evaluation = evaluate(classifier, pictures, processes=processes)
        if not processes.is_first:
            continue
        report[name] = evaluation.summary(classifier.labels)
        print_evaluation(name, report[name], config.quiet)
        if config.report:
            figure = plots.confusion(evaluation, classifier.labels)
            plots.save(figure, config.report / f"{name}-confusion.png")
            figure = plots.mistakes(evaluation, pictures, classifier.labels)
            plots.save(figure, config.report / f"{name}-mistakes.png")
    if config.report and processes.is_first:
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        write_text(config.report / "evaluation.json", text)
    return 0


def _predict(arguments: list[str]) -> int:
    config = _parse("predict", PredictConfig, arguments)
    from mobilenetv2.distributed import joined

    with joined() as processes:
        return _predict_with(config, processes)


def _predict_with(config: PredictConfig, processes: "Processes") -> int:
    """Processes share the files; the first one prints and writes."""
    from mobilenetv2.data.folders import list_pictures
    from mobilenetv2.evaluation.predict_files import predict_together
    from mobilenetv2.training.device import find_device
    from mobilenetv2.training.load import load

    paths = list_pictures(config.pictures)
    classifier = load(config.model)
    classifier.network.to(find_device(config.machine.device))
    classifier = _in_runtime(classifier, config.machine.runtime, len(paths), config.quiet)
    if config.csv or config.jsonl:
        return _predict_into_file(config, classifier, paths, processes)
    unreadable = 0
    for prediction in predict_together(classifier, paths, config.top, processes):
        unreadable += prediction.error is not None
        if not processes.is_first:
            continue
        if prediction.error is not None:
            _complain(f"{prediction.path}: {prediction.error}")
            continue
        words = (f"{one.label} {one.probability:.1%}" for one in prediction.predictions)
        print(f"{prediction.path}: {'  '.join(words)}", flush=True)
    return 1 if unreadable else 0


def _in_runtime(classifier: "Classifier", runtime: str, pictures: int, quiet: bool) -> "Classifier":
    """The classifier run by the library that was asked for, or that is the fastest here."""
    from mobilenetv2.runtimes.engine import Engine, with_runtime
    from mobilenetv2.runtimes.memory import fastest

    if runtime != "auto":
        return with_runtime(classifier, runtime)
    chosen = fastest(classifier, pictures)
    if isinstance(chosen.engine, Engine):
        Console(stderr=True, quiet=quiet).print(
            f"run by {chosen.engine.runtime}, the fastest here (--runtime torch for PyTorch)",
            style="dim",
        )
    return chosen


def _predict_into_file(
    config: PredictConfig,
    classifier: "Classifier",
    paths: Sequence[Path],
    processes: "Processes",
) -> int:
    """Append to the file, batch by batch; a rerun leaves out what is in it already."""
    from mobilenetv2.evaluation.predict_files import (
        CsvWriter,
        JsonLinesWriter,
        already_written,
        predict_together,
    )

    top = min(config.top, len(classifier.labels))
    target = config.csv or config.jsonl
    assert target is not None
    writer = CsvWriter(top) if config.csv else JsonLinesWriter()
    unreadable = 0
    try:
        own = already_written(target, writer) if processes.is_first else set()
        done = processes.from_first(own)
        remaining = [path for path in paths if writer.name(path) not in done]
        predictions = predict_together(classifier, remaining, top, processes)
        if not processes.is_first:
            deque(predictions, maxlen=0)  # only works along
            return 0
        with target.open("a", encoding="utf-8", errors="surrogateescape") as file:
            if file.tell() == 0:
                file.write(writer.header)
            for prediction in track(predictions, len(remaining), quiet=config.quiet):
                file.write(writer.line(prediction))
                unreadable += prediction.error is not None
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror or error})") from error
    print(
        f"{len(paths):,} pictures, {unreadable:,} unreadable"
        f"{f', {len(done):,} from an earlier call' if done else ''}: {target}"
    )
    return 0


def _export(arguments: list[str]) -> int:
    config = _parse("export", ExportConfig, arguments)
    from mobilenetv2.shipping.export import FORMATS, export, target
    from mobilenetv2.shipping.held_out import held_out
    from mobilenetv2.shipping.web_export import export_page, page_folder
    from mobilenetv2.training.load import load, unfinished

    classifier = load(config.model)
    is_page = config.format == "web"
    path = page_folder(config) if is_page else target(config, FORMATS[config.format])
    notes = [unfinished(config.model)] if unfinished(config.model) else []
    pictures = held_out(classifier, config.model, config.verify, config.source.data_dir)
    console = Console(quiet=config.quiet)
    if is_page:
        certificate = export_page(config, classifier, pictures, path, console, notes)
    elif config.int8:
        from mobilenetv2.shipping.int8 import export_int8

        certificate = export_int8(config, classifier, pictures, path, console, notes)
    else:
        certificate = export(config, classifier, pictures, path, notes=notes)
    console.print(certificate.table())
    print(path)
    return 0


def _demo(arguments: list[str]) -> int:
    config = _parse("demo", DemoConfig, arguments)
    from mobilenetv2.shipping.demo import demo

    demo(config, Console(stderr=True, quiet=config.quiet))
    return 0


def _benchmark(arguments: list[str]) -> int:
    config = _parse("benchmark", BenchmarkConfig, arguments)
    from mobilenetv2.evaluation import plots
    from mobilenetv2.files import write_text
    from mobilenetv2.shipping import benchmark
    from mobilenetv2.training.load import load

    report = benchmark.run(config, load(config.model), Console(stderr=True, quiet=config.quiet))
    Console(width=None if sys.stdout.isatty() else 180).print(benchmark.table(report))
    print(f"fastest: {report.winner}; noted in {report.noted_in}")
    if config.report:
        _made("--report", config.report)
        write_text(config.report / "benchmark.json", report.to_json())
        plots.save(benchmark.figure(report), config.report / "benchmark.png")
    return 0


def _inspect(arguments: list[str]) -> int:
    config = _parse("inspect", InspectConfig, arguments)
    path = Path(config.thing)
    if config.thing in get_args(NetworkName) and not path.exists():
        _inspect_network(config)
    elif path.is_dir() and not (path / "config.yaml").is_file():
        return _inspect_folder(config, path)
    else:
        from mobilenetv2.training.load import load

        print_classifier(load(path))
    return 0


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
        _made("--report", config.report)
        write_text(config.report / "doctor.json", examination.to_json())
        with written_whole(config.report / "doctor.png") as file:
            contact_sheet(examination).save(file, "PNG")
        print(f"report: {config.report}")
    serious = [finding for finding in examination.findings if finding.severity != "note"]
    return 1 if config.strict and serious else 0


def _made(flag: str, folder: Path) -> Path:
    """The folder that ``flag`` names, made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{flag} {folder}: cannot be written ({reason})") from error
    return folder


def _parse(name: str, model: type[Settings], arguments: list[str]) -> Settings:
    return tyro.cli(model, args=arguments, prog=f"mobilenetv2 {name}", config=_STYLE)


COMMANDS = {
    "train": Command(_train, "train a classifier on a data set or a folder of pictures"),
    "evaluate": Command(_evaluate, "measure a classifier on pictures with known labels"),
    "predict": Command(_predict, "name what pictures show"),
    "export": Command(_export, "write a proven file that runs without this program"),
    "demo": Command(_demo, "try a classifier in the browser of this computer"),
    "benchmark": Command(_benchmark, "find what runs a classifier fastest on this machine"),
    "find-lr": Command(_find_lr, "suggest a learning rate by a range test"),
    "inspect": Command(_inspect, "show a model's layers and costs, or a folder's health"),
}
