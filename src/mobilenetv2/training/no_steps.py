"""What stands for optimizer and schedule where a head is solved in one go."""

from collections.abc import Mapping
from typing import Any


class NoSteps:
    """An optimizer and a schedule for nothing: no step changes anything.

    Building one of PyTorch's optimizers imports its compiler, which takes longer than the solving.
    """

    def __init__(self, lr: float) -> None:
        self._lr = lr

    def get_last_lr(self) -> list[float]:
        """The learning rate, which nothing uses."""
        return [self._lr]

    def zero_grad(self) -> None:
        """There are no gradients."""

    def step(self) -> None:
        """There is nothing to change."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore; a checkpoint from before this class may bring something."""
