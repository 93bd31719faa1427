"""Multinomial logistic regression, solved for several selections of the same pictures side by side.

Cross-validation poses one problem again and again, each time with other pictures left out. All of
them see the same features, so one matrix product serves them all.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenetv2.training.minimise import minimise

PRECISION = 1e-6
"""The steepest slope that is left, in units in which the curvature along a weight is at least 1."""


class Heads(NamedTuple):
    """B linear classifiers, float64: weights B×K×F and biases B×K."""

    weights: Tensor
    biases: Tensor

    @classmethod
    def zero(cls, count: int, classes: int, features: int) -> "Heads":
        """Where to begin without knowing better."""
        weights = torch.zeros(count, classes, features, dtype=torch.float64)
        return cls(weights, torch.zeros(count, classes, dtype=torch.float64))

    def logits(self, features: Tensor) -> Tensor:
        """Of pictures, N×F to B×N×K."""
        flat = F.linear(features, self.weights.flatten(0, 1), self.biases.flatten())
        return flat.view(len(features), *self.biases.shape).transpose(0, 1)


def solve(features: Tensor, labels: Tensor, counts: Tensor, strength: float, start: Heads) -> Heads:
    """The heads that minimise strength × summed cross-entropy + half of the squared weights.

    Args:
        features: float64 N×F.
        labels: int64 N.
        counts: what each picture counts for in each of the B problems, float64 B×N; 0 leaves it
            out.
        strength: inverse of the regularisation, as scikit-learn's ``C``.
        start: where to begin, such as the solution for a neighbouring strength.
    """
    totals = counts.sum(1, keepdim=True)
    shares = counts / totals
    # In units in which the penalty has curvature 1, a few dozen steps suffice for any strength.
    units = (strength * totals).sqrt()[..., None]
    truth = (slice(None), torch.arange(len(labels)), labels)

    def unpacked(point: Tensor) -> tuple[Tensor, Tensor]:
        parts = point.unflatten(1, (start.biases.shape[1], -1))
        return parts[..., 1:], parts[..., 0]

    def packed(weights: Tensor, biases: Tensor) -> Tensor:
        return torch.cat([biases[..., None], weights], 2).flatten(1)

    def objective(point: Tensor) -> tuple[Tensor, Tensor]:
        weights, biases = unpacked(point)
        log_probabilities = Heads(weights * units, biases).logits(features).log_softmax(2)
        loss = -(log_probabilities[truth] * shares).sum(1)
        errors = log_probabilities.exp_()
        errors[truth] -= 1
        errors *= shares[..., None]
        slopes = (errors.transpose(1, 2).flatten(0, 1) @ features).view_as(weights)
        gradient = packed(slopes * units + weights, errors.sum(1))
        return loss + weights.square().sum((1, 2)) / 2, gradient

    begin = packed(start.weights / units, start.biases)
    weights, biases = unpacked(minimise(objective, begin, PRECISION))
    return Heads(weights * units, biases)
