"""The functions of `fast_ops.cpp`, called with tensors."""

import ctypes
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobilenetv2.network import cpp_structures as structures
from mobilenetv2.network import native
from mobilenetv2.network.kernels import STORED, Chain, Kernels, MapShape, real_dtype

SOURCE = Path(__file__).with_name("fast_ops.cpp")


class CppKernels(Kernels):
    """A compiled library, loaded; see `struct Norm` and `struct NormGradient` there."""

    has_stem = True
    has_chains = True

    def __init__(self, library: str, dtype: torch.dtype) -> None:
        self._dtype, self._real = dtype, real_dtype(dtype)
        loaded = ctypes.CDLL(library)
        pointer, integer, count = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64

        def function(name: str, *arguments: Any) -> Callable[..., None]:
            found = getattr(loaded, name)
            found.argtypes, found.restype = arguments, None
            return found  # type: ignore[no-any-return]

        self._statistics = function("norm_statistics", pointer, count, count, *(pointer,) * 2)
        self._apply = function(
            "norm_apply", pointer, count, count, pointer, integer, pointer, pointer
        )
        self._pool = function("norm_pool", pointer, count, count, count, pointer, pointer)
        self._backward = function(
            "norm_backward", pointer, count, pointer, count, count, pointer, integer, pointer
        )
        self._backward_apply = function(
            "norm_backward_apply", pointer, count, pointer, count, count, pointer, pointer,
            integer, pointer,
        )  # fmt: skip
        self._pointwise = function("pointwise_forward", *(pointer,) * 7)
        self._pointwise_backward = function(
            "pointwise_backward", pointer, count, *(pointer,) * 3, integer, *(pointer,) * 8
        )
        self._depthwise = function("depthwise_forward", *(pointer,) * 7)
        self._depthwise_backward = function("depthwise_backward", *(pointer,) * 11)
        self._stem = function(
            "stem_forward", pointer, pointer, pointer, count, pointer, pointer, pointer
        )
        self._stem_backward = function("stem_backward", *(pointer,) * 6, count, pointer)
        self._chain_counts = function("chain_counts", pointer, pointer)
        self._chain = function("chain_forward", *(pointer,) * 5)
        self._chain_backward = function("chain_backward", *(pointer,) * 8)

    def statistics(self, y: Tensor, module: nn.BatchNorm2d) -> Tensor:
        rows, channels = y.shape
        norm = _norm_of(y)
        self._statistics(
            y.data_ptr(), rows, channels, structures.norm_module(module),
            norm.data_ptr(),
        )  # fmt: skip
        return norm

    def apply(self, y: Tensor, norm: Tensor, activate: bool, residual: Tensor | None) -> Tensor:
        z = torch.empty_like(y)
        self._apply(
            y.data_ptr(), *y.shape, norm.data_ptr(), activate,
            _pointer(residual), z.data_ptr(),
        )  # fmt: skip
        return z

    def pool(self, y: Tensor, norm: Tensor, images: int) -> Tensor:
        rows, channels = y.shape
        pooled = y.new_empty(images, channels)
        self._pool(
            y.data_ptr(), images, rows // images, channels,
            norm.data_ptr(), pooled.data_ptr(),
        )  # fmt: skip
        return pooled

    def backward(self, g: Tensor, y: Tensor, norm: Tensor, activated: bool) -> Tensor:
        gradient = _gradient_of(y)
        self._backward(
            g.data_ptr(), len(y) // len(g), y.data_ptr(), *y.shape,
            norm.data_ptr(), activated, gradient.data_ptr(),
        )  # fmt: skip
        return gradient

    def backward_apply(self, g: Tensor, y: Tensor, norm: Tensor, gradient: Tensor) -> Tensor:
        gy = torch.empty_like(y)
        self._backward_apply(
            g.data_ptr(), len(y) // len(g), y.data_ptr(), *y.shape,
            norm.data_ptr(), gradient.data_ptr(), True, gy.data_ptr(),
        )  # fmt: skip
        return gy

    def pointwise(
        self, x: Tensor, x_norm: Tensor | None, weight: Tensor, module: nn.BatchNorm2d
    ) -> tuple[Tensor, Tensor]:
        y = x.new_empty(x.shape[0], weight.shape[0])
        y_norm = _norm_of(y)
        self._pointwise(
            x.data_ptr(), _pointer(x_norm), weight.data_ptr(),
            structures.pointwise_shape(x, weight), y.data_ptr(),
            structures.norm_module(module), y_norm.data_ptr(),
        )  # fmt: skip
        return y, y_norm

    def pointwise_backward(
        self, g: Tensor, y: Tensor, y_norm: Tensor, y_gradient: Tensor, activated: bool,
        x: Tensor, x_norm: Tensor | None, weight: Tensor, residual: Tensor | None,
        wants_x: bool, wants_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
        gx = torch.empty_like(x) if wants_x else None
        weight_gradient = torch.empty_like(weight) if wants_weight else None
        x_gradient = None if x_norm is None else _gradient_of(x)
        self._pointwise_backward(
            g.data_ptr(), len(y) // len(g), y.data_ptr(), y_norm.data_ptr(),
            y_gradient.data_ptr(), activated, x.data_ptr(), _pointer(x_norm),
            _pointer(x_gradient), weight.data_ptr(),
            structures.pointwise_shape(x, weight), _pointer(residual),
            _pointer(gx), _pointer(weight_gradient),
        )  # fmt: skip
        return gx, weight_gradient, x_gradient

    def depthwise(
        self, x: Tensor, norm: Tensor | None, weight: Tensor, shape: MapShape,
        module: nn.BatchNorm2d,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        y = x.new_empty(shape.out_rows, shape.channels)
        y_norm = _norm_of(y)
        self._depthwise(
            x.data_ptr(), _pointer(norm), weight.data_ptr(), structures.map_shape(shape),
            y.data_ptr(), structures.norm_module(module), y_norm.data_ptr(),
        )  # fmt: skip
        return y, y_norm

    def depthwise_backward(
        self, g: Tensor, y: Tensor, y_norm: Tensor, y_gradient: Tensor, x: Tensor,
        x_norm: Tensor | None, weight: Tensor, shape: MapShape,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        gx, weight_gradient = torch.empty_like(x), torch.empty_like(weight)
        x_gradient = None if x_norm is None else _gradient_of(x)
        self._depthwise_backward(
            g.data_ptr(), y.data_ptr(), y_norm.data_ptr(),
            y_gradient.data_ptr(), x.data_ptr(), _pointer(x_norm),
            _pointer(x_gradient), weight.data_ptr(),
            structures.map_shape(shape), gx.data_ptr(), weight_gradient.data_ptr(),
        )  # fmt: skip
        return gx, weight_gradient, x_gradient

    def stem(
        self, x: Tensor, weight: Tensor, shape: MapShape, module: nn.BatchNorm2d
    ) -> tuple[Tensor, Tensor]:
        out = weight.shape[0]
        x, taps = x.to(self._real), _by_tap(weight)
        y = x.new_empty(shape.out_rows, out, dtype=self._dtype)
        norm = _norm_of(y)
        self._stem(
            x.data_ptr(), taps.data_ptr(), structures.map_shape(shape), out, y.data_ptr(),
            structures.norm_module(module), norm.data_ptr(),
        )  # fmt: skip
        return y, norm

    def stem_backward(
        self, g: Tensor, y: Tensor, norm: Tensor, gradient: Tensor, x: Tensor, weight: Tensor,
        shape: MapShape,
    ) -> Tensor:  # fmt: skip
        x = x.to(self._real)
        by_tap = weight.new_empty(3, 3, shape.channels, weight.shape[0])
        self._stem_backward(
            g.data_ptr(), y.data_ptr(), norm.data_ptr(), gradient.data_ptr(), x.data_ptr(),
            structures.map_shape(shape), weight.shape[0], by_tap.data_ptr(),
        )  # fmt: skip
        return by_tap.permute(3, 2, 0, 1)

    def chain(self, chain: Chain, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if chain.stem:
            x = x.to(self._real)
        kernels = [part.kernel for part in chain.parts]
        if chain.stem:
            kernels[0] = _by_tap(kernels[0])
        structure = structures.chain(chain, kernels, with_norms=True)
        outputs, norms, _, _ = self._counts_of(structure)
        rows = chain.images if chain.head else chain.images * chain.height * chain.width
        kept = x.new_empty(outputs, dtype=self._dtype), x.new_empty(norms, dtype=self._real)
        out = x.new_empty(rows, kernels[-1].shape[0], dtype=self._dtype)
        self._chain(structure, x.data_ptr(), kept[0].data_ptr(), kept[1].data_ptr(), out.data_ptr())
        return out, kept

    def chain_backward(
        self, chain: Chain, g: Tensor, x: Tensor, kept: Sequence[Tensor], kernels: Sequence[Tensor],
        wants_x: bool, wants: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
        if chain.stem:
            x = x.to(self._real)
        structure = structures.chain(chain, kernels, with_norms=False)
        _, _, numbers, workspace = self._counts_of(structure)
        flat = _uninitialised(g, numbers)
        gx = torch.empty_like(x) if wants_x else None
        scratch = g.new_empty(workspace)
        self._chain_backward(
            structure, g.data_ptr(), x.data_ptr(), kept[0].data_ptr(), kept[1].data_ptr(),
            scratch.data_ptr(), flat.data_ptr(), _pointer(gx),
        )  # fmt: skip
        # One allocation and views of it: an allocation for each gradient would take longer.
        counts = [
            count
            for kernel in kernels
            for count in (kernel.numel(), 2 * len(kernel), len(kernel), len(kernel))
        ]
        pieces = flat.split(counts)
        gradients: list[Tensor | None] = []
        for place, (kernel, is_wanted) in enumerate(zip(kernels, wants, strict=True)):
            of_kernel, _, of_weight, of_bias = pieces[4 * place : 4 * place + 4]
            if chain.stem and place == 0:
                out, channels, _, _ = kernel.shape
                of_kernel = of_kernel.view(3, 3, channels, out).permute(3, 2, 0, 1)
            else:
                of_kernel = of_kernel.view(kernel.shape)
            gradients += [of_kernel if is_wanted else None, of_weight, of_bias]
        return gx, gradients

    def _counts_of(self, chain: Any) -> Iterable[int]:
        """See ``chain_counts`` there."""
        counts = (ctypes.c_int64 * 4)()
        self._chain_counts(chain, counts)
        return counts


@functools.cache
def load(dtype: torch.dtype) -> CppKernels:
    """The kernels for activations stored as ``dtype``; compiled when they are first wanted.

    Raises:
        BuildError: they cannot be compiled here.
        OSError: the library cannot be loaded.
        AttributeError: the library lacks a function.
    """
    return CppKernels(str(native.build(SOURCE, *_flags(dtype))), dtype)


def must_compile(dtype: torch.dtype) -> bool:
    """Whether :func:`load` would compile now, which takes a while."""
    try:
        return not native.is_built(SOURCE, *_flags(dtype))
    except (native.BuildError, OSError):
        return False  # and why not, it will say


def _flags(dtype: torch.dtype) -> tuple[str, ...]:
    return (f"-DSTORED={STORED[dtype]}",)


def _uninitialised(like: Tensor, *shape: int) -> Tensor:
    """A tensor with nothing in it, of what values stored as ``like`` are computed in."""
    return like.new_empty(shape, dtype=real_dtype(like.dtype))


def _norm_of(y: Tensor) -> Tensor:
    return _uninitialised(y, 5, y.shape[1])


def _gradient_of(y: Tensor) -> Tensor:
    return _uninitialised(y, 4, y.shape[1])


def _by_tap(weight: Tensor) -> Tensor:
    """A stem's kernel as 3×3 × channels × outputs."""
    return weight.detach().permute(2, 3, 1, 0).contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
