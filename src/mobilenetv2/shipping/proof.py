"""Whether an exported file answers as the classifier that it was made from."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from mobilenetv2.classifier import Classifier
from mobilenetv2.evaluation.metrics import Array, accuracy_interval
from mobilenetv2.runtimes.sessions import Session
from mobilenetv2.shipping.contract import LOGITS
from mobilenetv2.shipping.held_out import BATCH, HeldOut

TIMED = 30


@dataclass(frozen=True)
class Threshold:
    """What a file must keep to be delivered.

    Attributes:
        difference: largest |Δlogit| over all pictures; None where it does not matter.
        agreement: least share of pictures with the same label.
        drop: most accuracy that may be lost; None where it does not matter.
    """

    difference: float | None = 1e-4
    agreement: float = 1.0
    drop: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A file beside its classifier, on the same pictures.

    Attributes:
        pictures: how many.
        largest_difference: largest |Δlogit|.
        mean_difference: mean |Δlogit|.
        agreement: share of pictures with the same label.
        reference_hits: pictures that the classifier names rightly.
        hits: pictures that the file names rightly.
        gained: pictures that only the file names rightly.
        lost: pictures that only the classifier names rightly.
    """

    pictures: int
    largest_difference: float
    mean_difference: float
    agreement: float
    reference_hits: int
    hits: int
    gained: int
    lost: int

    @property
    def accuracy(self) -> float:
        """Of the file."""
        return self.hits / self.pictures

    @property
    def reference_accuracy(self) -> float:
        """Of the classifier."""
        return self.reference_hits / self.pictures

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the file's accuracy."""
        return accuracy_interval(self.hits, self.pictures)

    @property
    def drop(self) -> float:
        """Accuracy lost; negative where it was gained."""
        return (self.lost - self.gained) / self.pictures

    @property
    def drop_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the drop."""
        return paired_interval(self.lost, self.gained, self.pictures)

    def failures(self, threshold: Threshold) -> list[str]:
        """Which thresholds are not met, in words."""
        found = []
        limit = threshold.difference
        if not math.isfinite(self.largest_difference):
            found.append("there are logits that are not finite")
        elif limit is not None and self.largest_difference > limit:
            found.append(f"logits differ by up to {self.largest_difference:.2g}, allowed {limit:g}")
        if self.agreement < threshold.agreement:
            found.append(
                f"{self.agreement:.2%} of the labels agree, required {threshold.agreement:.0%}"
            )
        if threshold.drop is not None and self.drop > threshold.drop:
            found.append(f"accuracy drops by {self.drop:.2%}, allowed {threshold.drop:.2%}")
        return found


def paired_interval(lost: int, gained: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a difference of two shares over the same pictures.

    Agresti & Min (2005), "Simple improved confidence intervals for comparing matched proportions":
    Wald's interval after half a picture was added to each cell, so that no difference at all among
    few pictures is not taken for a proof.

    >>> [round(bound, 4) for bound in paired_interval(3, 1, 1000)]
    [-0.0024, 0.0064]
    """
    total = count + 2
    minus, plus = lost + 0.5, gained + 0.5
    middle = (minus - plus) / total
    spread = z * math.sqrt(max(0.0, minus + plus - (minus - plus) ** 2 / total)) / total
    return max(-1.0, middle - spread), min(1.0, middle + spread)


def compare(reference: Array, logits: Array, labels: Array) -> Comparison:
    """Logits N×K of the classifier and of the file, and the truth N."""
    difference = np.abs(reference.astype(np.float64) - logits)
    guesses, others = reference.argmax(1), logits.argmax(1)
    right, other_right = guesses == labels, others == labels
    return Comparison(
        pictures=len(labels),
        largest_difference=float(difference.max()),  # nan where the file's logits are
        mean_difference=float(difference.mean()),
        agreement=float((guesses == others).mean()),
        reference_hits=int(right.sum()),
        hits=int(other_right.sum()),
        gained=int((other_right & ~right).sum()),
        lost=int((right & ~other_right).sum()),
    )


def reference_logits(classifier: Classifier, pictures: HeldOut) -> Array:
    """The classifier's own, as ``predict`` computes them: float32 N×K."""
    folded = classifier.for_inference()
    parts = [folded.logits(few).cpu().numpy() for few in pictures.prepared.pictures.split(BATCH)]
    return np.concatenate(parts)


def file_logits(
    run: Session, classifier: Classifier, pictures: HeldOut, *, raw: bool = False
) -> Array:
    """The file's, in its own runtime: float32 N×K.

    Args:
        run: the file.
        classifier: prepares pictures for a raw network.
        pictures: given as they are, unless ``raw``.
        raw: whether the file holds the network alone.
    """
    inputs = _normalised(classifier, pictures) if raw else pictures.batches()
    return np.concatenate([run(few)[LOGITS] for few in inputs])


def _normalised(classifier: Classifier, pictures: HeldOut) -> Iterator[Array]:
    for few in pictures.prepared.pictures.split(BATCH):
        yield classifier.normalize(few).contiguous().numpy()


def milliseconds(work: Callable[[], object], times: int = TIMED) -> float:
    """The median of the milliseconds that ``work`` takes."""
    work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return 1000 * median(taken)


# ------------------------------------------------------------------ where it diverges


def layer_outputs(classifier: Classifier, prepared: torch.Tensor) -> dict[str, Array]:
    """What each layer of the folded network gives, by module name, in the order of the layers."""
    folded = classifier.for_inference()
    found: dict[str, Array] = {}

    def remember(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_: torch.nn.Module, __: object, output: torch.Tensor) -> None:
            found[name] = output.detach().cpu().numpy().copy()

        return folded.network.get_submodule(name).register_forward_hook(hook)

    skipped = (torch.nn.Identity, torch.nn.Dropout)
    for name, module in folded.network.named_modules():
        if not any(True for _ in module.children()) and not isinstance(module, skipped):
            remember(name)
    folded.logits(prepared)
    return found


def first_divergence(
    reference: dict[str, Array], outputs: dict[str, Array], tolerance: float
) -> str | None:
    """The first layer whose outputs differ by more than a share of its largest output.

    Args:
        reference: by name, in the order of the layers.
        outputs: of the file, by the same names; layers that it does not have are passed over.
        tolerance: share of the layer's largest output.
    """
    for name, expected in reference.items():
        if name in outputs:
            difference = np.abs(expected - outputs[name]).max()
            if not difference <= tolerance * max(float(np.abs(expected).max()), 1e-6):
                return name
    return None
