"""Training that leaves the numbers: how it is noticed in weights, and how it is told."""

from collections.abc import Sequence
from itertools import chain

from torch import nn

from mobilenetv2.errors import NonFiniteLoss


def require_finite(networks: Sequence[nn.Module], step: int, epoch: int, lr: float) -> None:
    """Make sure that weights and statistics are numbers, before they are saved.

    The last step's loss was known before its update: it does not show what that has done.

    Raises:
        NonFiniteLoss: they are not.
    """
    for name, tensor in chain(*(network.state_dict().items() for network in networks)):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            value = float(tensor[~tensor.isfinite()][0])
            raise non_finite(f"a number of {name}", value, step, epoch, lr)


def non_finite(what: str, value: float, step: int, epoch: int, lr: float) -> NonFiniteLoss:
    """The error for a loss, or a weight, that left the numbers."""
    return NonFiniteLoss(
        f"{what} is {value} at step {step} (epoch {epoch}, learning rate {lr:.3g}). Try a "
        "lower --lr, a longer --warmup-epochs or --clip-norm 1; the run folder keeps the last good "
        "checkpoint"
    )
