"""The network's parts on the compiled kernels: same parameters, same numbers, fewer passes.

A whole inverted residual is one operation for autograd, and only the raw outputs of its three
convolutions are kept for backward: what lies between them (norm, ReLU6 and its mask) is computed
again wherever it is read, inside the kernels: `fast_ops.cpp` for a CPU, :mod:`.gpu` for a GPU.

Whatever the kernels do not cover runs through the stock code: evaluation, other devices and dtypes,
norms of another kind, tracing and compiling. Norms in eval mode within a network in training, as in
fine-tuning, keep their statistics.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from mobilenetv2.network import cpp_kernels, kernels
from mobilenetv2.network.fast_functions import (
    InvertedResidualFunction,
    NormRelu6,
    PooledHead,
    Stem,
)
from mobilenetv2.network.kernels import Block, Kernels, MapShape, Part
from mobilenetv2.network.mobilenetv2 import (
    ConvNormActivation,
    InvertedResidual,
    KerasPaddedConv2d,
    MobileNetV2,
)


class FastConvNormActivation(ConvNormActivation):
    """Norm and ReLU6 in two passes forward and two backward.

    The convolution is the stock one, or where kernels have their own for a first one, that.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features N×C×H×W in, N×C'×H'×W' out."""
        covered = _covered(self, input, self)
        if covered is None:
            return cast(Tensor, super().forward(input))  # type: ignore[no-untyped-call]
        dtype, (part,) = covered
        if shape := _stem_shape(part.conv, input):
            kernels_here = _kernels(input, dtype)
            if kernels_here.has_stem:
                out = Stem.apply(kernels_here, part, shape, input, *part.parameters)
                return cast(Tensor, out)
        y: Tensor = part.conv(input)
        out = NormRelu6.apply(_kernels(y, y.dtype), part, y, part.weight, part.bias)
        return cast(Tensor, out)


class FastInvertedResidual(InvertedResidual):
    """The block as one operation."""

    def forward(self, x: Tensor) -> Tensor:
        """Features N×C×H×W in, N×C'×H'×W' out."""
        *layers, projection, norm = self.conv
        covered = _covered(self, x, *cast(list[nn.Sequential], layers), (projection, norm))
        if covered is None:
            return super().forward(x)
        dtype, parts = covered
        depthwise = parts[-2]
        backwards = _goes_backwards(depthwise.conv, x)
        if backwards is None:
            return super().forward(x)
        images, _, height, width = x.shape
        stride, hidden = depthwise.conv.stride[0], depthwise.kernel.shape[0]
        shape = MapShape(images, height, width, hidden, stride, backwards)
        out = InvertedResidualFunction.apply(
            _kernels(x, dtype), Block(parts, shape, self.has_shortcut), dtype, x,
            *(parameter for part in parts for parameter in part.parameters),
        )  # fmt: skip
        return cast(Tensor, out)


class FastMobileNetV2(MobileNetV2):
    """The head's activations are averaged as they are computed, and never stored."""

    def pooled_features(self, pictures: Tensor) -> Tensor:
        """Normalised pictures N×C×H×W in, features N×F out, averaged over the last map."""
        *blocks, head = self.features
        x = pictures
        for block in blocks:
            x = block(x)
        covered = _covered(head, x, cast(nn.Sequential, head))
        if covered is None:
            return cast(Tensor, head(x).mean((2, 3)))
        dtype, (part,) = covered
        out = PooledHead.apply(_kernels(x, dtype), part, dtype, x, *part.parameters)
        return cast(Tensor, out)


def _covered(
    module: nn.Module, x: Tensor, *layers: Iterable[nn.Module]
) -> tuple[torch.dtype, list[Part]] | None:
    """What the kernels need of ``module``: the dtype that they work in, and its layers as parts.

    None where the stock code has to run.
    """
    if not module.training or x.device.type not in ("cpu", "cuda"):
        return None
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return None
    dtype = x.dtype
    if dtype is torch.float32 and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    if dtype not in kernels.STORED:
        return None
    real = kernels.real_dtype(dtype)
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    parts = []
    for conv, norm, *_ in layers:
        if not isinstance(conv, nn.Conv2d) or type(norm) is not nn.BatchNorm2d:
            return None
        part = Part(conv, norm, conv.weight, norm.weight, norm.bias)
        stride = conv.stride[0]
        pixels = pixels if stride == 1 else _strided_pixels(x, stride)
        if not (
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
            and (not norm.training or (norm.momentum is not None and pixels > 1))
            and ((count := norm.num_batches_tracked) is None or count.dtype is torch.int64)
        ):
            return None
        parts.append(part)
    return dtype, parts


def _kernels(x: Tensor, dtype: torch.dtype) -> Kernels:
    """Those for the device that ``x`` lies on."""
    if x.device.type == "cpu":
        return cpp_kernels.load(dtype)
    from mobilenetv2.network.gpu import launches  # where there is no GPU, Triton may be missing

    return launches.load(dtype, x.device)


def _goes_backwards(conv: nn.Conv2d, x: Tensor) -> bool | None:
    """Whether a convolution of stride 2 starts from the last pixel; None for any other padding."""
    if type(conv) is nn.Conv2d:
        return False
    height, width = x.shape[-2:]
    if type(conv) is not KerasPaddedConv2d or height % 2 != width % 2:
        return None
    return height % 2 == 0


def _stem_shape(conv: nn.Conv2d, x: Tensor) -> MapShape | None:
    """The shape of a first convolution, 3×3 of few channels; None where it is another one."""
    backwards = _goes_backwards(conv, x)
    if conv.kernel_size != (3, 3) or conv.groups > 1 or x.shape[1] > 3 or x.requires_grad:
        return None
    if backwards is None:
        return None
    images, channels, height, width = x.shape
    return MapShape(images, height, width, channels, conv.stride[0], backwards)


def _strided_pixels(x: Tensor, stride: int) -> int:
    return x.shape[0] * ((x.shape[2] - 1) // stride + 1) * ((x.shape[3] - 1) // stride + 1)
