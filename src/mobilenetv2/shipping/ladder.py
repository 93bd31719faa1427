"""From float32 down to 8 bits, one measured rung after the other, until the floor holds.

Each attempt costs more time or size than the one before. Taken is, of the rungs tried that keep the
floor, one whose file is at most ``LARGEST``, if there is any; of these, one that loses at most half
of what may be lost, if there is any: among a few hundred pictures, one that just keeps the floor
would perhaps not keep it on others. Of what is left, it is the one whose logits are closest to the
float32 network's, since how many labels agree is, among so few, mostly a matter of luck.

The climb ends where a rung loses at most half and its file is small enough. If all files of the
first attempt, which keeps no layer in float32, are too large, size is not waited for.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from rich.table import Table
from torch import nn

from mobilenetv2.classifier import Classifier
from mobilenetv2.errors import WorkFailed
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.runtimes.installed import installed
from mobilenetv2.runtimes.processor import weight_bits
from mobilenetv2.runtimes.sessions import Session
from mobilenetv2.shipping.compensate import compensated
from mobilenetv2.shipping.equalise import equalised
from mobilenetv2.shipping.held_out import HeldOut
from mobilenetv2.shipping.proof import (
    Comparison,
    Threshold,
    compare,
    file_logits,
    milliseconds,
    reference_logits,
)
from mobilenetv2.shipping.quantize import float_core, with_nncf, with_onnxruntime
from mobilenetv2.shipping.train_rounded import trained_with_rounding
from mobilenetv2.shipping.weight_grid import round_weight

if TYPE_CHECKING:
    import onnx
    from matplotlib.figure import Figure

KEPT = (2, 4, 8)
"""How many of the most sensitive layers stay in float32, one rung after the other."""
MEASURED = 2
"""Batches on which the layers are compared."""
MARGIN = 0.5
"""Share of what may be lost that the climb ends with."""
LARGEST = 0.30
"""Share of the float32 file's bytes that a quantised file should not exceed."""


@dataclass(frozen=True)
class Rung:
    """One way to quantise, measured.

    Attributes:
        name: what was done.
        comparison: beside the classifier, on the pictures that the choice is made on.
        share: bytes of the file, as a share of the float32 file's.
        milliseconds: for one picture, the network alone.
        core: the network, from ``normalised`` to ``logits``.
    """

    name: str
    comparison: Comparison
    share: float
    milliseconds: float
    core: "onnx.ModelProto"

    @property
    def fits(self) -> bool:
        """Whether the file is small enough."""
        return self.share <= LARGEST

    def holds(self, floor: Threshold) -> bool:
        """Whether it keeps the floor."""
        return not self.comparison.failures(floor)

    def holds_well(self, floor: Threshold) -> bool:
        """Whether it loses at most half of what may be lost."""
        half = Threshold(
            None,
            1 - MARGIN * (1 - floor.agreement),
            None if floor.drop is None else MARGIN * floor.drop,
        )
        return self.holds(half)

    def worth(self, floor: Threshold) -> tuple[bool, bool, bool, float]:
        """What makes it better than another: floor and size, margin, floor, nearness."""
        holds = self.holds(floor)
        return (
            holds and self.fits,
            self.holds_well(floor),
            holds,
            -self.comparison.mean_difference,
        )


class Opened(Protocol):
    """How a network runs as a file would: alone, or with its preparation."""

    def __call__(self, core: "onnx.ModelProto", *, raw: bool) -> Session:
        """The file with this network."""


def climb(
    classifier: Classifier,
    pictures: HeldOut,
    batches: Sequence[Array],
    floor: Threshold,
    raw: bool,
    opened: Opened,
    share: Callable[["onnx.ModelProto"], float],
    tell: Callable[[Rung], None] = lambda _: None,
) -> list[Rung]:
    """The rungs that were tried; the last is the float32 network's best copy that was found.

    Args:
        classifier: what is quantised.
        pictures: to judge the rungs on.
        batches: normalised pictures to calibrate and to train on, float32 N×C×H×W.
        floor: what must be kept.
        raw: whether the file will hold the network alone.
        opened: makes a file of a network, and runs it.
        share: bytes of the file with a network, as a share of the float32 file's.
        tell: is called with each rung as it is measured.

    Raises:
        WorkFailed: the classifier gives what is not a number.
    """
    reference = reference_logits(classifier, pictures)
    if not np.isfinite(reference).all():
        raise WorkFailed("the classifier's own logits are not all numbers: it cannot be quantised")
    tried: list[Rung] = []

    def judge(name: str, core: "onnx.ModelProto") -> Rung:
        delivered = opened(core, raw=raw)
        logits = file_logits(delivered, classifier, pictures, raw=raw)
        compared = compare(reference, logits, pictures.labels)
        alone = delivered if raw else opened(core, raw=True)
        taken = milliseconds(partial(alone, batches[0][:1]))
        rung = Rung(name, compared, share(core), taken, core)
        tell(rung)
        return rung

    some_fit = False
    for attempt in _attempts(classifier, batches):
        first = not tried
        tried += [judge(name, core) for name, core in attempt]
        if first:  # it keeps no layer in float32: where nothing fits here, nothing is waited for
            some_fit = any(rung.fits for rung in tried)
        best = max(tried, key=lambda rung: rung.worth(floor))
        if best.holds_well(floor) and (best.fits or not some_fit):
            break
    return [*(rung for rung in tried if rung is not best), best]


Attempt = Iterator[tuple[str, "onnx.ModelProto"]]
Quantiser = Callable[["onnx.ModelProto", Sequence[Array], Sequence[str], int], "onnx.ModelProto"]


def _attempts(classifier: Classifier, batches: Sequence[Array]) -> Iterator[Attempt]:
    """Ways to quantise in the order in which they are tried; each gives one network or more."""
    bits = weight_bits()

    def by_each_tool(name: str, prepared: Classifier) -> Attempt:
        core = float_core(prepared)
        for tool, quantise in quantisers().items():
            yield f"{name}, {tool}", quantise(core, batches, (), bits)

    # On weights that lie on its grid, ONNX Runtime's tool changes nothing; NNCF's 7 bits have
    # another grid.
    def by_onnxruntime(name: str, prepared: Classifier, keep: Sequence[str] = ()) -> Attempt:
        yield name, with_onnxruntime(float_core(prepared), batches, keep, bits)

    yield by_each_tool("per channel", classifier)
    even = equalised(classifier, batches)
    yield by_each_tool("equalised", even)
    all_rounded = compensated(even, batches, bits)
    yield by_onnxruntime("compensated", all_rounded)
    sensitive = sensitive_layers(even, batches, bits)
    for count in KEPT:
        keep = sensitive[:count]
        most_rounded = compensated(even, batches, bits, keep)
        yield by_onnxruntime(f"compensated, {count} layers in float32", most_rounded, keep)
    trained = trained_with_rounding(all_rounded, classifier, batches, bits)
    yield by_onnxruntime("trained with rounding", trained)


def quantisers() -> Mapping[str, Quantiser]:
    """The tools that are installed."""
    return {"ONNX Runtime": with_onnxruntime} | ({"NNCF": with_nncf} if installed("nncf") else {})


def sensitive_layers(classifier: Classifier, batches: Sequence[Array], bits: int = 8) -> list[str]:
    """Convolutions by what rounding to the nearest costs for each weight, the most sensitive first.

    The cost is the mean square of what changes in the logits when the weights of this layer alone
    are rounded. For each weight, because that is what a layer kept in float32 takes in the file:
    the layers that hurt most are often the first ones, which hold a few hundred weights.

    Args:
        classifier: is not changed.
        batches: normalised pictures, float32 N×C×H×W; the first ones are enough.
        bits: that a weight uses.
    """
    network = classifier.for_inference().network
    pictures = torch.from_numpy(np.concatenate(batches[:MEASURED]))
    costs = {}
    with torch.inference_mode():
        exact = network(pictures)
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d):
                whole = layer.weight
                layer.weight = nn.Parameter(round_weight(whole, bits), requires_grad=False)
                error = float((network(pictures) - exact).square().mean())
                layer.weight = whole
                costs[name] = error / whole.numel()
    return sorted(costs, key=lambda name: -costs[name])


def size_note(rungs: Sequence[Rung]) -> str | None:
    """What a reader should know of the size, if it is too large; the last rung was taken."""
    taken, shares = rungs[-1], [rung.share for rung in rungs]
    if taken.fits:
        return None
    if min(shares) <= LARGEST:
        rest = "none that was tried within that kept the floor"
    else:
        rest = f"the smallest that was tried has {min(shares):.3f}"
    return f"{taken.share:.3f} × float32: larger than {LARGEST:.2f}; {rest}"


def table(rungs: Sequence[Rung], floor: Threshold) -> Table:
    """The ladder for people; the last rung is the one that was taken."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("rung", "accuracy", "lost", "same label", "size", "ms", ""):
        shown.add_column(heading, justify="left" if heading in ("rung", "") else "right")
    for rung in rungs:
        compared = rung.comparison
        shown.add_row(
            rung.name,
            f"{compared.accuracy:.2%}",
            f"{compared.drop:.2%}",
            f"{compared.agreement:.2%}",
            f"{rung.share:.3f}",
            f"{rung.milliseconds:.2f}",
            ("holds" if rung.holds(floor) else _why_not(compared, floor))
            + ("" if rung.fits else ", too large")
            + (", taken" if rung is rungs[-1] and rung.holds(floor) else ""),
        )
    return shown


def _why_not(compared: Comparison, floor: Threshold) -> str:
    """Which threshold a rung misses, in a word or two."""
    if not math.isfinite(compared.largest_difference):
        return "logits not finite"
    if compared.agreement < floor.agreement:
        return f"labels below {floor.agreement:.0%}"
    return "accuracy too low"


def figure(rungs: Sequence[Rung], floor: Threshold) -> "Figure":
    """Accuracy of each rung with its interval, and the floor."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8, 1.2 + 0.45 * len(rungs)), layout="constrained")
    axes = drawn.subplots()
    for place, rung in enumerate(rungs):
        compared = rung.comparison
        low, high = compared.drop_interval
        colour = "#2a9d6f" if rung.holds(floor) else "#d1495b"
        axes.plot([-100 * high, -100 * low], [place, place], color=colour, linewidth=2)
        axes.plot(-100 * compared.drop, place, "o", color=colour)
    axes.set_yticks(
        range(len(rungs)),
        [f"{rung.name}\n{rung.share:.3f} × size, {rung.milliseconds:.2f} ms" for rung in rungs],
        fontsize=8,
    )
    if floor.drop is not None:
        axes.axvline(-100 * floor.drop, color="#66788a", linestyle="--", linewidth=1)
        axes.annotate(
            "floor", (-100 * floor.drop, -0.35), (3, 0), textcoords="offset points",
            color="#66788a", fontsize=8,
        )  # fmt: skip
    axes.set_ylim(len(rungs) - 0.5, -0.6)  # the first rung above
    axes.set_xlabel("accuracy against float32, points (95 % interval of the paired difference)")
    axes.grid(axis="x", alpha=0.25)
    return drawn
