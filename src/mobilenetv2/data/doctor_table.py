"""An examination as a table in the terminal."""

from collections import Counter
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mobilenetv2.data.examination import KINDS, UNUSABLE_KINDS, Examination, Finding, Severity
from mobilenetv2.printable import printable

CLASSES_SHOWN = 30
UNUSABLE_SHOWN = 20
EXAMPLES_SHOWN = 3
BAR_WIDTH = 24
STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "dim"}


def render(examination: Examination, console: Console) -> None:
    """Prints what the folder holds, what is wrong with it, and a verdict.

    Long lists are cut, and say by how much; ``Examination.to_json`` has everything.
    """
    console.print(_heading(examination))
    console.print(_classes(examination))
    console.print(_sizes(examination))
    _print_unusable(examination, console)
    if any(finding.kind not in UNUSABLE_KINDS for finding in examination.findings):
        console.print(_findings(examination))
    console.print(_verdict(examination))


def _heading(examination: Examination) -> Text:
    pictures = _count(len(examination.pictures), "picture")
    splits = " · ".join(examination.splits) if len(examination.splits) > 1 else "no splits"
    heading = Text(printable(str(examination.root)), style="bold")
    heading.append(
        f"\n{pictures} in {len(examination.classes)} classes, {splits}", style="not bold"
    )
    return heading


def _classes(examination: Examination) -> Table:
    splits = examination.splits
    counts = {split: examination.counts(split) for split in splits}
    left_out = Counter(p.label for p in examination.pictures if not p.usable)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("class", overflow="fold")
    for split in splits:
        table.add_column(split if len(splits) > 1 else "pictures", justify="right")
    if left_out:
        table.add_column("left out", justify="right")
    table.add_column("")
    largest = max(counts["train"]) or 1
    for label, name in enumerate(examination.classes[:CLASSES_SHOWN]):
        cells: list[Text | str] = [Text(printable(name))]
        cells += [f"{counts[split][label]:,}" for split in splits]
        if left_out:
            cells.append(Text(f"{left_out[label]:,}", style="red" if left_out[label] else "dim"))
        bar = "▇" * max(round(BAR_WIDTH * counts["train"][label] / largest), 1)
        cells.append(Text(bar if counts["train"][label] else "", style="cyan"))
        table.add_row(*cells)
    if len(examination.classes) > CLASSES_SHOWN:
        table.add_row(f"… and {len(examination.classes) - CLASSES_SHOWN} more classes")
    if len(examination.classes) > 1:
        cells = [Text("all", style="bold")]
        cells += [Text(f"{sum(counts[split]):,}", style="bold") for split in splits]
        if left_out:
            cells.append(Text(f"{left_out.total():,}", style="bold"))
        table.add_row(*cells)
    return table


def _sizes(examination: Examination) -> Text:
    usable = [picture for picture in examination.pictures if picture.usable]
    if not usable:
        return Text("No picture can be decoded.", style=STYLES["error"])
    short = [min(picture.width, picture.height) for picture in usable]
    lines = [
        f"Shorter side {min(short):,} to {max(short):,} pixels, median {median(short):,.0f}",
        "Formats " + _tally(picture.format for picture in usable),
        "Modes " + _tally(picture.mode for picture in usable),
    ]
    if examination.passed_over:
        reasons = _tally(reason for _, reason in examination.passed_over)
        lines.append(f"Passed over {_count(len(examination.passed_over), 'other file')}: {reasons}")
    return Text("\n" + "\n".join(lines) + "\n")


def _findings(examination: Examination) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("found", no_wrap=True)
    table.add_column("", justify="right")
    table.add_column("which means", overflow="fold")
    table.add_column("for example", overflow="fold")
    for name, kind in KINDS.items():
        found = examination.of_kind(name)
        if not found or name in UNUSABLE_KINDS:
            continue
        table.add_row(
            Text(kind.title, style=STYLES[kind.severity]),
            f"{len(found):,}",
            kind.meaning,
            Text("\n".join(_example(examination, one) for one in found[:EXAMPLES_SHOWN])),
        )
    return table


def _example(examination: Examination, finding: Finding) -> str:
    paths = [printable(examination.relative(path)) for path in finding.paths[:2]]
    more = f" + {len(finding.paths) - 2}" if len(finding.paths) > 2 else ""
    return f"{' = '.join(paths)}{more}: {finding.words}" if paths else printable(finding.words)


def _print_unusable(examination: Examination, console: Console) -> None:
    unusable = [picture for picture in examination.pictures if not picture.usable]
    if not unusable:
        return
    console.print(Text(f"{_count(len(unusable), 'picture')} left out", style="bold"))
    for picture in unusable[:UNUSABLE_SHOWN]:
        line = Text("  " + printable(examination.relative(picture.path)))
        line.append(f"  {printable(picture.reason or '')}", style="red")
        console.print(line)
    if len(unusable) > UNUSABLE_SHOWN:
        console.print(Text(f"  … and {len(unusable) - UNUSABLE_SHOWN:,} more"))
    console.print()


def _verdict(examination: Examination) -> Text:
    severities = Counter(finding.severity for finding in examination.findings)
    usable = sum(picture.usable for picture in examination.pictures)
    verdict = Text(f"\n{usable:,} of {len(examination.pictures):,} pictures can be used. ")
    if not severities["error"] and not severities["warning"]:
        return verdict.append("Nothing is wrong with this folder.", style="bold green")
    said: list[tuple[Severity, str]] = [("error", "error"), ("warning", "warning")]
    parts = [
        Text(_count(severities[severity], word), style=STYLES[severity])
        for severity, word in said
        if severities[severity]
    ]
    return verdict.append_text(Text(", ").join(parts)).append(".")


def _tally(values: object) -> str:
    counts = Counter(values)  # type: ignore[call-overload]
    return ", ".join(f"{printable(str(value))} {count:,}" for value, count in counts.most_common())


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
