"""What runs a classifier fastest here: measured side by side, in agreement, and remembered.

Each runtime is measured in a process of its own, so that their threads do not get in each other's
way and the memory is theirs alone; and by turns, some rounds of all, so that a slow minute of the
machine is not one runtime's alone. Copies in 8 bits or in LiteRT's format are made before that.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.command_config import BenchmarkConfig
from mobilenetv2.errors import ConfigError, DataError, Mobilenetv2Error, WorkFailed
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.extras import pip_install
from mobilenetv2.runtimes import copies, memory
from mobilenetv2.runtimes.engine import LIBRARIES, Engine, obstacle
from mobilenetv2.runtimes.installed import EXTRAS, installed
from mobilenetv2.shipping.benchmark_report import Measurement, Report, Timing
from mobilenetv2.shipping.held_out import held_out
from mobilenetv2.shipping.int8 import training_pictures
from mobilenetv2.shipping.network_copies import CALIBRATED, MAKERS, make_copy
from mobilenetv2.shipping.resident import Resident
from mobilenetv2.training.load import load

PREDICTED = {"torch-folded": "torch"} | {name: name for name in LIBRARIES if name != "torch"}
"""What `predict` runs, by the name of its row; the others are measured for comparison."""

STOCK = ("torch", "torch-folded")
"""What the others are compared with, and what is left where none of them is better."""

COMPARED = 512
FEWEST = 3
"""Batches of a size, in each round."""
NOISE = "noise"
"""What answers are compared on where there are no pictures."""
NO_PICTURES = "8 bits are calibrated on pictures, and none are known; name some with --verify"


def run(config: BenchmarkConfig, classifier: Classifier, console: Console) -> Report:
    """Measure every runtime that is installed, and note the fastest that agrees.

    Raises:
        UserError: the data cannot be used.
        WorkFailed: a copy or the note cannot be written, or not even PyTorch could be measured.
    """
    pictures, data = _pictures(config, classifier, console)
    is_real = data != NOISE
    reference = classifier.for_inference().logits(pictures).numpy()
    names = [name for name in RUNTIMES if config.compiled or name != "torch-compiled"]
    console.print("copies …", style="dim")
    known = _learned_from(config, classifier, pictures if is_real else None, console)
    _make_copies(classifier, known, names)
    missing = {name: why for name in names if (why := _absent(name, classifier))}
    visits: dict[str, list[Visit]] = {name: [] for name in names}
    for turn in range(config.rounds):
        for name in names:
            if name in missing:
                continue
            console.print(f"round {turn + 1} of {config.rounds}: {name} …", style="dim")
            # A process for each: tasks start in a fresh one.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                measuring = pool.submit(
                    measure, name, config.model, pictures.numpy(), config.batch_sizes,
                    config.seconds / config.rounds, turn == 0,
                )  # fmt: skip
            try:
                visits[name].append(measuring.result())
            # A copy is damaged, there is no compiler, the system stopped the process, …
            except Exception as error:
                if name in STOCK:
                    raise WorkFailed(f"{name} could not be measured: {_reason(error)}") from error
                missing[name] = _reason(error)
    measurements = [
        _measurement(name, visits[name], config.batch_sizes, reference)
        for name in names
        if name not in missing
    ]
    plain = choose([one for one in measurements if one.is_float32])
    winner = choose(measurements) if is_real else plain  # noise says nothing about real pictures
    for_these_weights = PREDICTED[winner] if is_real else None
    noted_in = memory.remember(classifier, for_these_weights, PREDICTED[plain])
    kept = memory.recall(classifier)[0]
    return Report(
        memory.machine(), str(config.model), data, tuple(measurements), missing, winner,
        str(noted_in), "" if kept == PREDICTED[winner] else kept,
    )  # fmt: skip


def choose(measurements: Sequence[Measurement]) -> str:
    """The fastest that agrees at the last batch size, of the rows that `predict` can run."""
    eligible = [one for one in measurements if one.runtime in PREDICTED and one.agrees]
    if not eligible:
        return "torch-folded"
    return min(eligible, key=lambda one: one.timings[-1].median).runtime


def _learned_from(
    config: BenchmarkConfig, classifier: Classifier, compared: Tensor | None, console: Console
) -> Tensor | None:
    """What the run learned from, or else the pictures that answers are compared on, if any."""
    try:
        return training_pictures(config.model, config.source.data_dir, classifier)
    except DataError as error:
        if compared is not None:
            note = f"8 bits are calibrated on the pictures of {config.verify}: {error}"
            console.print(note, style="dim", markup=False)
        return compared


def _make_copies(classifier: Classifier, known: Tensor | None, names: Sequence[str]) -> None:
    """Make the copies that these runtimes need, where that is possible.

    Networks in 8 bits are calibrated on the ``known`` pictures. Without any, the copies that are
    there stay.
    """
    made: set[Path] = set()
    for name in names:
        if name not in MAKERS or (known is None and name in CALIBRATED):
            continue
        if copies.copy_of(classifier, name) not in made and installed(*MAKERS[name]):
            made.add(make_copy(classifier, name, known))


def _absent(name: str, classifier: Classifier) -> str:
    """Why a runtime cannot be measured; nothing if it can."""
    needs = [*LIBRARIES.get(name, ())]
    if not copies.has_copy(classifier, name):
        needs += MAKERS[name]
    absent = [library for library in dict.fromkeys(needs) if not installed(library)]
    if not absent:
        if reason := obstacle(name, classifier):
            return reason
        return "" if copies.has_copy(classifier, name) else NO_PICTURES
    return f"{', '.join(absent)} not installed ({pip_install(EXTRAS[absent[0]])})"


@dataclass(frozen=True)
class Visit:
    """What one process measured of a runtime.

    Attributes:
        milliseconds: of every batch, by batch size.
        start: seconds until it was ready, see :class:`.Measurement`.
        memory: megabytes, see :class:`.Measurement`.
        logits: for the pictures, where they were asked for.
    """

    milliseconds: tuple[tuple[float, ...], ...]
    start: float
    memory: float | None
    logits: Array | None


def measure(
    name: str, model: Path, pictures: Array, batch_sizes: Sequence[int], seconds: float,
    answers: bool,
) -> Visit:  # fmt: skip
    """One runtime, ``seconds`` at each batch size; its logits too if ``answers``.

    For a process of its own; ``pictures`` are prepared, uint8 N×C×H×W.

    Raises:
        Mobilenetv2Error: whatever went wrong, in words: errors of other libraries may hold what
            does not come back from the process.
    """
    try:
        return _measured(name, model, pictures, batch_sizes, seconds, answers)
    except Mobilenetv2Error:
        raise
    except Exception as error:
        raise WorkFailed(_reason(error)) from None


def _measured(
    name: str, model: Path, pictures: Array, batch_sizes: Sequence[int], seconds: float,
    answers: bool,
) -> Visit:  # fmt: skip
    classifier = load(model)
    taken = Resident()
    begun = time.perf_counter()
    work = RUNTIMES[name](classifier)
    prepared = torch.from_numpy(pictures)
    repeated = prepared.repeat(-(-max(batch_sizes) // len(prepared)), 1, 1, 1)
    work(repeated[: batch_sizes[0]])
    start = time.perf_counter() - begun
    milliseconds = tuple(_timed(work, repeated[:size], seconds) for size in batch_sizes)
    logits = None
    if answers:
        logits = torch.cat([work(few) for few in prepared.split(batch_sizes[-1])]).numpy()
    return Visit(milliseconds, start, taken.most(), logits)


def _timed(work: Callable[[Tensor], Tensor], pictures: Tensor, seconds: float) -> tuple[float, ...]:
    """Milliseconds of each call."""
    for _ in range(3):
        work(pictures)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < FEWEST or time.perf_counter() < end:
        start = time.perf_counter()
        work(pictures)
        taken.append(1000 * (time.perf_counter() - start))
    return tuple(taken)


def _reason(error: Exception) -> str:
    """Why a runtime was not measured; of other programs, the first line of what they say."""
    if isinstance(error, Mobilenetv2Error):
        return str(error)
    if isinstance(error, BrokenProcessPool):
        return "the process that measured it ended early; perhaps there was too little memory"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _measurement(
    name: str, visits: Sequence[Visit], batch_sizes: Sequence[int], reference: Array
) -> Measurement:
    """All visits to a runtime: of each figure the median of the rounds.

    The first visit brought the answers, and its start counts: later ones find what it compiled.
    """
    logits = visits[0].logits
    assert logits is not None
    timings = []
    for place, batch in enumerate(batch_sizes):
        rounds = [np.percentile(visit.milliseconds[place], [50, 90, 99]) for visit in visits]
        median, p90, p99 = np.median(rounds, axis=0).tolist()
        timings.append(Timing(batch, median, p90, p99, 1000 * batch / median))
    return Measurement(
        name,
        tuple(timings),
        visits[0].start,
        max((visit.memory for visit in visits if visit.memory is not None), default=None),
        float((logits.argmax(1) == reference.argmax(1)).mean()),
        float(np.abs(logits - reference).max()),
    )


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


def _pictures(
    config: BenchmarkConfig, classifier: Classifier, console: Console
) -> tuple[Tensor, str]:
    """Prepared pictures to compare answers on, and what they are."""
    try:
        found = held_out(classifier, config.model, config.verify, config.source.data_dir)
    except ConfigError as error:
        console.print(f"compared on noise: {error}", style="dim", markup=False)
        wanted = classifier.preprocessing
        size = (COMPARED, wanted.channels, wanted.height, wanted.width)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator), NOISE
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return found.prepared.pictures[order[:COMPARED]], found.name
