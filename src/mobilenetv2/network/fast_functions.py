"""The kernels as operations for autograd: what forward keeps, and what backward makes of it.

Between them feature maps are N×C×H×W in channels_last order, which the kernels see as matrices.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mobilenetv2.network.kernels import Block, ChainCall, Kernels, MapShape, Part


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


class ChainFunction(torch.autograd.Function):
    """Parts that follow each other, as one operation."""

    @staticmethod
    def forward(
        ctx: Any, call: ChainCall, dtype: torch.dtype, x: Tensor, *parameters: Tensor
    ) -> Tensor:
        """Features or pictures N×C×H×W in, N×C'×H'×W' out or behind a head N×F.

        The parameters are those of the ``call``.
        """
        ctx.call, ctx.dtype, ctx.in_size = call, dtype, x.shape[2:]
        chain = call.chain
        x = _matrix(x if chain.stem else x.to(dtype))
        out, kept = call.forward(x)
        ctx.save_for_backward(x, *parameters[::3], *kept)
        return out if chain.head else _maps(out, chain.images, chain.height, chain.width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs of :meth:`forward`."""
        chain = ctx.call.chain
        wants_x, *wants = ctx.needs_input_grad[2:]
        count = len(wants) // 3
        x, *saved = ctx.saved_tensors
        if chain.head:
            g = (g / (chain.height * chain.width)).to(ctx.dtype).contiguous()
        else:
            g = _matrix(g.to(ctx.dtype))
        gx, gradients = ctx.call.backward(g, x, saved[count:], saved[:count], wants_x, wants[::3])
        if gx is not None:
            gx = _maps(gx, chain.images, *ctx.in_size)
        return None, None, gx, *gradients
