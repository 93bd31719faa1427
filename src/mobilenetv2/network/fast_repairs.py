"""Slow paths of stock PyTorch avoided, and one wrong one, in PyTorch alone."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mobilenetv2.network.mobilenetv2 import ConvNormActivation, MobileNetV2


class StridedDepthwise(torch.autograd.Function):
    """A depthwise 3×3 convolution of stride 2 with another way to the gradient of its input.

    In bfloat16 PyTorch's own way takes up to 100 times as long as the forward pass. Spreading the
    gradient over a grid of zeros and convolving that with the flipped kernel gives the same.

    And where a side of the map is one pixel, PyTorch 2.14 leaves whatever was in memory, NaN too,
    as the gradient of the taps that see nothing but padding; here it is zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        """Features N×C×H×W and a kernel C×1×3×3."""
        ctx.save_for_backward(x, kernel)
        return F.conv2d(x, kernel, None, 2, 1, 1, len(kernel))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of features and kernel."""
        x, kernel = ctx.saved_tensors
        gx = g_kernel = None
        if ctx.needs_input_grad[0]:
            spread = torch.zeros_like(x)
            spread[:, :, ::2, ::2] = g
            gx = F.conv2d(spread, kernel.flip(2, 3), None, 1, 1, 1, len(kernel))
        if ctx.needs_input_grad[1]:
            _, g_kernel, _ = torch.ops.aten.convolution_backward(
                g, x, kernel, None, (2, 2), (1, 1), (1, 1), False, (0, 0), len(kernel),
                (False, True, False),
            )  # fmt: skip
            if x.shape[2] == 1:
                g_kernel[:, :, ::2] = 0
            if x.shape[3] == 1:
                g_kernel[..., ::2] = 0
        return gx, g_kernel


class RepairedConvNormActivation(ConvNormActivation):
    """With :class:`StridedDepthwise` where it is the faster way: in bfloat16 on a CPU.

    What `torch.compile` compiles stays PyTorch's.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features N×C×H×W in, N×C'×H'×W' out."""
        conv, norm, activation = self
        strided = type(conv) is nn.Conv2d and conv.groups > 1 and conv.stride[0] == 2
        if not strided or not self.training or not self._is_needed(input):
            return cast(Tensor, super().forward(input))  # type: ignore[no-untyped-call]
        x, kernel = input.to(torch.bfloat16), cast(Tensor, conv.weight).to(torch.bfloat16)
        return cast(Tensor, activation(norm(StridedDepthwise.apply(x, kernel))))

    def _is_needed(self, input: Tensor) -> bool:
        return _in_bfloat16_on_a_cpu(input)


class SoundConvNormActivation(RepairedConvNormActivation):
    """With it only where PyTorch's own gradient is wrong."""

    def _is_needed(self, input: Tensor) -> bool:
        return min(input.shape[2:]) == 1 and super()._is_needed(input)


class RepairedMobileNetV2(MobileNetV2):
    """With a dense gradient of the pooled features.

    The gradient of a mean arrives as one value seen many times over. Batch norm is slow on that,
    and fast on a copy.
    """

    def pooled_features(self, pictures: Tensor) -> Tensor:
        """Normalised pictures N×C×H×W in, features N×F out, averaged over the last map."""
        features: Tensor = self.features(pictures)
        if features.requires_grad and self.training and not torch.compiler.is_compiling():
            features.register_hook(lambda g: g.contiguous(memory_format=torch.channels_last))
        return features.mean((2, 3))


def _in_bfloat16_on_a_cpu(x: Tensor) -> bool:
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    autocast = torch.is_autocast_enabled("cpu") and x.dtype is torch.float32
    return (torch.get_autocast_dtype("cpu") if autocast else x.dtype) is torch.bfloat16
