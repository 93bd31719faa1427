"""The functions of `fast_ops.cpp`, called with tensors."""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobilenetv2.network import cpp_structures as structures
from mobilenetv2.network import native
from mobilenetv2.network.kernels import STORED, Block, Kernels, MapShape, real_dtype

SOURCE = Path(__file__).with_name("fast_ops.cpp")


class CppKernels(Kernels):
    """A compiled library, loaded; see `struct Norm` and `struct NormGradient` there."""

    def __init__(self, library: str) -> None:
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
        self._block = function("block_forward", *(pointer,) * 6)
        self._block_backward = function("block_backward", *(pointer,) * 12)

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

    def block(self, block: Block, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        shape, parts = block.shape, block.parts
        hidden, out, out_rows = shape.channels, parts[-1].kernel.shape[0], shape.out_rows
        expands = len(parts) == 3
        outputs = x.new_empty(expands * x.shape[0] * hidden + out_rows * (hidden + out))
        norms = _uninitialised(x, 5 * (expands * hidden + hidden + out))
        z = x.new_empty(out_rows, out)
        self._block(
            structures.inverted_residual(shape, x, parts), x.data_ptr(), outputs.data_ptr(),
            norms.data_ptr(), x.data_ptr() if block.has_shortcut else None, z.data_ptr(),
        )  # fmt: skip
        return z, (outputs, norms)

    def block_backward(
        self, g: Tensor, x: Tensor, kept: Sequence[Tensor], kernels: Sequence[Tensor],
        shape: MapShape, shortcut: Tensor | None, wants_x: bool, wants: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
        outputs, norms = kept
        hidden, out, rows, out_rows = shape.channels, g.shape[1], x.shape[0], shape.out_rows
        expands = len(kernels) == 3
        scratch = x.new_empty((out_rows + expands * rows) * hidden)
        gx = torch.empty_like(x) if wants_x or not expands else None
        wants = [*wants[:-2], True, wants[-1]]  # the depthwise kernel's is always made
        # All gradients of parameters are views of one allocation: one each would take longer.
        channels = [hidden] * (1 + expands) + [out]
        counts = [count for c in channels for count in (2 * c, c, c)]
        counts += [wanted * kernel.numel() for kernel, wanted in zip(kernels, wants, strict=True)]
        pieces = _uninitialised(x, sum(counts)).split(counts)
        of_kernels = [
            piece.view(kernel.shape) if wanted else None
            for piece, kernel, wanted in zip(pieces[-len(kernels) :], kernels, wants, strict=True)
        ]
        g_expansion, g_depthwise, g_projection = [None, *of_kernels][-3:]
        self._block_backward(
            structures.inverted_residual_for_backward(shape, x, kernels), g.data_ptr(),
            x.data_ptr(), outputs.data_ptr(), norms.data_ptr(),
            _pointer(shortcut if expands else None), scratch.data_ptr(), pieces[0].data_ptr(),
            _pointer(g_expansion), _pointer(g_depthwise), _pointer(g_projection), _pointer(gx),
        )  # fmt: skip
        if shortcut is not None and gx is not None and not expands:
            gx += shortcut
        gradients: list[Tensor | None] = []
        for place, g_kernel in enumerate(of_kernels):
            gradients += [g_kernel, *pieces[3 * place + 1 : 3 * place + 3]]
        return gx, gradients


@functools.cache
def load(dtype: torch.dtype) -> CppKernels:
    """The kernels for activations stored as ``dtype``; compiled when they are first wanted.

    Raises:
        BuildError: they cannot be compiled here.
        OSError: the library cannot be loaded.
        AttributeError: the library lacks a function.
    """
    return CppKernels(str(native.build(SOURCE, *_flags(dtype))))


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


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
