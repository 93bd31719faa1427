"""Many parts of a network as one call into `fast_ops.cpp`."""

import ctypes
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mobilenetv2.network.cpp_structures import ChainStructure
from mobilenetv2.network.kernels import Chain, ChainCall, real_dtype


class ChainFunctions(NamedTuple):
    """Of the compiled library."""

    counts: Callable[..., None]
    forward: Callable[..., None]
    backward: Callable[..., None]


class CppChain(ChainCall):
    """While Python works the other cores wait, so all that can be done once is done here once."""

    def __init__(self, functions: ChainFunctions, chain: Chain, dtype: torch.dtype) -> None:
        self.chain = chain
        parts = chain.parts
        self.parameters = [parameter for part in parts for parameter in part.parameters]
        self._functions = functions
        self._stored, self._real = dtype, real_dtype(dtype)
        kernels = self.parameters[::3]
        self._places = [kernel.data_ptr() for kernel in kernels]
        learn = [kernel.requires_grad for kernel in kernels]
        self._structure = ChainStructure(chain, kernels, learn)
        counts = (ctypes.c_int64 * 4)()
        functions.counts(self._structure.pointer, counts)
        self._outputs, self._norms, self._gradients, self._workspace = counts
        rows = chain.images if chain.head else chain.images * chain.height * chain.width
        self._out = rows, len(parts[-1].kernel)
        self._pieces = [
            count
            for kernel, *_ in (part.parameters for part in parts)
            for count in (kernel.numel(), 2 * len(kernel), len(kernel), len(kernel))
        ]

    def forward(self, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        taps = None
        if self.chain.stem:
            x, taps = x.to(self._real), by_tap(self.parameters[0])
        outputs = x.new_empty(self._outputs, dtype=self._stored)
        norms = x.new_empty(self._norms, dtype=self._real)
        out = x.new_empty(self._out, dtype=self._stored)
        self._functions.forward(
            self._structure.pointer, x.data_ptr(), None if taps is None else taps.data_ptr(),
            outputs.data_ptr(), norms.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        return out, (outputs, norms)

    def backward(
        self, g: Tensor, x: Tensor, kept: Sequence[Tensor], kernels: Sequence[Tensor],
        wants_x: bool, wants: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
        if self.chain.stem:
            x = x.to(self._real)
        structure = self._structure
        if [kernel.data_ptr() for kernel in kernels] != self._places:  # they were laid elsewhere
            structure = ChainStructure(self.chain, kernels, wants)
        outputs, norms = kept
        flat = g.new_empty(self._gradients, dtype=self._real)
        workspace = g.new_empty(self._workspace)
        gx = torch.empty_like(x) if wants_x else None
        self._functions.backward(
            structure.pointer, g.data_ptr(), x.data_ptr(), outputs.data_ptr(),
            norms.data_ptr(), workspace.data_ptr(), flat.data_ptr(),
            None if gx is None else gx.data_ptr(),
        )  # fmt: skip
        return gx, self._gradients_in(flat, kernels, wants)

    def _gradients_in(
        self, flat: Tensor, kernels: Sequence[Tensor], wants: Sequence[bool]
    ) -> list[Tensor | None]:
        """Views of one allocation: an allocation for each would take longer."""
        pieces = iter(flat.split(self._pieces))
        gradients: list[Tensor | None] = []
        for kernel, is_wanted in zip(kernels, wants, strict=True):
            of_kernel, _, of_weight, of_bias = (next(pieces) for _ in range(4))
            if self.chain.stem and not gradients:
                out, channels, _, _ = kernel.shape
                of_kernel = of_kernel.view(3, 3, channels, out).permute(3, 2, 0, 1)
            else:
                of_kernel = of_kernel.view(kernel.shape)
            gradients += [of_kernel if is_wanted else None, of_weight, of_bias]
        return gradients


def by_tap(weight: Tensor) -> Tensor:
    """A stem's kernel as 3×3 × channels × outputs."""
    return weight.detach().permute(2, 3, 1, 0).contiguous()
