"""``compare``: runs beside each other."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from mobilenetv2.cli.arguments import made, parse
from mobilenetv2.cli.console import console
from mobilenetv2.cli.voice import remark
from mobilenetv2.command_config import CompareConfig
from mobilenetv2.errors import ConfigError
from mobilenetv2.printable import printable

if TYPE_CHECKING:
    from mobilenetv2.training.comparison import ComparedRun, Repeated


FLAGS_SHOWN = 12


def compare_command(arguments: list[str]) -> int:
    """Show what runs were asked for, each beside the first, and what came out."""
    config = parse("compare", CompareConfig, arguments)
    paths = list(_run_folders(config.runs))
    if len(paths) < 2:
        raise ConfigError("compare: name the folders of two runs or more, such as runs/*")
    from mobilenetv2.training.comparison import read_run, repeated

    runs = [read_run(path) for path in paths]
    groups = repeated(runs)
    console().print(_table(runs))
    print(f"\nbeside {printable(str(runs[0].path))}:")
    for line in _other_settings(runs):
        print(f"  {line}")
    if groups:
        print("\nmeans and standard deviations over seeds, all else being equal:")
        console().print(_seeds(groups))
    others = [run for run in runs if not run.same_pictures_as(runs[0])]
    if others:
        named = ", ".join(str(run.path) for run in others[:5])
        remark(
            f"not measured on the pictures of {runs[0].path}, or not on the same part of them, so "
            f"figures say little beside its own: {named}{', …' if len(others) > 5 else ''}"
        )
    if config.report:
        _write(config.report, runs, groups)
        if not config.quiet:
            print(f"report: {config.report}")
    return 0


def _run_folders(named: Sequence[Path]) -> Iterator[Path]:
    """Each once; what else lies beside them, where a shell has named all, is left out."""
    for path in dict.fromkeys(named):
        if (path / "config.yaml").is_file():
            yield path
        else:
            remark(f"{path}: left out, as it is no run folder (it has no config.yaml)")


def _table(runs: Sequence["ComparedRun"]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for heading in ("validation", "test", "95 % interval", "epochs", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        unended = "" if run.has_ended else f" of {run.settings['epochs']}"
        table.add_row(
            Text(printable(str(run.path))),
            _share(run.val_accuracy),
            _share(run.test_accuracy),
            "–" if run.interval is None else " to ".join(map(_share, run.interval)),
            f"{len(run.epochs)}{unended}",
            "–" if run.seconds is None else f"{run.seconds:,.1f}",
        )
    return table


def _other_settings(runs: Sequence["ComparedRun"]) -> Iterator[str]:
    """A line for each run but the first, with the flags that would make the first one into it."""
    for run in runs[1:]:
        flags = [_flag(name, value) for name, value in run.other_than(runs[0]).items()]
        more = len(flags) - FLAGS_SHOWN
        shown = " ".join(flags[:FLAGS_SHOWN]) or "the same settings"
        yield printable(f"{run.path}: {shown}{f' … and {more} more' if more > 0 else ''}")


def _flag(name: str, value: Any) -> str:
    """A setting as one would type it."""
    flag = name.replace("_", "-")
    if value is None or value == []:
        return f"(no --{flag})"
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    if isinstance(value, list):
        return f"--{flag} {' '.join(map(str, value))}"
    return str(value) if name == "data" else f"--{flag} {value}"


def _seeds(groups: Sequence["Repeated"]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("runs", overflow="fold")
    for heading in ("seeds", "validation", "test"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        names = ", ".join(str(run.path) for run in group.runs)
        figures = (
            "–" if one is None else f"{one[0]:.2%} ± {one[1]:.2%}"
            for one in (group.val, group.test)
        )
        table.add_row(Text(printable(names)), str(len(group.runs)), *figures)
    return table


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _write(folder: Path, runs: Sequence["ComparedRun"], groups: Sequence["Repeated"]) -> None:
    from mobilenetv2.evaluation import curves, plots
    from mobilenetv2.files import write_text

    made("--report", folder)
    report = {
        "runs": [run.to_json(runs[0]) for run in runs],
        "seeds": [group.to_json() for group in groups],
    }
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    write_text(folder / "comparison.json", text)
    named = {str(run.path): run.epochs for run in runs}
    plots.save(curves.comparison(named), folder / "comparison.png")
