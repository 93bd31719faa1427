"""The structures of `fast_ops.cpp`, filled from modules and tensors, each as a pointer to pass on.

They hold addresses: the tensors have to live until the call is over.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from mobilenetv2.network.kernels import Block, Chain, MapShape, Part


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


def _layer_fields(prefix: str) -> tuple[tuple[str, type[Any]], ...]:
    """Flat, which Python fills sooner than structures within each other."""
    fields = (("kernel", ctypes.c_void_p), ("learns", ctypes.c_int64), *_NormModule._fields_)
    return tuple((f"{prefix}_{name}", kind) for name, kind in fields)


def _counts(*names: str) -> tuple[tuple[str, type[Any]], ...]:
    return tuple((name, ctypes.c_int64) for name in names)


class _Stem(ctypes.Structure):
    _fields_ = (*_MapShape._fields_, *_counts("out_channels"), *_layer_fields("layer"))


class _InvertedResidual(ctypes.Structure):
    _fields_ = (
        *_MapShape._fields_,
        *_counts("in_channels", "out_channels", "expands", "has_shortcut"),
        *_layer_fields("expansion"),
        *_layer_fields("depthwise"),
        *_layer_fields("projection"),
    )


class _Head(ctypes.Structure):
    _fields_ = (
        *_counts("images", "rows", "in_channels", "out_channels"),
        *_layer_fields("layer"),
    )


class _Chain(ctypes.Structure):
    _fields_ = (
        ("stem", ctypes.POINTER(_Stem)),
        ("blocks", ctypes.POINTER(_InvertedResidual)),
        ("count", ctypes.c_int64),
        ("head", ctypes.POINTER(_Head)),
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


class ChainStructure:
    """Parts that run in one call, with these kernels, of which some learn; never changed.

    The stem's kernel is not looked at: it is an argument of the call, in another order.
    """

    def __init__(self, chain: Chain, kernels: Sequence[Tensor], learn: Sequence[bool]) -> None:
        left = zip(kernels, learn, strict=True)
        self._chain = _Chain()
        if chain.stem:
            part, shape = chain.stem
            stem = _Stem(*shape, len(part.kernel), *_layer(part, *next(left)))
            self._chain.stem = ctypes.pointer(stem)
        blocks = [_InvertedResidual(*_block(block, left)) for block in chain.blocks]
        self._chain.blocks = (_InvertedResidual * len(blocks))(*blocks)
        self._chain.count = len(blocks)
        if chain.head:
            rows = chain.images * chain.height * chain.width
            out_channels, in_channels = chain.head.kernel.shape[:2]
            layer = _layer(chain.head, *next(left))
            self._chain.head = ctypes.pointer(
                _Head(chain.images, rows, in_channels, out_channels, *layer)
            )
        self.pointer = ctypes.byref(self._chain)


def _block(block: Block, kernels: Iterator[tuple[Tensor, bool]]) -> tuple[Any, ...]:
    layers = [_layer(part, *next(kernels)) for part in block.parts]
    expands = len(layers) == 3
    if not expands:
        layers.insert(0, (None, False, *(kind().value for _, kind in _NormModule._fields_)))
    out_channels = len(block.parts[-1].kernel)
    in_channels = block.parts[0].kernel.shape[1] if expands else block.shape.channels
    return (
        *block.shape, in_channels, out_channels, expands, block.has_shortcut,
        *(field for layer in layers for field in layer),
    )  # fmt: skip


def _layer(part: Part, kernel: Tensor, learns: bool) -> tuple[Any, ...]:
    return kernel.data_ptr(), learns, *_norm_fields(part.norm, part.weight, part.bias)


def _norm_fields(module: nn.BatchNorm2d, weight: Tensor, bias: Tensor) -> tuple[Any, ...]:
    assert module.running_mean is not None
    assert module.running_var is not None
    batches = module.num_batches_tracked
    return (
        weight.data_ptr(), bias.data_ptr(), module.running_mean.data_ptr(),
        module.running_var.data_ptr(), None if batches is None else batches.data_ptr(),
        module.eps, module.momentum or 0.0, not module.training,
    )  # fmt: skip
