"""Which parts of a network the compiled kernels cover; the others run through the stock code."""

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mobilenetv2.network.kernels import STORED, Block, MapShape, Part, real_dtype
from mobilenetv2.network.mobilenetv2 import InvertedResidual, KerasPaddedConv2d

MOST_PICTURE_CHANNELS = 3
"""Of a first convolution that the kernels can do; `fast_ops.cpp` has it too."""


class Size(NamedTuple):
    """Of features N×C×H×W."""

    images: int
    channels: int
    height: int
    width: int
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> "Size":
        """That of ``x``."""
        images, channels, height, width = x.shape
        return cls(images, channels, height, width, x.device)


def working_dtype(x: Tensor) -> torch.dtype | None:
    """What the kernels would store activations as; None where they cannot work on ``x``."""
    if x.device.type not in ("cpu", "cuda") or x.dim() != 4:
        return None
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return None
    dtype = x.dtype
    if dtype is torch.float32 and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    return dtype if dtype in STORED else None


def part_of(conv: nn.Module, norm: nn.Module, dtype: torch.dtype, size: Size) -> Part | None:
    """A convolution and the norm behind it, if the kernels can do that norm.

    Which kind of convolution it is has still to be asked.
    """
    if not isinstance(conv, nn.Conv2d) or type(norm) is not nn.BatchNorm2d:
        return None
    part = Part(conv, norm, conv.weight, norm.weight, norm.bias)
    real, pixels = real_dtype(dtype), _pixels(conv, size)
    is_covered = (
        norm.affine
        and norm.track_running_stats
        and part.kernel.dtype is real
        and part.kernel.device == size.device
        and all(
            vector is not None
            and vector.dtype is real
            and vector.device == size.device
            and vector.shape == part.kernel.shape[:1]
            and vector.is_contiguous()
            for vector in (part.weight, part.bias, norm.running_mean, norm.running_var)
        )
        # What computes weights anew at every call has to be called.
        and conv._parameters.get("weight") is part.kernel
        and norm._parameters.get("weight") is part.weight
        # Either order is the same for 1×1 and depthwise kernels, and the stem's is put in order.
        and (
            part.kernel.is_contiguous()
            or part.kernel.is_contiguous(memory_format=torch.channels_last)
        )
        and pixels > 0
        # Of a single pixel there are no statistics; the stock code words the error.
        and (not norm.training or (norm.momentum is not None and pixels > 1))
        and (
            (count := norm.num_batches_tracked) is None
            or (count.dtype is torch.int64 and count.device == size.device)
        )
    )
    return part if is_covered else None


def layer_of(layer: nn.Module, dtype: torch.dtype, size: Size) -> Part | None:
    """The convolution and the norm of a layer whose third and last part is ReLU6."""
    if not isinstance(layer, nn.Sequential) or len(layer) != 3 or type(layer[2]) is not nn.ReLU6:
        return None
    return part_of(layer[0], layer[1], dtype, size)


def is_pointwise(part: Part | None, size: Size) -> TypeGuard[Part]:
    """Whether it is a 1×1 convolution of features of this size."""
    return part is not None and _is_plain(part, size, 1, groups=1, strides=(1,))


def stem_shape(part: Part, size: Size) -> MapShape | None:
    """The shape of a first convolution, 3×3 of pictures; None where it is another one."""
    conv, backwards = part.conv, _goes_backwards(part.conv, size)
    if size.channels > MOST_PICTURE_CHANNELS or not _is_plain(part, size, 3, groups=1):
        return None
    if backwards is None:
        return None
    return MapShape(size.images, size.height, size.width, size.channels, conv.stride[0], backwards)


def block_of(module: InvertedResidual, dtype: torch.dtype, size: Size) -> Block | None:
    """An inverted residual of features of this size, if the kernels can do all of it."""
    *layers, projection, norm = module.conv
    *expansions, depthwise = [layer_of(layer, dtype, size) for layer in layers]
    if len(expansions) > 1 or depthwise is None:
        return None
    hidden = size
    for expansion in expansions:
        if not is_pointwise(expansion, size):
            return None
        hidden = size._replace(channels=expansion.conv.out_channels)
    backwards = _goes_backwards(depthwise.conv, hidden)
    if backwards is None or not _is_plain(depthwise, hidden, 3, groups=hidden.channels):
        return None
    images, channels, height, width, _ = hidden
    shape = MapShape(images, height, width, channels, depthwise.conv.stride[0], backwards)
    convolved = size_behind(shape, depthwise.conv)
    projecting = part_of(projection, norm, dtype, convolved)
    if convolved.channels != channels or not is_pointwise(projecting, convolved):
        return None
    if module.has_shortcut and size_behind(shape, projecting.conv) != size:
        return None
    parts = [*cast(list[Part], expansions), depthwise, projecting]
    return Block(parts, shape, module.has_shortcut)


def size_behind(shape: MapShape, conv: nn.Conv2d) -> Size:
    """Of what comes out where ``conv`` is the last convolution."""
    return Size(
        shape.images, conv.out_channels, shape.out_height, shape.out_width, conv.weight.device
    )


def is_watched(*modules: nn.Module) -> bool:
    """Whether somebody wants to know of each call of one of these modules."""
    return _has_any_global_hook() or any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )


def _is_plain(
    part: Part, size: Size, side: int, groups: int, strides: Sequence[int] = (1, 2)
) -> bool:
    """Whether a convolution is side × side, without bias, over features of this size."""
    conv = part.conv
    return (
        conv.bias is None
        and conv.groups == groups
        and part.kernel.shape == (conv.out_channels, size.channels // groups, side, side)
        and conv.stride in [(stride, stride) for stride in strides]
        and conv.padding == (side // 2, side // 2)
        and conv.padding_mode == "zeros"
        and conv.dilation == (1, 1)
    )


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
