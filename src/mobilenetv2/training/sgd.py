"""PyTorch's SGD, which steps over all weights of a group in one compiled pass."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

from mobilenetv2.network.cpp_sgd import CppSgd, CppSgdSteps


class CompiledSGD(torch.optim.SGD):
    """The same numbers, but for rounding, and the same state.

    What the compiled step does not cover, PyTorch's own does.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        nesterov: bool,
        compiled: CppSgd,
    ) -> None:
        super().__init__(groups, lr, momentum, nesterov=nesterov, fused=True)
        self._compiled: CppSgd | None = compiled
        self._steps: list[CppSgdSteps] = []
        self._remembered = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the weights by their gradients."""
        weights, gradients = [], []
        for group in self.param_groups:
            learning = [(w, g) for w in group["params"] if (g := w.grad) is not None]
            weights.append([weight for weight, _ in learning])
            gradients.append([_laid_like(weight, gradient) for weight, gradient in learning])
        if closure is not None or not self._are_covered(weights, gradients):
            return cast(float | None, super().step(closure))
        for group, steps, of_group in zip(self.param_groups, self._steps, gradients, strict=True):
            steps.step(
                of_group, float(group["lr"]), group["momentum"], group["weight_decay"],
                group["nesterov"],
            )  # fmt: skip
        return None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what a file or another optimizer remembers.

        Raises:
            ValueError: a momentum is not of its weight's shape.
        """
        for weight, remembered in state["state"].items():
            momentum = remembered.get("momentum_buffer")
            if momentum is not None and momentum.shape != weight.shape:
                raise ValueError(
                    f"a momentum of shape {tuple(momentum.shape)} for {tuple(weight.shape)}"
                )
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        vars(self).setdefault("_compiled", None)  # a copy steps as PyTorch does
        self._steps = []

    def _are_covered(self, weights: list[list[Tensor]], gradients: list[list[Tensor]]) -> bool:
        """Whether the compiled step can do it; prepares it where weights are others now."""
        compiled, groups = self._compiled, self.param_groups
        if compiled is None or getattr(self, "found_inf", None) is not None:  # of a GradScaler
            return False
        if any(g["maximize"] or g["dampening"] or g["differentiable"] for g in groups):
            return False
        has_momenta = [bool(group["momentum"]) for group in groups]
        is_same = len(self._steps) == len(groups) and len(self.state) == self._remembered
        if not is_same or not all(map(CppSgdSteps.are_for, self._steps, weights, has_momenta)):
            if not all(map(compiled.covers, weights)):
                return False
            self._steps = [
                compiled.steps(of_group, self._momenta_of(of_group) if has else None)
                for of_group, has in zip(weights, has_momenta, strict=True)
            ]
            self._remembered = len(self.state)
        return all(map(compiled.covers, gradients))

    def _momenta_of(self, weights: list[Tensor]) -> list[Tensor]:
        """What is remembered of each weight's gradients."""
        momenta = []
        for weight in weights:
            state = self.state[weight]
            before = state.get("momentum_buffer")
            if before is None:
                before = torch.zeros_like(weight)
            state["momentum_buffer"] = _laid_like(weight, before.to(weight))
            momenta.append(state["momentum_buffer"])
        return momenta


def _laid_like(weight: Tensor, values: Tensor) -> Tensor:
    """The values, in memory as the weight is."""
    if (weight.is_contiguous() and values.is_contiguous()) or values.stride() == weight.stride():
        return values
    return torch.empty_like(weight).copy_(values)
