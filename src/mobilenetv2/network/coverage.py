"""Which parts of a network the compiled kernels cover; the others run through the stock code."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mobilenetv2.network.kernels import STORED, Block, MapShape, Part, real_dtype
from mobilenetv2.network.mobilenetv2 import InvertedResidual, KerasPaddedConv2d

MOST_PICTURE_CHANNELS = 3
"""Of a first convolution that the kernels can do."""


class Size(NamedTuple):
    """Of features N×C×H×W."""

    images: int
    channels: int
    height: int
    width: int


def working_dtype(x: Tensor) -> torch.dtype | None:
    """What the kernels would store activations as; None where they cannot work on ``x``."""
    if x.device.type not in ("cpu", "cuda"):
        return None
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return None
    dtype = x.dtype
    if dtype is torch.float32 and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    return dtype if dtype in STORED else None


def part_of(conv: nn.Module, norm: nn.Module, dtype: torch.dtype, size: Size) -> Part | None:
    """A convolution of features of this size and the norm behind it, if the kernels can do both."""
    if not isinstance(conv, nn.Conv2d) or type(norm) is not nn.BatchNorm2d:
        return None
    part = Part(conv, norm, conv.weight, norm.weight, norm.bias)
    real = real_dtype(dtype)
    is_covered = (
        norm.affine
        and norm.track_running_stats
        and part.weight.dtype is real
        and part.kernel.dtype is real
        # Either order is the same for 1×1 and depthwise kernels, and is told to the stem's.
        and (
            part.kernel.is_contiguous()
            or part.kernel.is_contiguous(memory_format=torch.channels_last)
        )
        # Of a single pixel there are no statistics; the stock code words the error.
        and (not norm.training or (norm.momentum is not None and _pixels(conv, size) > 1))
        and ((count := norm.num_batches_tracked) is None or count.dtype is torch.int64)
    )
    return part if is_covered else None


def stem_shape(conv: nn.Conv2d, size: Size) -> MapShape | None:
    """The shape of a first convolution, 3×3 of pictures; None where it is another one."""
    backwards = _goes_backwards(conv, size)
    if conv.kernel_size != (3, 3) or conv.groups > 1 or size.channels > MOST_PICTURE_CHANNELS:
        return None
    if backwards is None:
        return None
    return MapShape(size.images, size.height, size.width, size.channels, conv.stride[0], backwards)


def block_of(module: InvertedResidual, dtype: torch.dtype, size: Size) -> Block | None:
    """An inverted residual of features of this size, if the kernels can do all of it."""
    *layers, projection, norm = module.conv
    pairs = [(layer[0], layer[1]) for layer in cast(list[nn.Sequential], layers)]
    depthwise = pairs[-1][0]
    if not isinstance(depthwise, nn.Conv2d):
        return None
    backwards = _goes_backwards(depthwise, size)
    if backwards is None:
        return None
    images, _, height, width = size
    shape = MapShape(images, height, width, depthwise.in_channels, depthwise.stride[0], backwards)
    parts = [part_of(conv, its_norm, dtype, size) for conv, its_norm in pairs]
    parts.append(part_of(projection, norm, dtype, size_behind(shape, depthwise)))
    if any(part is None for part in parts):
        return None
    return Block(cast(list[Part], parts), shape, module.has_shortcut)


def size_behind(shape: MapShape, conv: nn.Conv2d) -> Size:
    """Of what comes out where ``conv`` is the last convolution."""
    return Size(shape.images, conv.out_channels, shape.out_height, shape.out_width)


def is_watched(module: nn.Module) -> bool:
    """Whether somebody wants to know of each call of ``module``."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def state_of(features: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Any]:
    """All that the answers of this file depend on, and where the tensors of ``features`` are.

    Comparing it takes a fraction of the time that finding those answers takes.
    """
    state = [x.shape, x.requires_grad, dtype]
    state += [is_watched(part) for part in features.children()]
    _add_state(features, state)
    return state


def _add_state(module: nn.Module, state: list[Any]) -> None:
    held = vars(module)
    state += (module, held["training"], held.get("eps"), held.get("momentum"))
    for parameter in held["_parameters"].values():
        if parameter is not None:
            state += (parameter.data_ptr(), parameter.requires_grad)
    for buffer in held["_buffers"].values():
        if buffer is not None:
            state.append(buffer.data_ptr())
    for part in held["_modules"].values():
        if part is not None:
            _add_state(part, state)


def _pixels(conv: nn.Conv2d, size: Size) -> int:
    """That come out, of all images."""
    stride = conv.stride[0]
    return size.images * ((size.height - 1) // stride + 1) * ((size.width - 1) // stride + 1)


def _goes_backwards(conv: nn.Conv2d, size: Size) -> bool | None:
    """Whether a convolution of stride 2 starts from the last pixel; None for any other padding."""
    if type(conv) is nn.Conv2d:
        return False
    height, width = size.height, size.width
    if type(conv) is not KerasPaddedConv2d or height % 2 != width % 2:
        return None
    return height % 2 == 0
