"""The network's parts on the compiled kernels: same parameters, same numbers, fewer passes.

A whole inverted residual is one operation for autograd, and only the raw outputs of its three
convolutions are kept for backward: what lies between them (norm, ReLU6 and its mask) is computed
again wherever it is read, inside the kernels: `fast_ops.cpp` for a CPU, :mod:`.gpu` for a GPU.

Whatever the kernels do not cover runs through the stock code: evaluation, other devices and dtypes,
norms of another kind, tracing and compiling. Norms in eval mode within a network in training, as in
fine-tuning, keep their statistics.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mobilenetv2.network import cpp_kernels, kernels
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


# ---------------------------------------------------------------------------- operations


def _matrix(x: Tensor) -> Tensor:
    """N×C×H×W seen as pixels × channels; copies only what is not channels_last yet."""
    return x.permute(0, 2, 3, 1).contiguous().view(-1, x.shape[1])


def _maps(matrix: Tensor, images: int, height: int, width: int) -> Tensor:
    return matrix.view(images, height, width, -1).permute(0, 3, 1, 2)


class NormRelu6(torch.autograd.Function):
    """Batch norm and ReLU6 of a convolution's output ``y``."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, part: Part, y: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        """Normalises ``y``; weight and bias are the norm's."""
        images, _, height, width = y.shape
        y = _matrix(y)
        norm = kernels.statistics(y, part.norm)
        ctx.kernels = kernels
        ctx.save_for_backward(y, norm)
        return _maps(kernels.apply(y, norm, True, None), images, height, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs of :meth:`forward`."""
        images, _, height, width = g.shape
        y, norm = ctx.saved_tensors
        g = _matrix(g.to(y.dtype))
        gradient = ctx.kernels.backward(g, y, norm, True)
        gy = ctx.kernels.backward_apply(g, y, norm, gradient)
        return None, None, _maps(gy, images, height, width), gradient[2], gradient[3]


class Stem(torch.autograd.Function):
    """The first convolution, batch norm and ReLU6; the pictures get no gradient."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, part: Part, shape: MapShape, x: Tensor, kernel: Tensor,
        weight: Tensor, bias: Tensor,
    ) -> Tensor:  # fmt: skip
        """Pictures N×C×H×W in, features N×C'×H'×W' out; weight and bias are the norm's."""
        x = _matrix(x)
        y, norm = kernels.stem(x, kernel, shape, part.norm)
        ctx.kernels, ctx.shape = kernels, shape
        ctx.save_for_backward(x, kernel, y, norm)
        return _maps(
            kernels.apply(y, norm, True, None), shape.images, shape.out_height, shape.out_width
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs of :meth:`forward`."""
        x, kernel, y, norm = ctx.saved_tensors
        g = _matrix(g.to(y.dtype))
        gradient = ctx.kernels.backward(g, y, norm, True)
        g_kernel = None
        if ctx.needs_input_grad[4]:
            g_kernel = ctx.kernels.stem_backward(g, y, norm, gradient, x, kernel, ctx.shape)
        return None, None, None, None, g_kernel, gradient[2], gradient[3]


class PooledHead(torch.autograd.Function):
    """1×1 convolution, batch norm, ReLU6 and the average over the map."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, part: Part, dtype: torch.dtype, x: Tensor, kernel: Tensor,
        weight: Tensor, bias: Tensor,
    ) -> Tensor:  # fmt: skip
        """Features N×C×H×W in, N×F out; weight and bias are the norm's."""
        ctx.kernels, ctx.shape = kernels, x.shape
        x = _matrix(x.to(dtype))
        y, norm = kernels.pointwise(x, None, kernel, part.norm)
        ctx.save_for_backward(x, kernel, y, norm)
        return kernels.pool(y, norm, ctx.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs of :meth:`forward`."""
        images, _, height, width = ctx.shape
        x, kernel, y, norm = ctx.saved_tensors
        _, _, _, wants_x, wants_kernel, _, _ = ctx.needs_input_grad
        g = (g / (height * width)).to(y.dtype).contiguous()
        gradient = ctx.kernels.backward(g, y, norm, True)
        gx, g_kernel, _ = ctx.kernels.pointwise_backward(
            g, y, norm, gradient, True, x, None, kernel, None, wants_x, wants_kernel
        )
        gx = None if gx is None else _maps(gx, images, height, width)
        return None, None, None, gx, g_kernel, gradient[2], gradient[3]


class InvertedResidualFunction(torch.autograd.Function):
    """A whole block: expansion (unless it has none), depthwise convolution, projection."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, block: Block, dtype: torch.dtype, x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:  # fmt: skip
        """Features N×C×H×W in, N×C'×H'×W' out; the parameters are those of the parts in order."""
        x = _matrix(x.to(dtype))
        out, kept = kernels.block(block, x)
        ctx.kernels, ctx.shape, ctx.has_shortcut = kernels, block.shape, block.has_shortcut
        ctx.save_for_backward(x, *parameters[::3], *kept)
        shape = block.shape
        return _maps(out, shape.images, shape.out_height, shape.out_width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs of :meth:`forward`."""
        shape = ctx.shape
        wants_x, *wants = ctx.needs_input_grad[3:]
        count = len(wants) // 3
        x, *saved = ctx.saved_tensors
        g = _matrix(g.to(x.dtype))
        shortcut = g if ctx.has_shortcut else None
        gx, gradients = ctx.kernels.block_backward(
            g, x, saved[count:], saved[:count], shape, shortcut, wants_x, wants[::3]
        )
        if gx is not None:
            gx = _maps(gx, shape.images, shape.height, shape.width)
        return None, None, None, gx, *gradients
