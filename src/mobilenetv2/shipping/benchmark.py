"""What runs a classifier fastest here: measured side by side, in agreement, and remembered.

Each runtime is measured in a process of its own, so that their threads do not get in each other's
way and the memory is theirs alone.
"""

import json
import multiprocessing
import resource
import sys
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
from mobilenetv2.runtimes import memory
from mobilenetv2.runtimes.engine import Engine
from mobilenetv2.runtimes.installed import installed
from mobilenetv2.shipping.held_out import held_out
from mobilenetv2.training.load import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINE = "torch"
FLOAT32 = ("torch", "torch-folded", "torch-compiled", "onnxruntime", "openvino")
REMEMBERED = ("torch", "onnxruntime", "openvino", "openvino-bf16")
"""What `predict` can choose; the others are measured for comparison."""

COMPARED = 256
AGREEMENT = 0.99
"""Share of labels that a runtime in less than float32 must share with PyTorch to be chosen."""
DIFFERENCE = 1e-3
"""Largest |Δlogit| of a runtime in float32 that may be chosen."""
FEWEST = 5


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
        memory: most megabytes that it took beyond what was there before.
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
    def agrees(self) -> bool:
        """Whether its answers may stand for PyTorch's."""
        if self.runtime in FLOAT32:
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
        missing: runtimes that are not installed.
        winner: the fastest that agrees, at the last batch size.
        noted_in: the file that remembers it.
    """

    machine: str
    model: str
    data: str
    measurements: tuple[Measurement, ...]
    missing: tuple[str, ...]
    winner: str
    noted_in: str

    def to_json(self) -> str:
        """Everything."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def run(config: BenchmarkConfig, classifier: Classifier, console: Console) -> Report:
    """Measure every runtime that is installed, and note the fastest that agrees.

    Raises:
        UserError: the data cannot be used.
    """
    pictures, data = _pictures(config, classifier)
    reference = classifier.for_inference().logits(pictures).numpy()
    names = [name for name in RUNTIMES if config.compiled or name != "torch-compiled"]
    present = [name for name in names if installed(*_NEEDS.get(name, ()))]
    measurements = []
    for name in present:
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
    winner = choose(measurements, REMEMBERED)
    plain = choose(measurements, [name for name in REMEMBERED if name in FLOAT32])
    noted_in = memory.remember(classifier, winner, plain)
    missing = tuple(name for name in names if name not in present)
    return Report(
        memory.machine(), str(config.model), data, tuple(measurements), missing, winner,
        str(noted_in),
    )  # fmt: skip


def choose(measurements: Sequence[Measurement], among: Sequence[str]) -> str:
    """The fastest of these runtimes at the last batch size that agrees with PyTorch."""
    eligible = [one for one in measurements if one.runtime in among and one.agrees]
    return min(eligible, key=lambda one: one.timings[-1].median, default=measurements[0]).runtime


def measure(
    name: str, model: Path, pictures: Array, batch_sizes: Sequence[int], seconds: float
) -> tuple[tuple[Timing, ...], float, float, Array]:
    """One runtime: timings, seconds to start, megabytes, and its logits for ``pictures``.

    For a process of its own; ``pictures`` are prepared, uint8 N×C×H×W.
    """
    classifier = load(model)
    before = _peak_megabytes()
    begun = time.perf_counter()
    work = RUNTIMES[name](classifier, pictures)
    prepared = torch.from_numpy(pictures)
    repeated = prepared.repeat(-(-max(batch_sizes) // len(prepared)), 1, 1, 1)
    work(repeated[: batch_sizes[0]])
    start = time.perf_counter() - begun
    timings = tuple(_timing(work, repeated[:size], seconds) for size in batch_sizes)
    logits = torch.cat([work(few) for few in prepared.split(batch_sizes[-1])]).numpy()
    return timings, start, _peak_megabytes() - before, logits


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


def _compiled(classifier: Classifier, _: Array) -> Callable[[Tensor], Tensor]:
    folded = classifier.for_inference()
    return folded.with_network(torch.compile(folded.network)).logits  # type: ignore[arg-type]


def _int8(runtime: str) -> Callable[[Classifier, Array], Callable[[Tensor], Tensor]]:
    def start(classifier: Classifier, pictures: Array) -> Callable[[Tensor], Tensor]:
        from mobilenetv2.shipping.quantize import quick_int8

        return Engine(classifier, runtime, quick_int8(classifier, pictures))

    return start


def _library(runtime: str) -> Callable[[Classifier, Array], Callable[[Tensor], Tensor]]:
    return lambda classifier, _: Engine(classifier, runtime)


RUNTIMES: dict[str, Callable[[Classifier, Array], Callable[[Tensor], Tensor]]] = {
    "torch": lambda classifier, _: classifier.logits,
    "torch-folded": lambda classifier, _: classifier.for_inference().logits,
    "torch-compiled": _compiled,
    "onnxruntime": _library("onnxruntime"),
    "onnxruntime-int8": _int8("onnxruntime"),
    "openvino": _library("openvino"),
    "openvino-bf16": _library("openvino-bf16"),
    "openvino-int8": _int8("openvino"),
}
"""Each runtime: from a classifier and pictures to calibrate on, to prepared pictures → logits."""

_NEEDS = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "onnxruntime-int8": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "openvino-bf16": ("onnx", "openvino"),
    "openvino-int8": ("onnx", "onnxruntime", "openvino"),
}


def _peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _pictures(config: BenchmarkConfig, classifier: Classifier) -> tuple[Tensor, str]:
    """Prepared pictures to compare answers on, and what they are."""
    try:
        found = held_out(classifier, config.model, config.verify, config.source.data_dir)
    except ConfigError:
        wanted = classifier.preprocessing
        size = (COMPARED, wanted.channels, wanted.height, wanted.width)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator), "noise"
    return found.first(COMPARED).prepared.pictures, found.name


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
    """Pictures per second of each runtime, by batch size."""
    from matplotlib.figure import Figure

    batches = [timing.batch for timing in report.measurements[0].timings]
    names = [one.runtime for one in report.measurements][::-1]
    drawn = Figure(figsize=(9, 0.8 + 0.5 * len(names)), layout="constrained")
    plots = np.atleast_1d(drawn.subplots(1, len(batches), sharey=True))
    for place, (axes, batch) in enumerate(zip(plots, batches, strict=True)):
        speeds = [one.timings[place].throughput for one in report.measurements][::-1]
        colours = ["#2a9d6f" if name == report.winner else "#1f6fb4" for name in names]
        bars = axes.barh(names, speeds, color=colours)
        axes.bar_label(bars, [f"{speed:,.0f}" for speed in speeds], padding=3, fontsize=8)
        axes.set_xlim(right=1.15 * max(speeds))
        axes.set_title(f"batch {batch}", fontsize=10)
        axes.set_xlabel("pictures per second")
        axes.spines[["top", "right"]].set_visible(False)
    drawn.suptitle(f"{report.machine}", fontsize=8)
    return drawn
