"""PyTorch's SGD, whose step is one compiled pass over all weights."""

from collections.abc import Callable, Iterable
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor

from mobilenetv2.network.cpp_updates import CppUpdates, SgdPass


class CompiledSGD(torch.optim.SGD):
    """The same numbers, but for rounding, and the same state.

    What the pass does not cover, PyTorch's own step does.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        nesterov: bool,
        updates: CppUpdates,
    ) -> None:
        super().__init__(groups, lr, momentum, nesterov=nesterov, fused=True)
        self._updates = updates
        self._passes: list[SgdPass] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the weights by their gradients."""
        weights, gradients = [], []
        for group in self.param_groups:
            learning = [(w, g) for w in group["params"] if (g := w.grad) is not None]
            weights.append([weight for weight, _ in learning])
            gradients.append([_laid_like(weight, gradient) for weight, gradient in learning])
        if closure is not None or not self._can_pass(weights, gradients):
            return cast(float | None, super().step(closure))
        for group, one_pass, of_group in zip(
            self.param_groups, self._passes, gradients, strict=True
        ):
            one_pass.step(
                of_group, float(group["lr"]), group["momentum"], group["weight_decay"],
                group["nesterov"],
            )  # fmt: skip
        return None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Other momenta come, from a file."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._passes = []

    def _can_pass(self, weights: list[list[Tensor]], gradients: list[list[Tensor]]) -> bool:
        """Whether there is a pass for each group; makes them if these are other weights."""
        is_same = len(weights) == len(self._passes) and all(
            len(one) == len(other.weights) and all(map(is_, one, other.weights))
            for one, other in zip(weights, self._passes, strict=True)
        )
        if not is_same:
            if not all(map(self._updates.cover, weights)):
                return False
            self._passes = [
                self._updates.sgd(of_group, self._momenta_of(of_group) if group["momentum"] else [])
                for group, of_group in zip(self.param_groups, weights, strict=True)
            ]
        return all(map(self._updates.cover, gradients))

    def _momenta_of(self, weights: list[Tensor]) -> list[Tensor]:
        """What is remembered of each weight's gradients."""
        momenta = []
        for weight in weights:
            state = self.state[weight]
            before = state.get("momentum_buffer")
            if before is None:
                before = torch.zeros_like(weight)
            state["momentum_buffer"] = _laid_like(weight, before)
            momenta.append(state["momentum_buffer"])
        return momenta


def _laid_like(weight: Tensor, values: Tensor) -> Tensor:
    """The values, in memory as the weight is."""
    if (weight.is_contiguous() and values.is_contiguous()) or values.stride() == weight.stride():
        return values
    return torch.empty_like(weight).copy_(values)
