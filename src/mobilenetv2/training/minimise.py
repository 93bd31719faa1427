"""L-BFGS on several smooth convex functions side by side.

PyTorch's own takes one function at a time, and building one of its optimizers imports the compiler,
which takes longer than everything that is minimised here.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

MOST_STEPS = 200
REMEMBERED = 10  # steps, which tell the curvature
ENOUGH = 1e-4  # of the descent that the slope promises: then a step is taken (Armijo's rule)
ROUNDING = 1e-13  # of the value; less descent cannot be seen


class Step(NamedTuple):
    """A step and what it did to the gradient, B×D, and 1 over the product of both, B×1."""

    moved: Tensor
    changed: Tensor
    inverse: Tensor


def minimise(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, precision: float
) -> Tensor:
    """Where each of B functions of D numbers is lowest (Liu and Nocedal 1989).

    Args:
        objective: points B×D to values B and gradients B×D.
        start: float64 B×D.
        precision: the steepest slope along any axis that may be left.

    >>> def distance(point: Tensor) -> tuple[Tensor, Tensor]:
    ...     away = point - torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    ...     return away.square().sum(1), 2 * away
    >>> minimise(distance, torch.zeros(2, 2, dtype=torch.float64), 1e-9).round(decimals=6)
    tensor([[1., 2.],
            [3., 4.]], dtype=torch.float64)
    """
    point, (value, gradient) = start, objective(start)
    steps: deque[Step] = deque(maxlen=REMEMBERED)
    for _ in range(MOST_STEPS):
        if gradient.abs().max() <= precision:
            break
        direction = -_over_curvature(gradient, steps)
        promised = (gradient * direction).sum(1)
        length = torch.ones_like(promised)
        while True:
            reached = point + length[:, None] * direction
            new_value, new_gradient = objective(reached)
            missing = new_value - value - ENOUGH * length * promised
            too_far = missing > ROUNDING * value.abs()
            if not too_far.any():
                break
            length = torch.where(too_far, length / 2, length)
        moved, changed = reached - point, new_gradient - gradient
        product = (moved * changed).sum(1, keepdim=True)
        steps.append(Step(moved, changed, torch.where(product > 0, 1 / product, 0)))
        point, value, gradient = reached, new_value, new_gradient
    return point


def _over_curvature(gradient: Tensor, steps: Iterable[Step]) -> Tensor:
    """The gradient times the inverse Hessian that the steps suggest: the two-loop recursion."""
    known = [*steps]
    if not known:  # the first step should not lead far
        return gradient / gradient.abs().sum(1, keepdim=True).clamp(min=1)
    shares = []
    for moved, changed, inverse in reversed(known):
        share = inverse * (moved * gradient).sum(1, keepdim=True)
        gradient = gradient - share * changed
        shares.append(share)
    _, changed, inverse = known[-1]
    curvature = inverse * changed.square().sum(1, keepdim=True)
    gradient = gradient / torch.where(curvature > 0, curvature, 1)  # 0 where nothing moves any more
    for (moved, changed, inverse), share in zip(known, reversed(shares), strict=True):
        gradient = gradient + moved * (share - inverse * (changed * gradient).sum(1, keepdim=True))
    return gradient
