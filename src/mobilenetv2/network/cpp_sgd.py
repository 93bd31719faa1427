"""The step of gradient descent over all weights at once, in `fast_ops.cpp`.

PyTorch goes from tensor to tensor, of which MobileNetV2 has hundreds, and for each of them wakes
all cores.
"""

import ctypes
from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor


class CppSgd:
    """Prepares steps.

    Args:
        function: of the compiled library.
        dtype: of the weights that it changes.
    """

    def __init__(self, function: Callable[..., None], dtype: torch.dtype) -> None:
        self._function, self._dtype = function, dtype

    def covers(self, tensors: Sequence[Tensor]) -> bool:
        """Whether it can do tensors of this kind: of the right dtype, on a CPU, without gaps."""
        return all(
            tensor.dtype is self._dtype
            and tensor.is_cpu
            and (tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last))
            for tensor in tensors
        )

    def steps(self, weights: Sequence[Tensor], momenta: Sequence[Tensor] | None) -> "CppSgdSteps":
        """Steps of these weights; without momentum there are no ``momenta``."""
        return CppSgdSteps(self._function, weights, momenta)


class CppSgdSteps:
    """As ``torch.optim.SGD``. Momenta lie in memory as their weights do, and are not replaced."""

    def __init__(
        self,
        function: Callable[..., None],
        weights: Sequence[Tensor],
        momenta: Sequence[Tensor] | None,
    ) -> None:
        self._weights, self._has_momenta = weights, momenta is not None
        self._function, self._layout = function, _layout(weights)
        self._sizes = (ctypes.c_int64 * len(weights))(*[weight.numel() for weight in weights])
        self._momenta, self._momentum_pointers = momenta, _pointers(momenta or ())

    def are_for(self, weights: Sequence[Tensor], has_momenta: bool) -> bool:
        """Whether they were made for these weights, and these still lie in memory as they did."""
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


def _layout(tensors: Sequence[Tensor]) -> list[Any]:
    """Dtype, device, shape and strides: everything but the address."""
    return [(t.dtype, t.is_cpu, t.shape, t.stride()) for t in tensors]


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
