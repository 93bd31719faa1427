"""The functions of `fast_ops.cpp`, called with tensors."""

import ctypes
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobilenetv2.network import native

SOURCE = Path(__file__).with_name("fast_ops.cpp")
STORED = {torch.float64: "double", torch.float32: "float", torch.bfloat16: "bf16"}
"""What activations may be stored as, and its name in C++."""


class _NormModule(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("running_mean", ctypes.c_void_p),
        ("running_var", ctypes.c_void_p),
        ("eps", ctypes.c_double),
        ("momentum", ctypes.c_double),
        ("frozen", ctypes.c_int64),
    )


class DepthwiseShape(ctypes.Structure):
    """What a depthwise convolution works on; height and width are those of its input.

    ``backwards``: of stride 2 around every second pixel from the last one on, not the first.
    """

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("images", "height", "width", "channels", "stride", "backwards")
    )


class _PointwiseShape(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("rows", "in_channels", "out_channels"))


class Kernels:
    """A compiled library, loaded; for activations of one dtype.

    Feature maps are matrices, pixels × channels, contiguous. A norm is a 5 × channels tensor,
    its gradient one of 4 × channels; see `struct Norm` and `struct NormGradient` there.
    """

    has_stem = False
    """Whether the first convolution has a kernel of its own."""

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

    def statistics(self, y: Tensor, module: nn.BatchNorm2d) -> Tensor:
        """The norm of ``y`` by its own statistics, and the module's running statistics move.

        A module in eval mode is frozen: its running statistics count, and stay.
        """
        rows, channels = y.shape
        norm = _norm_of(y)
        self._statistics(
            y.data_ptr(), rows, channels, _norm_module(module),
            norm.data_ptr(),
        )  # fmt: skip
        return norm

    def apply(self, y: Tensor, norm: Tensor, activate: bool, residual: Tensor | None) -> Tensor:
        """The normalised ``y``: through ReLU6, or plus ``residual``."""
        z = torch.empty_like(y)
        self._apply(
            y.data_ptr(), *y.shape, norm.data_ptr(), activate,
            _pointer(residual), z.data_ptr(),
        )  # fmt: skip
        return z

    def pool(self, y: Tensor, norm: Tensor, images: int) -> Tensor:
        """Normalised, through ReLU6, averaged over the pixels of each image."""
        rows, channels = y.shape
        pooled = y.new_empty(images, channels)
        self._pool(
            y.data_ptr(), images, rows // images, channels,
            norm.data_ptr(), pooled.data_ptr(),
        )  # fmt: skip
        return pooled

    def backward(self, g: Tensor, y: Tensor, norm: Tensor, activated: bool) -> Tensor:
        """The norm's gradient.

        ``g`` has a row for each pixel, or one for each image when it comes from :meth:`pool`.
        """
        gradient = _gradient_of(y)
        self._backward(
            g.data_ptr(), len(y) // len(g), y.data_ptr(), *y.shape,
            norm.data_ptr(), activated, gradient.data_ptr(),
        )  # fmt: skip
        return gradient

    def backward_apply(self, g: Tensor, y: Tensor, norm: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of ``y`` from ``g``, that of the normalised ``y`` after ReLU6."""
        gy = torch.empty_like(y)
        self._backward_apply(
            g.data_ptr(), len(y) // len(g), y.data_ptr(), *y.shape,
            norm.data_ptr(), gradient.data_ptr(), True, gy.data_ptr(),
        )  # fmt: skip
        return gy

    def pointwise(
        self, x: Tensor, x_norm: Tensor | None, weight: Tensor, module: nn.BatchNorm2d
    ) -> tuple[Tensor, Tensor]:
        """The 1×1 convolution of ``x``, normalised on the way if ``x_norm`` is given; its norm."""
        y = x.new_empty(len(x), len(weight))
        y_norm = _norm_of(y)
        self._pointwise(
            x.data_ptr(), _pointer(x_norm), weight.data_ptr(),
            ctypes.byref(_PointwiseShape(*x.shape, len(weight))), y.data_ptr(),
            _norm_module(module), y_norm.data_ptr(),
        )  # fmt: skip
        return y, y_norm

    def pointwise_backward(
        self, g: Tensor, y: Tensor, y_norm: Tensor, y_gradient: Tensor, activated: bool,
        x: Tensor, x_norm: Tensor | None, weight: Tensor, residual: Tensor | None,
        wants_x: bool, wants_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
        """Gradients of ``x`` (masked, if ``x_norm`` is given), weight, and ``x_norm``."""
        gx = torch.empty_like(x) if wants_x else None
        weight_gradient = torch.empty_like(weight) if wants_weight else None
        x_gradient = None if x_norm is None else _gradient_of(x)
        self._pointwise_backward(
            g.data_ptr(), len(y) // len(g), y.data_ptr(), y_norm.data_ptr(),
            y_gradient.data_ptr(), activated, x.data_ptr(), _pointer(x_norm),
            _pointer(x_gradient), weight.data_ptr(),
            ctypes.byref(_PointwiseShape(*x.shape, len(weight))), _pointer(residual), _pointer(gx),
            _pointer(weight_gradient),
        )  # fmt: skip
        return gx, weight_gradient, x_gradient

    def depthwise(
        self, x: Tensor, norm: Tensor | None, weight: Tensor, shape: DepthwiseShape,
        module: nn.BatchNorm2d,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The 3×3 convolution of ``x``, normalised on the way if ``norm`` is given; its norm."""
        y = x.new_empty(shape.images * math.prod(out_sides(shape)), shape.channels)
        y_norm = _norm_of(y)
        self._depthwise(
            x.data_ptr(), _pointer(norm),
            weight.data_ptr(), ctypes.byref(shape), y.data_ptr(), _norm_module(module),
            y_norm.data_ptr(),
        )  # fmt: skip
        return y, y_norm

    def depthwise_backward(
        self, g: Tensor, y: Tensor, y_norm: Tensor, y_gradient: Tensor, x: Tensor,
        x_norm: Tensor | None, weight: Tensor, shape: DepthwiseShape,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        """Gradients of ``x`` (masked, if ``x_norm`` is given), weight, and ``x_norm``."""
        gx, weight_gradient = torch.empty_like(x), torch.empty_like(weight)
        x_gradient = None if x_norm is None else _gradient_of(x)
        self._depthwise_backward(
            g.data_ptr(), y.data_ptr(), y_norm.data_ptr(),
            y_gradient.data_ptr(), x.data_ptr(), _pointer(x_norm),
            _pointer(x_gradient), weight.data_ptr(),
            ctypes.byref(shape), gx.data_ptr(), weight_gradient.data_ptr(),
        )  # fmt: skip
        return gx, weight_gradient, x_gradient


@functools.cache
def load(dtype: torch.dtype) -> Kernels:
    """The kernels for activations stored as ``dtype``; compiled when they are first wanted.

    Raises:
        BuildError: they cannot be compiled here.
        OSError: the library cannot be loaded.
        AttributeError: the library lacks a function.
    """
    return Kernels(str(native.build(SOURCE, *_flags(dtype))))


def must_compile(dtype: torch.dtype) -> bool:
    """Whether :func:`load` would compile now, which takes a while."""
    try:
        return not native.is_built(SOURCE, *_flags(dtype))
    except (native.BuildError, OSError):
        return False  # and why not, it will say


def _flags(dtype: torch.dtype) -> tuple[str, ...]:
    return (f"-DSTORED={STORED[dtype]}",)


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """What values stored as ``dtype`` are computed in."""
    return torch.float32 if dtype is torch.bfloat16 else dtype


def _norm_of(y: Tensor) -> Tensor:
    return torch.empty(5, y.shape[1], dtype=real_dtype(y.dtype))


def _gradient_of(y: Tensor) -> Tensor:
    return torch.empty(4, y.shape[1], dtype=real_dtype(y.dtype))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def out_sides(shape: DepthwiseShape) -> tuple[int, int]:
    """Height and width of what a depthwise convolution puts out."""
    return (shape.height - 1) // shape.stride + 1, (shape.width - 1) // shape.stride + 1


def _norm_module(module: nn.BatchNorm2d) -> Any:
    """The module as C++ sees it; a batch is counted, as ``nn.BatchNorm2d.forward`` does."""
    if module.training:
        assert module.num_batches_tracked is not None
        module.num_batches_tracked.add_(1)
    assert module.running_mean is not None
    assert module.running_var is not None
    return ctypes.byref(
        _NormModule(
            module.weight.data_ptr(), module.bias.data_ptr(), module.running_mean.data_ptr(),
            module.running_var.data_ptr(), module.eps, module.momentum or 0.0, not module.training,
        )
    )  # fmt: skip
