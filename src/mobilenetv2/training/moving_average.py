"""The exponential moving average of a network's weights (Polyak and Juditsky 1992)."""

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mobilenetv2.network.duplicate import duplicate


class MovingAverage:
    """The average of weights and running statistics, at the price of one pass over them.

    PyTorch's ``AveragedModel`` searches both networks for their tensors at every step, which takes
    several times as long as averaging them (``benchmarks/moving_average.py``).

    First weights that are random should be forgotten soon, in a short run too: the decay grows
    towards ``decay`` as that of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.

    Args:
        network: what is averaged, after each step. Its parameters and buffers must be changed in
            place, never replaced: what stood there before would be averaged on.
        decay: share of the old average that stays.
        from_first_weights: the average begins with the weights that the network starts from, and
            the decay is the same from the first step on. For pretrained weights: after T steps
            ``decay`` to the power of T of them is left. Weights between the pretrained and the
            fine-tuned ones can be better than either (Wortsman et al. 2022, "Robust fine-tuning of
            zero-shot models"). Else the first step's weights are copied.

    Attributes:
        network: the averaged one.
        updates: steps that went in.
    """

    def __init__(self, network: nn.Module, decay: float, from_first_weights: bool = False) -> None:
        self.network = duplicate(network).requires_grad_(False)
        self.updates = 0
        self._decay = decay
        self._from_first_weights = from_first_weights
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        self._weights = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Let the network's present weights in."""
        decay = self._decay
        if not self._from_first_weights:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        is_copied = self.updates == 0 and not self._from_first_weights
        averaged, current = zip(*self._weights, strict=True)
        get_ema_multi_avg_fn(0.0 if is_copied else decay)(averaged, current, self.updates)
        if self._counts:
            old, new = zip(*self._counts, strict=True)
            torch._foreach_copy_(old, new)
        self.updates += 1


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return chain(network.parameters(), network.buffers())
