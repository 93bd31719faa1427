"""RMSProp as the paper's framework computes it."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

DECAY = 0.9
"""Share of the old mean square that a step keeps (paper, section 6.1)."""


class RMSprop(torch.optim.Optimizer):
    """RMSProp in the form of TensorFlow 1, which trained the paper's networks.

    ::

        mean square ← 0.9 · mean square + 0.1 · gradient²
        velocity    ← momentum · velocity + lr · gradient / √(mean square + epsilon)
        weight      ← weight - velocity

    PyTorch's differs in three points: its mean square starts at 0 and not at 1, its epsilon is
    added outside the root, and its momentum gathers gradients over the root before they are
    multiplied by the learning rate. And its default epsilon is 1e-8, with which the paper's
    learning rate of 0.045 does not learn; in this form it learns badly.

    Args:
        params: as for every optimizer of PyTorch, with real and dense gradients.
        lr: learning rate.
        momentum: share of the velocity that a step keeps.
        epsilon: 1 in the code that its authors published (TF-Slim, ``opt_epsilon``): gradients far
            below 1 keep their length, and only longer ones are shortened.
        weight_decay: times the weight, added to the gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        epsilon: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {
            "lr": lr, "momentum": momentum, "epsilon": epsilon, "weight_decay": weight_decay
        }  # fmt: skip
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients; a loss is never computed anew.

        All weights of a group go in one pass, by the functions that PyTorch's own optimizers use:
        one by one, the calls would take longer than the arithmetic.
        """
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients: list[Tensor] = [weight.grad for weight in weights]
            states = [self._state_of(weight) for weight in weights]
            mean_squares = [state["mean_square"] for state in states]
            velocities = [state["velocity"] for state in states]

            if group["weight_decay"]:
                decay = group["weight_decay"]
                gradients = list(torch._foreach_add(gradients, weights, alpha=decay))
            torch._foreach_mul_(mean_squares, DECAY)
            torch._foreach_addcmul_(mean_squares, gradients, gradients, 1 - DECAY)
            roots = torch._foreach_add(mean_squares, group["epsilon"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_addcdiv_(velocities, gradients, roots, group["lr"])
            torch._foreach_sub_(weights, velocities)

    def _state_of(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["mean_square"] = torch.ones_like(weight, memory_format=torch.preserve_format)
            state["velocity"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state
