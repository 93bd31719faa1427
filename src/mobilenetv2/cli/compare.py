"""``compare``: runs beside each other."""

import glob
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from mobilenetv2.cli.arguments import made, parse
from mobilenetv2.cli.console import console
from mobilenetv2.cli.voice import remark
from mobilenetv2.command_config import CompareConfig
from mobilenetv2.errors import ConfigError, UserError
from mobilenetv2.printable import printable

if TYPE_CHECKING:
    from mobilenetv2.training.comparison import ComparedRun, Repeated, Spread

OF_THE_DATA = ("strides", "padding", "norm_eps", "crop", "rotate", "zoom", "shear", "flip",
               "colour_jitter", "warmup_epochs")  # fmt: skip
"""Settings that recipes choose by the data, the weights or the length; they are named last."""

FLAGS_SHOWN = 12
"""Settings that are named for a run; a run on other data differs in nearly all."""


def compare_command(arguments: list[str]) -> int:
    """Show what runs were asked for, each beside the first, and what came out."""
    config = parse("compare", CompareConfig, arguments)
    if config.report:
        made("--report", config.report)
    runs = list(_read(config.runs))
    if len(runs) < 2:
        raise ConfigError(
            f"compare: {len(runs)} to compare; name the folders of two runs or more, such as runs/*"
        )
    from mobilenetv2.training.comparison import repeated

    groups = repeated(runs)
    console().print(_table(runs))
    print(f"\nbeside {printable(str(runs[0].path))}:")
    for line in _other_settings(runs):
        print(f"  {line}")
    if groups:
        print(
            "\nmean and standard deviation over seeds, with the same settings on the same machine:"
        )
        console().print(_seeds(groups))
    _remark_on_seeds(groups)
    _remark_on_pictures(runs)
    if config.report:
        _write(config.report, runs, groups)
        if not config.quiet:
            print(f"report: {config.report}")
    return 0


def _read(named: Sequence[Path]) -> Iterator["ComparedRun"]:
    """Each run once. Where a shell has named all that lies there, some of it is no run."""
    from mobilenetv2.training.comparison import read_run

    for path in dict.fromkeys(one for name in named for one in _expanded(name)):
        try:
            yield read_run(path)
        except (UserError, PermissionError) as error:
            remark(f"left out: {error}")


def _expanded(path: Path) -> list[Path]:
    """What a pattern stands for, in shells that leave that to the program."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    return sorted(map(Path, glob.glob(str(path))))  # noqa: PTH207 - a Path may be absolute


def _table(runs: Sequence["ComparedRun"]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for heading in ("validation", "test", "95 % interval", "macro-F1", "epochs", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        unended = "" if run.has_ended else f" of {run.settings['epochs']}"
        table.add_row(
            Text(printable(str(run.path))),
            _share(run.val_accuracy),
            _share(run.test_accuracy),
            "–" if run.interval is None else _interval(run.interval, run.reported_on),
            "–" if run.macro_f1 is None else f"{run.macro_f1:.4f}",
            f"{len(run.epochs)}{unended}",
            "–" if run.seconds is None else f"{run.seconds:,.1f}",
        )
    return table


def _other_settings(runs: Sequence["ComparedRun"]) -> Iterator[str]:
    """A line for each run but the first, with the flags that would make the first one into it."""
    for run in runs[1:]:
        changed = sorted(run.other_than(runs[0]).items(), key=lambda one: one[0] in OF_THE_DATA)
        flags = [flag(name, value) for name, value in changed]
        more = len(flags) - FLAGS_SHOWN
        shown = " ".join(flags[:FLAGS_SHOWN]) or "the same settings"
        rest = f" … and {more} more (--report names all)" if more > 0 else ""
        yield printable(f"{run.path}: {shown}{rest}")


def flag(name: str, value: Any) -> str:
    """A setting as one would type it.

    >>> flag("lr", 0.2), flag("flip", False), flag("strides", [2, 1]), flag("clip_norm", None)
    ('--lr 0.2', '--no-flip', '--strides 2 1', '(no --clip-norm)')
    >>> flag("data", "my photos"), flag("weights", "a b.pth")
    ("'my photos'", "--weights 'a b.pth'")
    """
    option = f"--{name.replace('_', '-')}"
    if value is None or value == []:
        return f"(no {option})"
    if isinstance(value, bool):
        return option if value else option.replace("--", "--no-", 1)
    words = shlex.join(map(_word, value if isinstance(value, list) else [value]))
    return words if name == "data" else f"{option} {words}"


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _seeds(groups: Sequence["Repeated"]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("runs", overflow="fold")
    for heading in ("seeds", "validation", "test"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        names = ", ".join(str(run.path) for run in group.runs)
        figures = map(_spread, (group.val, group.test))
        table.add_row(Text(printable(names)), str(len(group.runs)), *figures)
    return table


def _interval(interval: tuple[float, float], of: str | None) -> str:
    low, high = map(_share, interval)
    return f"{low} to {high}{' (validation)' if of == 'validation' else ''}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _spread(spread: "Spread | None") -> str:
    return "–" if spread is None else f"{spread.mean:.2%} ± {spread.standard_deviation:.2%}"


def _remark_on_seeds(groups: Sequence["Repeated"]) -> None:
    """Tell which runs are not in the means."""
    for group in groups:
        counted = {run.settings["seed"]: run for run in group.runs}
        for again in group.again:
            first = counted[again.settings["seed"]]
            remark(f"{again.path}: not in the mean, as {first.path} has the same seed")


def _remark_on_pictures(runs: Sequence["ComparedRun"]) -> None:
    """Tell which figures say little beside those of the first run."""
    for figures in ("validation", "validation and test"):
        others = [run for run in runs if run.on_other_pictures_than(runs[0]) == figures]
        if others:
            named = ", ".join(str(run.path) for run in others[:5])
            remark(
                f"the {figures} figures of {named}{', …' if len(others) > 5 else ''} are of other "
                f"pictures than those of {runs[0].path}, so they say little beside them"
            )


def _write(folder: Path, runs: Sequence["ComparedRun"], groups: Sequence["Repeated"]) -> None:
    from mobilenetv2.evaluation import curves, plots
    from mobilenetv2.files import write_text

    report = {
        "runs": [run.to_json(runs[0]) for run in runs],
        "seeds": [group.to_json() for group in groups],
    }
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    write_text(folder / "comparison.json", text)
    epochs = {str(run.path): [epoch.model_dump() for epoch in run.epochs] for run in runs}
    alike = [[str(run.path) for run in (*group.runs, *group.again)] for group in groups]
    plots.save(curves.comparison(epochs, alike), folder / "comparison.png")
