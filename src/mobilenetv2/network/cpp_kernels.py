"""The functions of `fast_ops.cpp`, called with tensors."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mobilenetv2.network import cpp_structures as structures
from mobilenetv2.network import native
from mobilenetv2.network.cpp_chain import ChainFunctions, CppChain, by_tap
from mobilenetv2.network.cpp_sgd import CppSgd
from mobilenetv2.network.kernels import Chain, ChainCall, Kernels, MapShape, real_dtype, stored_as

SOURCE = Path(__file__).with_name("fast_ops.cpp")


class CppKernels(Kernels):
    """A compiled library, loaded; see `struct Norm` and `struct NormGradient` there.

    Attributes:
        sgd: the step over all weights, which it can do too.
    """

    has_chains = True

    def __init__(self, library: str, dtype: torch.dtype) -> None:
        self._dtype, self._real = dtype, real_dtype(dtype)
        self.last_calls = WeakKeyDictionary()
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
        self._chain_functions = ChainFunctions(
            function("chain_counts", pointer, pointer),
            function("chain_forward", *(pointer,) * 6),
            function("chain_backward", *(pointer,) * 8),
        )

        real = ctypes.c_double
        sgd = function("sgd_step", count, *(pointer,) * 4, *(real,) * 3, integer)
        self.sgd = CppSgd(sgd, self._real)

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
        x, taps = x.to(self._real), by_tap(weight)
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
        gradient_by_tap = weight.new_empty(3, 3, shape.channels, weight.shape[0])
        self._stem_backward(
            g.data_ptr(), y.data_ptr(), norm.data_ptr(), gradient.data_ptr(), x.data_ptr(),
            structures.map_shape(shape), weight.shape[0], gradient_by_tap.data_ptr(),
        )  # fmt: skip
        return gradient_by_tap.permute(3, 2, 0, 1)

    def chain(self, chain: Chain) -> ChainCall:
        return CppChain(self._chain_functions, chain, self._dtype)


@functools.cache
def load(dtype: torch.dtype) -> CppKernels:
    """The kernels for activations stored as ``dtype``; compiled when they are first wanted.

    Raises:
        BuildError: they cannot be compiled here.
        OSError: the library cannot be loaded.
        AttributeError: the library lacks a function.
    """
    return CppKernels(str(native.build(SOURCE, stored_as(dtype))), dtype)


def must_compile(dtype: torch.dtype) -> bool:
    """Whether :func:`load` would compile now, which takes a while."""
    try:
        return not native.is_built(SOURCE, stored_as(dtype))
    except (native.BuildError, OSError):
        return False  # and why not, it will say


def _uninitialised(like: Tensor, *shape: int) -> Tensor:
    """A tensor with nothing in it, of what values stored as ``like`` are computed in."""
    return like.new_empty(shape, dtype=real_dtype(like.dtype))


def _norm_of(y: Tensor) -> Tensor:
    return _uninitialised(y, 5, y.shape[1])


def _gradient_of(y: Tensor) -> Tensor:
    return _uninitialised(y, 4, y.shape[1])


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
