"""Training one batch in several processes as if it were in one.

Two parts of a network look beyond the single picture: batch norm, whose statistics are those of the
whole batch, and dropout, whose draws follow each other. :func:`install` gives both the view of the
whole batch; :func:`set_share` tells them before every step which part of it is here.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mobilenetv2.distributed import Share
from mobilenetv2.network.fast_dropout import FastDropout


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of the whole batch, on any device.

    ``nn.SyncBatchNorm`` does the same, for GPUs alone.
    """

    share: Share | None

    def forward(self, input: Tensor) -> Tensor:
        """Features N×C×H×W in and out."""
        share = vars(self).get("share")
        if not self.training or share is None:
            return super().forward(input)
        pixels = share.total * input.shape[2] * input.shape[3]
        output, mean, variance = _WholeBatchNorm.apply(
            input, self.weight, self.bias, pixels, self.eps
        )
        cast(Tensor, self.num_batches_tracked).add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
        with torch.no_grad():
            for running, now in (
                (self.running_mean, mean), (self.running_var, variance * pixels / (pixels - 1)),
            ):  # fmt: skip
                cast(Tensor, running).lerp_(now.to(cast(Tensor, running).dtype), momentum)
        return cast(Tensor, output)


class SharedDropout(nn.Dropout):
    """Dropout that draws for the whole batch, the same in every process, and uses its part."""

    share: Share | None

    def forward(self, input: Tensor) -> Tensor:
        """Features N×… in and out."""
        share = vars(self).get("share")
        if not self.training or share is None:
            return super().forward(input)
        whole = input.new_ones(share.total, *input.shape[1:])
        return input * super().forward(whole)[share.positions]


class SharedFastDropout(SharedDropout, FastDropout):
    """The same with other draws: those of one process that drops so."""


def install(network: nn.Module, sync_norms: bool) -> None:
    """Let dropout, and batch norms if asked, see the whole batch (in place).

    Parameters, buffers and their names stay as they are.
    """
    for module in network.modules():
        if type(module) is nn.Dropout:
            module.__class__ = SharedDropout
        elif type(module) is FastDropout:
            module.__class__ = SharedFastDropout
        elif type(module) is nn.BatchNorm2d and sync_norms:
            module.__class__ = SyncedBatchNorm2d


def set_share(network: nn.Module, share: Share | None) -> None:
    """Say which part of the next batch is here; None where all of it is."""
    for module in network.modules():
        if isinstance(module, SyncedBatchNorm2d | SharedDropout):
            vars(module)["share"] = share


class _WholeBatchNorm(torch.autograd.Function):
    """Normalises by the mean and variance over the pixels of all processes.

    One exchange forward (Chan, Golub, LeVeque 1979, for the variance of joined samples; in float64,
    where joining cancels nothing that float32 can see) and one backward.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, pixels: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output like the input; mean and (biased) variance of each channel, float64."""
        x = input.float()
        here = x.numel() // max(1, x.shape[1])
        local_mean = x.mean((0, 2, 3)).double() if here else x.new_zeros(x.shape[1]).double()
        spread = (x - _wide(local_mean)).square().sum((0, 2, 3)).double()
        parts = torch.stack([here * local_mean, spread + here * local_mean.square()])
        dist.all_reduce(parts)
        mean = parts[0] / pixels
        variance = parts[1] / pixels - mean.square()
        scale = (variance + eps).rsqrt()
        normal = (x - _wide(mean)) * _wide(scale)
        ctx.save_for_backward(input, weight, mean, scale)
        ctx.pixels = pixels
        output = (normal * _wide(weight) + _wide(bias)).to(input.dtype)
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of input, weight and bias."""
        x, weight, mean, scale = ctx.saved_tensors
        g = grad.float()
        normal = (x.float() - _wide(mean)) * _wide(scale)
        own = torch.stack([g.sum((0, 2, 3)), (g * normal).sum((0, 2, 3))])
        whole = own.double()
        dist.all_reduce(whole)
        g_mean, g_slope = whole / ctx.pixels
        centred = g - _wide(g_mean) - normal * _wide(g_slope)
        grad_input = centred * _wide(scale) * _wide(weight)
        return grad_input.to(x.dtype), own[1], own[0], None, None


def _wide(channels: Tensor) -> Tensor:
    """One float32 value per channel, to be used on N×C×H×W."""
    return channels.float().view(1, -1, 1, 1)
