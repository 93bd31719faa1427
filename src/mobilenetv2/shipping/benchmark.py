"""What runs a classifier fastest here: measured side by side, in agreement, and remembered.

Each runtime is measured in a process of its own, so that their threads do not get in each other's
way and the memory is theirs alone. Copies in 8 bits or in LiteRT's format are made before that.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.command_config import BenchmarkConfig
from mobilenetv2.errors import ConfigError
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.runtimes import copies, memory
from mobilenetv2.runtimes.engine import LIBRARIES, Engine, precision
from mobilenetv2.runtimes.installed import EXTRAS, installed
from mobilenetv2.shipping.held_out import held_out
from mobilenetv2.shipping.int8 import training_pictures
from mobilenetv2.shipping.network_copies import MAKERS, make_copy
from mobilenetv2.shipping.resident import Resident
from mobilenetv2.training.load import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREDICTED = {"torch-folded": "torch"} | {name: name for name in LIBRARIES if name != "torch"}
"""What `predict` runs, by the name of its row; the others are measured for comparison."""

COMPARED = 512
AGREEMENT = 0.99
"""Share of labels that a runtime in less than float32 must share with PyTorch to be chosen."""
DIFFERENCE = 1e-3
"""Largest |Δlogit| of a runtime in float32 that may be chosen."""
FEWEST = 5
NOISE = "noise"
"""What answers are compared on where there are no pictures."""


@dataclass(frozen=True)
class Timing:
    """Time per batch.

    Attributes:
        batch: pictures at once.
        median, p90, p99: milliseconds per batch.
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
        start: seconds until it was ready, compiling included.
        memory: most resident megabytes while it started and worked, beyond Python, PyTorch and the
            loaded classifier.
        agreement: share of labels shared with PyTorch.
        difference: largest |Δlogit| against PyTorch.
    """

    runtime: str
    timings: tuple[Timing, ...]
    start: float
    memory: float
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
    """

    machine: str
    model: str
    data: str
    measurements: tuple[Measurement, ...]
    missing: dict[str, str]
    winner: str
    noted_in: str

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


def run(config: BenchmarkConfig, classifier: Classifier, console: Console) -> Report:
    """Measure every runtime that is installed, and note the fastest that agrees.

    Raises:
        UserError: the data cannot be used.
        WorkFailed: a copy or the note cannot be written.
    """
    pictures, data = _pictures(config, classifier)
    is_real = data != NOISE
    reference = classifier.for_inference().logits(pictures).numpy()
    names = [name for name in RUNTIMES if config.compiled or name != "torch-compiled"]
    console.print("copies …", style="dim")
    _make_copies(config, classifier, pictures, names)
    missing = {name: why for name in names if (why := _absent(name, classifier))}
    measurements = []
    for name in names:
        if name in missing:
            continue
        console.print(f"{name} …", style="dim")
        # A process for each: tasks start in a fresh one.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            timings, start, used, logits = pool.submit(
                measure, name, config.model, pictures.numpy(), config.batch_sizes, config.seconds
            ).result()
        measurements.append(
            Measurement(
                name,
                timings,
                start,
                used,
                float((logits.argmax(1) == reference.argmax(1)).mean()),
                float(np.abs(logits - reference).max()),
            )
        )
    plain = choose([one for one in measurements if one.is_float32])
    winner = choose(measurements) if is_real else plain  # noise says nothing about real pictures
    noted_in = memory.remember(classifier, PREDICTED[winner], PREDICTED[plain])
    return Report(
        memory.machine(), str(config.model), data, tuple(measurements), missing, winner,
        str(noted_in),
    )  # fmt: skip


def choose(measurements: Sequence[Measurement]) -> str:
    """The fastest that agrees at the last batch size, of the rows that `predict` can run."""
    eligible = [one for one in measurements if one.runtime in PREDICTED and one.agrees]
    if not eligible:
        return "torch-folded"
    return min(eligible, key=lambda one: one.timings[-1].median).runtime


def _make_copies(
    config: BenchmarkConfig, classifier: Classifier, pictures: Tensor, names: Sequence[str]
) -> None:
    """Make the copies that these runtimes need, where that is possible.

    Networks in 8 bits are calibrated on what the run learned from; where no run is known, on the
    pictures that the answers are compared on.
    """
    learned = training_pictures(config.model, config.source.data_dir, classifier)
    made: set[Path] = set()
    for name in names:
        path = copies.copy_of(classifier, name) if name in MAKERS else None
        if path is not None and path not in made and installed(*MAKERS[name]):
            made.add(make_copy(classifier, name, pictures if learned is None else learned))


def _absent(name: str, classifier: Classifier) -> str:
    """Why a runtime cannot be measured; nothing if it can."""
    needs = [*LIBRARIES.get(name, ())]
    if not copies.has_copy(classifier, name):
        needs += MAKERS[name]
    absent = [library for library in dict.fromkeys(needs) if not installed(library)]
    if not absent:
        return ""
    return f'{", ".join(absent)} not installed (pip install "mobilenetv2[{EXTRAS[absent[0]]}]")'


def measure(
    name: str, model: Path, pictures: Array, batch_sizes: Sequence[int], seconds: float
) -> tuple[tuple[Timing, ...], float, float, Array]:
    """One runtime: timings, seconds to start, megabytes, and its logits for ``pictures``.

    For a process of its own; ``pictures`` are prepared, uint8 N×C×H×W.
    """
    classifier = load(model)
    taken = Resident()
    begun = time.perf_counter()
    work = RUNTIMES[name](classifier)
    prepared = torch.from_numpy(pictures)
    repeated = prepared.repeat(-(-max(batch_sizes) // len(prepared)), 1, 1, 1)
    work(repeated[: batch_sizes[0]])
    start = time.perf_counter() - begun
    timings = tuple(_timing(work, repeated[:size], seconds) for size in batch_sizes)
    logits = torch.cat([work(few) for few in prepared.split(batch_sizes[-1])]).numpy()
    return timings, start, taken.most(), logits


def _timing(work: Callable[[Tensor], Tensor], pictures: Tensor, seconds: float) -> Timing:
    for _ in range(3):
        work(pictures)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < FEWEST or time.perf_counter() < end:
        start = time.perf_counter()
        work(pictures)
        taken.append(1000 * (time.perf_counter() - start))
    median, p90, p99 = np.percentile(taken, [50, 90, 99]).tolist()
    return Timing(len(pictures), median, p90, p99, 1000 * len(pictures) / median)


def _compiled(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    folded = classifier.for_inference()
    return folded.with_network(torch.compile(folded.network)).logits  # type: ignore[arg-type]


Start = Callable[[Classifier], Callable[[Tensor], Tensor]]


def _engine(runtime: str) -> Start:
    return lambda classifier: Engine(classifier, runtime)


RUNTIMES: dict[str, Start] = {
    "torch": lambda classifier: classifier.logits,
    "torch-folded": lambda classifier: classifier.for_inference().logits,
    "torch-compiled": _compiled,
} | {name: _engine(name) for name in LIBRARIES if name != "torch"}
"""Each row, the baseline first: from a classifier to a function, prepared pictures → logits."""


def _pictures(config: BenchmarkConfig, classifier: Classifier) -> tuple[Tensor, str]:
    """Prepared pictures to compare answers on, and what they are."""
    try:
        found = held_out(classifier, config.model, config.verify, config.source.data_dir)
    except ConfigError:
        wanted = classifier.preprocessing
        size = (COMPARED, wanted.channels, wanted.height, wanted.width)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator), NOISE
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return found.prepared.pictures[order[:COMPARED]], found.name


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
        cells += [f"{one.start:.1f}", f"{one.memory:.0f}"]
        cells += [f"{one.agreement:.1%}", f"{one.difference:.1g}"]
        shown.add_row(*cells)
    return shown


def figure(report: Report) -> "Figure":
    """Pictures per second of each runtime, by batch size, and the memory it takes."""
    from matplotlib.figure import Figure

    rows = report.measurements[::-1]
    names = [one.runtime for one in rows]
    colours = ["#2a9d6f" if name == report.winner else "#1f6fb4" for name in names]
    columns = [
        (
            f"batch {timing.batch}",
            "pictures per second",
            [one.timings[at].throughput for one in rows],
        )
        for at, timing in enumerate(rows[0].timings)
    ]
    columns.append(("memory", "MB beyond PyTorch and the classifier", [one.memory for one in rows]))
    drawn = Figure(figsize=(4 * len(columns), 1 + 0.45 * len(names)), layout="constrained")
    plots = drawn.subplots(1, len(columns), sharey=True)
    for axes, (title, unit, values) in zip(plots, columns, strict=True):
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3, fontsize=8)
        axes.set_xlim(right=1.2 * max(*values, 1.0))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(unit, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    drawn.suptitle(report.machine, fontsize=8)
    return drawn
