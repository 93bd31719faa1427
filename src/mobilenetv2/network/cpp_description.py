"""A network as `fast_inference.cpp` is told of it: its layers, and where their weights lie."""

import ctypes

import torch
from torch import Tensor, nn

from mobilenetv2.network.mobilenetv2 import InvertedResidual, KerasPaddedConv2d, MobileNetV2


class _Weights(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class _Block(ctypes.Structure):
    _fields_ = (
        ("in_channels", ctypes.c_int64),
        ("hidden_channels", ctypes.c_int64),
        ("out_channels", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("has_shortcut", ctypes.c_int64),
        ("expansion", _Weights),
        ("depthwise", _Weights),
        ("projection", _Weights),
    )


class Description(ctypes.Structure):
    """As `fast_inference.cpp` has it."""

    _fields_ = (
        ("picture_channels", ctypes.c_int64),
        ("stem_stride", ctypes.c_int64),
        ("keras", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("features", ctypes.c_int64),
        ("classes", ctypes.c_int64),
        ("mean", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("blocks", ctypes.POINTER(_Block)),
        ("head", _Weights),
        ("classifier", _Weights),
    )


def described(folded: MobileNetV2, mean: Tensor, scale: Tensor) -> tuple[Description, list[object]]:
    """The network for the library, and what has to live while it is read.

    Args:
        folded: with norms folded into the convolutions.
        mean: taken off the channels of the pictures, values 0…255.
        scale: what they are multiplied by then.
    """
    kept: list[object] = []

    def floats(tensor: Tensor) -> int:
        plain = tensor.detach().to("cpu", torch.float32).contiguous()
        kept.append(plain)
        return plain.data_ptr()

    def weights(layer: nn.Conv2d | nn.Linear) -> _Weights:
        assert layer.bias is not None
        return _Weights(floats(layer.weight), floats(layer.bias))

    def by_pixel(layer: nn.Conv2d) -> _Weights:
        assert layer.bias is not None
        return _Weights(floats(layer.weight.permute(0, 2, 3, 1)), floats(layer.bias))

    stem, *residuals, head = (convolutions(part) for part in folded.features)
    blocks = []
    for place, (part, layers) in enumerate(zip(folded.features[1:-1], residuals, strict=True)):
        assert isinstance(part, InvertedResidual)
        *expansion, depthwise, projection = layers
        assert bool(expansion) == (place > 0)
        first = expansion[0] if expansion else stem[0]
        blocks.append(
            _Block(
                first.in_channels, depthwise.in_channels, projection.out_channels,
                depthwise.stride[0], part.has_shortcut,
                weights(first) if expansion else by_pixel(first), weights(depthwise),
                weights(projection),
            )
        )  # fmt: skip
    strided = [layer for layers in (stem, *residuals) for layer in layers if layer.stride[0] == 2]
    keras = any(isinstance(layer, KerasPaddedConv2d) for layer in strided)
    classifier = folded.classifier[1]
    assert isinstance(classifier, nn.Linear)
    table = (_Block * len(blocks))(*blocks)
    kept.append(table)
    description = Description(
        stem[0].in_channels, stem[0].stride[0], keras, len(blocks), head[0].out_channels,
        classifier.out_features, floats(mean), floats(scale), table, weights(head[0]),
        weights(classifier),
    )  # fmt: skip
    return description, kept


def convolutions(part: nn.Module) -> list[nn.Conv2d]:
    """Of a part of the network, in order."""
    return [module for module in part.modules() if isinstance(module, nn.Conv2d)]
