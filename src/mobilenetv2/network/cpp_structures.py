"""The structures of `fast_ops.cpp`, filled from modules and tensors, each as a pointer to pass on.

They hold addresses: the tensors have to live until the call is over.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mobilenetv2.network.kernels import MapShape, Part


class _NormModule(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("running_mean", ctypes.c_void_p),
        ("running_var", ctypes.c_void_p),
        ("batches", ctypes.c_void_p),
        ("eps", ctypes.c_double),
        ("momentum", ctypes.c_double),
        ("frozen", ctypes.c_int64),
    )


class _MapShape(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in MapShape._fields)


_LAYER_FIELDS = (("kernel", ctypes.c_void_p), *_NormModule._fields_)


class _InvertedResidual(ctypes.Structure):
    _fields_ = (
        *_MapShape._fields_,
        *((name, ctypes.c_int64) for name in ("in_channels", "out_channels", "expands")),
        *(
            (f"{layer}_{name}", kind)
            for layer in ("expansion", "depthwise", "projection")
            for name, kind in _LAYER_FIELDS
        ),
    )


class _PointwiseShape(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("rows", "in_channels", "out_channels"))


def map_shape(shape: MapShape) -> Any:
    """What a depthwise convolution works on."""
    return ctypes.byref(_MapShape(*shape))


def pointwise_shape(x: Tensor, weight: Tensor) -> Any:
    """What a 1×1 convolution works on, rows × channels and their kernel."""
    return ctypes.byref(_PointwiseShape(*x.shape, weight.shape[0]))


def norm_module(module: nn.BatchNorm2d) -> Any:
    """A norm, whose batch C++ counts too, as ``nn.BatchNorm2d.forward`` does."""
    return ctypes.byref(_NormModule(*_norm_fields(module, module.weight, module.bias)))


def inverted_residual(shape: MapShape, x: Tensor, parts: Sequence[Part]) -> Any:
    """A block for the forward pass; ``shape`` is that of its depthwise convolution."""
    layers = [
        (kernel.data_ptr(), *_norm_fields(norm, weight, bias))
        for _, norm, kernel, weight, bias in parts
    ]
    return _inverted_residual(shape, x, parts[-1].kernel, layers)


def inverted_residual_for_backward(shape: MapShape, x: Tensor, kernels: Sequence[Tensor]) -> Any:
    """The same for the backward pass, which asks for the kernels alone."""
    layers = [(kernel.data_ptr(), *_NO_NORM) for kernel in kernels]
    return _inverted_residual(shape, x, kernels[-1], layers)


_NO_NORM = tuple(kind().value for _, kind in _NormModule._fields_)


def _inverted_residual(
    shape: MapShape, x: Tensor, projection: Tensor, layers: Sequence[tuple[Any, ...]]
) -> Any:
    missing = () if len(layers) == 3 else (None, *_NO_NORM)
    fields = (field for layer in layers for field in layer)
    return ctypes.byref(
        _InvertedResidual(*shape, x.shape[1], projection.shape[0], not missing, *missing, *fields)
    )


def _norm_fields(module: nn.BatchNorm2d, weight: Tensor, bias: Tensor) -> tuple[Any, ...]:
    assert module.running_mean is not None
    assert module.running_var is not None
    batches = module.num_batches_tracked
    return (
        weight.data_ptr(), bias.data_ptr(), module.running_mean.data_ptr(),
        module.running_var.data_ptr(), None if batches is None else batches.data_ptr(),
        module.eps, module.momentum or 0.0, not module.training,
    )  # fmt: skip
