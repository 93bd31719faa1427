"""The kernels, called with tensors.

The same calls as :class:`mobilenetv2.network.kernels.Kernels` has for a CPU.
"""

import functools
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
from torch import Tensor, nn

from mobilenetv2.network.gpu import (
    depthwise,
    depthwise_backward,
    norms,
    plans,
    stem,
)
from mobilenetv2.network.gpu.plans import Plan, in_eights
from mobilenetv2.network.gpu.pointwise_launches import PointwiseLaunches
from mobilenetv2.network.kernels import Kernels, MapShape

PLENTY_OF_SHARED_MEMORY = 160 << 10
"""Bytes for a program, above which three rounds of loads fit in."""


class GpuKernels(PointwiseLaunches, Kernels):
    """The kernels for activations of one dtype, on one GPU."""

    def rehearsal(self) -> AbstractContextManager[None]:
        return self._launcher.rehearsal()

    # ---------------------------------------------------------------------------- batch norm

    def statistics(self, y: Tensor, module: nn.BatchNorm2d) -> Tensor:
        rows, channels = y.shape
        if not module.training:
            return self._frozen(y, module)
        plan = plans.elementwise(channels)
        grid = self._launcher.grid(plan, rows, "ROWS", channels, "CHANNELS")
        moments = self._partial(y, grid[0], 3, channels)
        self._launcher.launch(
            norms.norm_statistics, grid,
            y, moments, rows, channels, EIGHTS=in_eights(channels), plan=plan, **self._constants,
        )  # fmt: skip
        return self._finish(moments, module)

    def apply(self, y: Tensor, norm: Tensor, activate: bool, residual: Tensor | None) -> Tensor:
        rows, channels = y.shape
        z = torch.empty_like(y)
        plan = plans.elementwise(channels)
        self._launcher.launch(
            norms.norm_apply, _tiles(rows, channels, plan),
            y, norm, residual, z, rows, channels, ACTIVATE=activate,
            EIGHTS=in_eights(channels), plan=plan, **self._constants,
        )  # fmt: skip
        return z

    def pool(self, y: Tensor, norm: Tensor, images: int) -> Tensor:
        rows, channels = y.shape
        pooled = y.new_empty(images, channels)
        grid = (images, triton.cdiv(channels, 128))
        self._launcher.launch(
            norms.norm_pool, grid,
            y, norm, pooled, rows // images, channels, ROWS=16, CHANNELS=128,
            EIGHTS=in_eights(channels), **self._constants,
        )  # fmt: skip
        return pooled

    def backward(self, g: Tensor, y: Tensor, norm: Tensor, activated: bool) -> Tensor:
        rows, channels = y.shape
        plan = plans.elementwise(channels)
        grid = self._launcher.grid(plan, rows, "ROWS", channels, "CHANNELS")
        sums = self._partial(y, grid[0], 2, channels)
        self._launcher.launch(
            norms.norm_backward, grid,
            g, rows // len(g), y, norm, sums, rows, channels, ACTIVATED=activated,
            EIGHTS=in_eights(channels), plan=plan, **self._constants,
        )  # fmt: skip
        gradient, _ = self._finish_backward(sums, 2 * channels, norm)
        assert gradient is not None
        return gradient

    def backward_apply(self, g: Tensor, y: Tensor, norm: Tensor, gradient: Tensor) -> Tensor:
        rows, channels = y.shape
        gy = torch.empty_like(y)
        plan = plans.elementwise(channels)
        self._launcher.launch(
            norms.norm_backward_apply, _tiles(rows, channels, plan),
            g, rows // len(g), y, norm, gradient, gy, rows, channels, EIGHTS=in_eights(channels),
            plan=plan, **self._constants,
        )  # fmt: skip
        return gy

    # ------------------------------------------------------------------ depthwise convolutions

    def depthwise(
        self, x: Tensor, norm: Tensor | None, weight: Tensor, shape: MapShape,
        module: nn.BatchNorm2d,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        channels: int = shape.channels
        y = x.new_empty(shape.out_rows, channels)
        plan = plans.depthwise(channels, shape.stride, shape.out_height)
        strips = _strips(shape.images, shape.out_height, shape.out_width, plan)
        grid = self._launcher.grid(plan, strips, "STRIPS", channels)
        moments = self._partial(x, grid[0], 3, channels) if module.training else None
        self._launcher.launch(
            depthwise.depthwise_forward, grid,
            x, norm, _taps(weight), y, moments, shape.images, shape.height, shape.width,
            shape.out_height, shape.out_width, channels, STRIDE=shape.stride,
            PADDING=_padding(shape), EIGHTS=in_eights(channels), DEPTH=self._launcher.depth(plan),
            plan=plan, **self._constants,
        )  # fmt: skip
        return y, self._frozen(y, module) if moments is None else self._finish(moments, module)

    def depthwise_backward(
        self, g: Tensor, y: Tensor, y_norm: Tensor, y_gradient: Tensor, x: Tensor,
        x_norm: Tensor | None, weight: Tensor, shape: MapShape,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        channels: int = shape.channels
        gx = torch.empty_like(x)
        plan = plans.depthwise_backward(channels, shape.stride, shape.height)
        strips = _strips(shape.images, shape.height, shape.width, plan)
        grid = self._launcher.grid(plan, strips, "STRIPS", channels)
        sums = self._partial(x, grid[0], 11, channels)
        self._launcher.launch(
            depthwise_backward.depthwise_backward, grid,
            g, y, y_norm, y_gradient, x, x_norm, _taps(weight), gx, sums, shape.images,
            shape.height, shape.width, shape.out_height, shape.out_width, channels,
            STRIDE=shape.stride, PADDING=_padding(shape), EIGHTS=in_eights(channels),
            DEPTH=self._launcher.depth(plan), plan=plan, **self._constants,
        )  # fmt: skip
        norm_gradient, weight_gradient = self._finish_backward(
            sums, 11 * channels, x_norm, sums[:, 2:], weight, taps=True
        )
        assert weight_gradient is not None
        return gx, weight_gradient, norm_gradient

    # ---------------------------------------------------------------------------------- the stem

    def stem(
        self, x: Tensor, weight: Tensor, shape: MapShape, module: nn.BatchNorm2d
    ) -> tuple[Tensor, Tensor]:
        out_channels = len(weight)
        rows = shape.out_rows
        plan = plans.stem(shape.channels, out_channels)
        y = torch.empty(rows, out_channels, dtype=self._dtype, device=x.device)
        programs, _ = self._launcher.grid(plan, rows, "ROWS", out_channels, "OUT")
        moments = self._partial(x, programs, 3, out_channels) if module.training else None
        self._launcher.launch(
            stem.stem_forward, (programs,),
            x, weight, y, moments, rows, shape.height, shape.width, shape.out_height,
            shape.out_width, out_channels, shape.channels, *weight.stride(), WARPS=plan.warps,
            **self._of_stem(plan, shape, out_channels),
        )  # fmt: skip
        return y, self._frozen(y, module) if moments is None else self._finish(moments, module)

    def stem_backward(
        self, g: Tensor, y: Tensor, norm: Tensor, gradient: Tensor, x: Tensor, weight: Tensor,
        shape: MapShape,
    ) -> Tensor:  # fmt: skip
        rows, out_channels = y.shape
        plan = plans.stem_backward(shape.channels, out_channels)
        programs, _ = self._launcher.grid(plan, rows, "ROWS", out_channels, "OUT")
        products = self._partial(x, programs, weight.numel())
        self._launcher.launch(
            stem.stem_backward_weight, (programs,),
            g, y, norm, gradient, x, products, rows, shape.height, shape.width, shape.out_height,
            shape.out_width, out_channels, shape.channels, *weight.stride(),
            **self._of_stem(plan, shape, out_channels),
        )  # fmt: skip
        _, weight_gradient = self._finish_backward(None, 0, None, products, weight)
        assert weight_gradient is not None
        return weight_gradient

    def _of_stem(self, plan: Plan, shape: MapShape, out_channels: int) -> dict[str, Any]:
        return {
            "TAPS": plans.power(9 * shape.channels),
            "STRIDE": shape.stride,
            "PADDING": _padding(shape),
            "EIGHTS": in_eights(out_channels),
            "plan": plan,
            **self._products,
            **self._constants,
        }


@functools.cache
def load(dtype: torch.dtype, device: torch.device) -> GpuKernels:
    """The kernels for activations stored as ``dtype`` on that GPU."""
    gpu = torch.cuda.get_device_properties(device)
    # Loads on their way lie in shared memory, of which an H100 has 227 KB for a program and an RTX
    # card 99; what the plans take of it is in the tests.
    has_room = getattr(gpu, "shared_memory_per_block_optin", 0) >= PLENTY_OF_SHARED_MEMORY
    return GpuKernels(dtype, gpu.multi_processor_count, 3 if has_room else 2)


def _padding(shape: MapShape) -> int:
    """Zeros above and left of the map."""
    return 0 if shape.backwards else 1


def _tiles(rows: int, channels: int, plan: Plan) -> tuple[int, int]:
    return triton.cdiv(rows, plan.block["ROWS"]), triton.cdiv(channels, plan.block["CHANNELS"])


def _strips(images: int, height: int, width: int, plan: Plan) -> int:
    """Strips of two columns."""
    return int(images * triton.cdiv(height, plan.block["segment"]) * triton.cdiv(width, 2))


def _taps(weight: Tensor) -> Tensor:
    """Depthwise 3×3 kernels as channels × 9, contiguous."""
    return weight.reshape(len(weight), 9).contiguous()
