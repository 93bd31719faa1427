"""Pure functions on counts and probabilities."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class PerClass:
    """Precision, recall and F1 of each class: float64 of shape K; 0 where undefined.

    ``occurs`` (bool K) tells the classes that some picture shows or that were predicted.
    """

    precision: Array
    recall: Array
    f1: Array
    occurs: Array

    @property
    def macro_f1(self) -> float:
        """The mean F1 over classes that occur, each counting the same whatever its pictures."""
        return float(self.f1[self.occurs].mean()) if self.occurs.any() else 0.0


def confusion_matrix(labels: Array, predicted: Array, classes: int) -> Array:
    """Counts K×K, int64: rows are what the picture shows, columns what was predicted.

    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def per_class(confusion: Array) -> PerClass:
    """Precision, recall and F1 from a confusion matrix."""
    hits = np.diag(confusion).astype(float)
    predicted, present = confusion.sum(0), confusion.sum(1)
    return PerClass(
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, present),
        f1=_ratio(2 * hits, predicted + present),
        occurs=predicted + present > 0,
    )


def accuracy_interval(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of an accuracy (Wilson 1927): what luck alone could move.

    >>> [round(bound, 3) for bound in accuracy_interval(98, 100)]
    [0.93, 0.994]
    """
    if count == 0:
        return 0.0, 1.0
    share = hits / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _ratio(numerator: Array, denominator: Array) -> Array:
    return np.divide(
        numerator, denominator, out=np.zeros(len(numerator)), where=denominator.astype(bool)
    )
