"""The two passes over all weights that end a training step, in `fast_ops.cpp`.

PyTorch goes from tensor to tensor, of which MobileNetV2 has hundreds, and for each of them wakes
all cores.
"""

import ctypes
from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor


class CppUpdates:
    """Changes many tensors in place, as if they were one.

    Args:
        sgd_step: of the compiled library.
        move_averages: of the compiled library.
        dtype: of the numbers that these change.
    """

    def __init__(
        self,
        sgd_step: Callable[..., None],
        move_averages: Callable[..., None],
        dtype: torch.dtype,
    ) -> None:
        self._sgd_step, self._move_averages = sgd_step, move_averages
        self._dtype = dtype

    def cover(self, tensors: Sequence[Tensor]) -> bool:
        """Whether they can do tensors of this kind: of the right dtype, on a CPU, without gaps."""
        return all(
            tensor.dtype is self._dtype
            and tensor.is_cpu
            and (tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last))
            for tensor in tensors
        )

    def sgd(self, weights: Sequence[Tensor], momenta: Sequence[Tensor] | None) -> "SgdPass":
        """Steps of these weights; without momentum there are no ``momenta``."""
        return SgdPass(self._sgd_step, weights, momenta)

    def average(self, averages: Sequence[Tensor], values: Sequence[Tensor]) -> "AveragePass | None":
        """Moving averages of these values; None where they are not covered."""
        made = AveragePass(self._move_averages, averages, values)
        return made if made.is_possible() and self.cover(values) else None


class SgdPass:
    """As ``torch.optim.SGD``. Momenta lie in memory as their weights do, and are not replaced."""

    def __init__(
        self,
        function: Callable[..., None],
        weights: Sequence[Tensor],
        momenta: Sequence[Tensor] | None,
    ) -> None:
        self._weights, self._has_momenta = weights, momenta is not None
        self._function, self._layout, self._sizes = function, _layout(weights), _sizes(weights)
        self._momenta, self._momentum_pointers = momenta, _pointers(momenta or ())

    def is_for(self, weights: Sequence[Tensor], has_momenta: bool) -> bool:
        """Whether it was made for these weights, and they are still laid out as they were."""
        return (
            has_momenta == self._has_momenta
            and len(weights) == len(self._weights)
            and all(map(is_, weights, self._weights))
            and _layout(weights) == self._layout
        )

    def step(
        self, gradients: Sequence[Tensor], lr: float, momentum: float, weight_decay: float,
        nesterov: bool,
    ) -> None:  # fmt: skip
        """Change the weights; their gradients lie in memory as they do."""
        self._function(
            len(self._weights), self._sizes, _pointers(self._weights), _pointers(gradients),
            self._momentum_pointers, lr, momentum, weight_decay, nesterov,
        )  # fmt: skip
        torch.autograd.graph.increment_version(self._weights)


class AveragePass:
    """Moves averages towards their values."""

    def __init__(
        self, function: Callable[..., None], averages: Sequence[Tensor], values: Sequence[Tensor]
    ) -> None:
        self._function, self._averages, self._values = function, averages, values
        self._layout, self._sizes = _layout(averages), _sizes(averages)

    def is_possible(self) -> bool:
        """Whether the values lie in memory as their averages do, and both still as they did."""
        return _layout(self._averages) == self._layout == _layout(self._values)

    def move(self, share: float) -> None:
        """Let this share of the values in."""
        self._function(
            len(self._values), self._sizes, _pointers(self._averages), _pointers(self._values),
            share,
        )  # fmt: skip


def _layout(tensors: Sequence[Tensor]) -> list[Any]:
    """Dtype, device, shape and strides: everything but the address."""
    return [(t.dtype, t.is_cpu, t.shape, t.stride()) for t in tensors]


def _sizes(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_int64 * len(tensors))(*[tensor.numel() for tensor in tensors])


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
