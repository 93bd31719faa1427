"""The validate function: what a classifier is worth on a set of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.distributed import ALONE, Processes
from mobilenetv2.errors import DataError
from mobilenetv2.evaluation.metrics import (
    Array,
    PerClass,
    accuracy_interval,
    confusion_matrix,
    per_class,
)

BATCH_SIZE = 500
BATCH_PIXELS = BATCH_SIZE * 64 * 64
"""Pictures at once, and fewer of large ones: 500 photos would need gigabytes. The result does not
depend on it beyond the rounding of float32 logits."""


@dataclass(frozen=True)
class Evaluation:
    """Exact figures over a whole set: every picture counted once.

    Attributes:
        count: pictures.
        loss: mean cross-entropy, without label smoothing.
        hits: pictures whose likeliest label is the right one.
        top5_hits: pictures whose right label is among the five likeliest (of all, below five).
        confusion: K×K counts, rows are the truth.
        predicted: int64 N, the likeliest label of each picture.
        confidence: float32 N, its probability.
    """

    count: int
    loss: float
    hits: int
    top5_hits: int
    confusion: Array
    predicted: Array
    confidence: Array

    @property
    def accuracy(self) -> float:
        """Share of hits (top-1)."""
        return self.hits / self.count

    @property
    def top5_accuracy(self) -> float:
        """Share of pictures whose right label is among the five likeliest."""
        return self.top5_hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The accuracy's 95 % confidence interval."""
        return accuracy_interval(self.hits, self.count)

    def summary(self, labels: Sequence[str]) -> dict[str, Any]:
        """The figures as JSON-ready values, with one row per class."""
        classes = self.per_class
        predicted, present = self.confusion.sum(0), self.confusion.sum(1)
        return {
            "pictures": self.count,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.interval),
            "top5_accuracy": self.top5_accuracy,
            "loss": self.loss,
            "macro_f1": classes.macro_f1,
            "classes": [
                {
                    "class": label,
                    "pictures": int(present[index]),
                    "predicted": int(predicted[index]),
                    "precision": float(classes.precision[index]),
                    "recall": float(classes.recall[index]),
                    "f1": float(classes.f1[index]),
                }
                for index, label in enumerate(labels)
            ],
        }

    @property
    def per_class(self) -> PerClass:
        """Precision, recall and F1 of each class."""
        return per_class(self.confusion)


def evaluate(
    classifier: Classifier,
    pictures: LabelledPictures,
    batch_size: int | None = None,
    processes: Processes = ALONE,
) -> Evaluation:
    """Loss and accuracy of ``classifier`` over all ``pictures``, without a margin that they have.

    Eval mode, no gradients, float32, on a folded copy: the network itself is not touched, so its
    training mode stays as it is. Sums are weighted by picture, so a short last batch counts for
    what it holds and no more. Several ``processes`` take turns with the batches, and each gets the
    figures of all: the same as of one process, to the last bit.

    Raises:
        DataError: there are no pictures.
    """
    if not len(pictures):
        raise DataError("there are no pictures to measure on")
    classifier = classifier.for_inference()
    pictures = _without_margin(pictures, classifier)
    size = batch_size or measuring_batch(pictures)
    logits = torch.zeros(len(pictures), len(classifier.labels), device=classifier.device)
    for start in range(0, len(pictures), size)[processes.rank :: processes.count]:
        part = slice(start, start + size)
        logits[part] = classifier.logits(pictures.pictures[part])
    # Where another process was at work, here are zeros.
    return evaluate_logits(processes.total(logits), pictures.labels)


def _without_margin(pictures: LabelledPictures, classifier: Classifier) -> LabelledPictures:
    size = classifier.preprocessing.height, classifier.preprocessing.width
    height, width = pictures.pictures.shape[-2:]
    covers = height >= size[0] and width >= size[1]
    return pictures.centre(size) if covers and (height, width) != size else pictures


def measuring_batch(pictures: LabelledPictures) -> int:
    """How many pictures of this size are measured at a time.

    PyTorch rounds sums differently in batches of other sizes; who wants the same bits takes the
    same.
    """
    height, width = pictures.pictures.shape[-2:]
    return max(1, min(BATCH_SIZE, BATCH_PIXELS // (height * width)))


def evaluate_logits(logits: Tensor, labels: Tensor) -> Evaluation:
    """The figures of pictures whose logits are known.

    Args:
        logits: float32 N×K.
        labels: int64 N, on any device.
    """
    classes = logits.shape[1]
    labels = labels.to(logits.device)
    confidence, best = logits.softmax(1).max(1)
    top5 = logits.topk(min(5, classes)).indices
    truth, guesses = labels.cpu().numpy(), best.cpu().numpy()
    return Evaluation(
        count=len(labels),
        loss=float(F.cross_entropy(logits, labels, reduction="none").double().mean()),
        hits=int(np.count_nonzero(guesses == truth)),
        top5_hits=int((top5 == labels[:, None]).sum()),
        confusion=confusion_matrix(truth, guesses, classes),
        predicted=guesses,
        confidence=confidence.cpu().numpy(),
    )
