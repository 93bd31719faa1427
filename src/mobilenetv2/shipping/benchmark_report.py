"""What was measured of the runtimes: the record, its table and its picture."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mobilenetv2.runtimes.engine import DIFFERENCE, precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AGREEMENT = 0.99
"""Share of labels that a runtime in less than float32 must share with PyTorch to be chosen."""
CHOSEN, OTHER, DISAGREES = "#2a9d6f", "#1f6fb4", "#b8bec6"


@dataclass(frozen=True)
class Timing:
    """Time per batch.

    Attributes:
        batch: pictures at once.
        median, p90, p99: milliseconds per batch; medians of the rounds.
        throughput: pictures per second, from the median.
    """

    batch: int
    median: float
    p90: float
    p99: float
    throughput: float


@dataclass(frozen=True)
class Measurement:
    """One runtime.

    Attributes:
        runtime: its name.
        timings: one per batch size.
        start: seconds until it was ready, the first time; torch.compile's compiling included, that
            of this package's own kernels not, as they stay compiled.
        memory: most resident megabytes while it started and worked, beyond Python, PyTorch and the
            loaded classifier; None where the system does not tell.
        agreement: share of labels shared with PyTorch.
        difference: largest |Δlogit| against PyTorch.
    """

    runtime: str
    timings: tuple[Timing, ...]
    start: float
    memory: float | None
    agreement: float
    difference: float

    @property
    def is_float32(self) -> bool:
        """Whether it computes in float32."""
        return precision(self.runtime) == "float32"

    @property
    def agrees(self) -> bool:
        """Whether its answers may stand for PyTorch's."""
        if self.is_float32:
            return self.difference <= DIFFERENCE
        return self.agreement >= AGREEMENT


@dataclass(frozen=True)
class Report:
    """All runtimes, on one machine.

    Attributes:
        machine: processor and versions.
        model: what was run.
        data: what the answers were compared on.
        measurements: one per runtime, the baseline first.
        missing: why a runtime was not measured, by its name.
        winner: the row of the fastest that agrees, at the last batch size, among those that
            `predict` can run.
        noted_in: the file that remembers it.
        stays: what stays noted for these weights in its place, as it was measured on pictures and
            this was not; nothing where that is the winner.
    """

    machine: str
    model: str
    data: str
    measurements: tuple[Measurement, ...]
    missing: dict[str, str]
    winner: str
    noted_in: str
    stays: str = ""

    @property
    def shares(self) -> dict[int, float]:
        """The winner's speed as a share of the best of all that agree, by batch size."""
        won = next(one for one in self.measurements if one.runtime == self.winner)
        return {
            timing.batch: min(one.timings[place].median for one in self.measurements if one.agrees)
            / timing.median
            for place, timing in enumerate(won.timings)
        }

    def to_json(self) -> str:
        """Everything."""
        document = asdict(self) | {"shares": self.shares}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def table(report: Report) -> Table:
    """The measurements for people."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("runtime")
    batches = [timing.batch for timing in report.measurements[0].timings]
    for batch in batches:
        for heading in (f"batch {batch}: ms", "p90", "p99", "pictures/s", "× torch"):
            shown.add_column(heading, justify="right")
    for heading in ("start s", "MB", "same label", "|Δlogit|"):
        shown.add_column(heading, justify="right")
    baseline = report.measurements[0]
    for one in report.measurements:
        cells = [f"{one.runtime}{' ←' if one.runtime == report.winner else ''}"]
        for timing, usual in zip(one.timings, baseline.timings, strict=True):
            cells += [f"{ms:.2f}" for ms in (timing.median, timing.p90, timing.p99)]
            cells += [f"{timing.throughput:,.0f}", f"{usual.median / timing.median:.1f}"]
        cells += [f"{one.start:.1f}", "" if one.memory is None else f"{one.memory:.0f}"]
        cells += [f"{one.agreement:.1%}", f"{one.difference:.1g}"]
        shown.add_row(*cells)
    return shown


def figure(report: Report) -> "Figure":
    """Pictures per second of each runtime, by batch size, and the memory it takes."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = report.measurements[::-1]
    names = [one.runtime for one in rows]
    looks = [_look(one, report) for one in rows]
    columns = [
        (
            f"batch {timing.batch}",
            "pictures per second",
            [one.timings[at].throughput for one in rows],
        )
        for at, timing in enumerate(rows[0].timings)
    ]
    memory = [one.memory for one in rows if one.memory is not None]
    if len(memory) == len(rows):
        columns.append(("memory", "MB beyond PyTorch and the classifier", memory))
    drawn = Figure(figsize=(4 * len(columns), 1 + 0.45 * len(names)), layout="constrained")
    plots = drawn.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (title, unit, values) in zip(plots, columns, strict=True):
        bars = axes.barh(names, values)
        for bar, look in zip(bars, looks, strict=True):
            bar.set(**look)
        axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3, fontsize=8)
        axes.set_xlim(right=1.2 * max(*values, 1.0))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(unit, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    present = {look["label"]: look for look in looks[::-1]}
    handles = [Patch(**look) for look in present.values()]
    drawn.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    drawn.suptitle(report.machine, fontsize=8)
    return drawn


def _look(one: Measurement, report: Report) -> dict[str, Any]:
    """How the bars of a runtime are drawn, and what the legend calls them.

    Hatched as well as grey, for eyes and printers that do not tell the colours apart.
    """
    if one.runtime == report.winner:
        return {"facecolor": CHOSEN, "label": "chosen"}
    if not one.agrees:
        label = "answers differ too much to be chosen"
        return {"facecolor": DISAGREES, "hatch": "///", "edgecolor": "white", "label": label}
    return {"facecolor": OTHER, "label": "agrees with PyTorch"}
