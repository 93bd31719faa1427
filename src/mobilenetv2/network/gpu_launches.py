"""The Triton kernels of :mod:`.gpu_kernels`, called with tensors: block sizes and grids.

The same calls as :class:`mobilenetv2.network.kernels.Kernels` has for a CPU.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from mobilenetv2.network import gpu_kernels, gpu_plans
from mobilenetv2.network.gpu_plans import Plan
from mobilenetv2.network.kernels import DepthwiseShape, out_sides, real_dtype

_FINISH = {"PROGRAMS": 64, "CHANNELS": 16}


class GpuKernels:
    """The kernels for activations of one dtype; see :class:`mobilenetv2.network.kernels.Kernels`.

    Args:
        dtype: what activations are stored as.
        processors: of the GPU; several programs run on each.
    """

    def __init__(self, dtype: torch.dtype, processors: int) -> None:
        self._real = real_dtype(dtype)
        self._processors = processors
        self._constants: dict[str, Any] = {
            "REAL": tl.float64 if self._real is torch.float64 else tl.float32
        }
        # Products of float32 would be rounded to 10 bits on the way.
        self._products = {"PRECISION": "tf32" if dtype is torch.bfloat16 else "ieee"}

    # ---------------------------------------------------------------------------- batch norm

    def statistics(self, y: Tensor, module: nn.BatchNorm2d) -> Tensor:
        """The norm of ``y`` by its own statistics, and the module's running statistics move."""
        rows, channels = y.shape
        if not module.training:
            return self._frozen(y, module)
        plan = gpu_plans.elementwise(channels)
        grid = self._grid(plan, rows, plan.block["ROWS"], channels, plan.block["CHANNELS"])
        moments = self._partial(y, grid[0], 3, channels)
        gpu_kernels.norm_statistics[grid](
            y, moments, rows, channels, **plan.options, **self._constants
        )
        return self._finish(moments, module)

    def apply(self, y: Tensor, norm: Tensor, activate: bool, residual: Tensor | None) -> Tensor:
        """The normalised ``y``: through ReLU6, or plus ``residual``."""
        rows, channels = y.shape
        z = torch.empty_like(y)
        plan = gpu_plans.elementwise(channels)
        gpu_kernels.norm_apply[_tiles(rows, channels, plan)](
            y, norm, residual, z, rows, channels, ACTIVATE=activate, **plan.options,
            **self._constants,
        )  # fmt: skip
        return z

    def pool(self, y: Tensor, norm: Tensor, images: int) -> Tensor:
        """Normalised, through ReLU6, averaged over the pixels of each image."""
        rows, channels = y.shape
        pooled = y.new_empty(images, channels)
        grid = (images, triton.cdiv(channels, 128))
        gpu_kernels.norm_pool[grid](
            y, norm, pooled, rows // images, channels, ROWS=16, CHANNELS=128, **self._constants
        )
        return pooled

    def backward(self, g: Tensor, y: Tensor, norm: Tensor, activated: bool) -> Tensor:
        """The norm's gradient; ``g`` has a row for each pixel, or one for each image."""
        rows, channels = y.shape
        plan = gpu_plans.elementwise(channels)
        grid = self._grid(plan, rows, plan.block["ROWS"], channels, plan.block["CHANNELS"])
        sums = self._partial(y, grid[0], 2, channels)
        gpu_kernels.norm_backward[grid](
            g, rows // len(g), y, norm, sums, rows, channels, ACTIVATED=activated, **plan.options,
            **self._constants,
        )  # fmt: skip
        return self._finish_gradient(sums, norm)

    def backward_apply(self, g: Tensor, y: Tensor, norm: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of ``y`` from ``g``, that of the normalised ``y`` after ReLU6."""
        rows, channels = y.shape
        gy = torch.empty_like(y)
        plan = gpu_plans.elementwise(channels)
        gpu_kernels.norm_backward_apply[_tiles(rows, channels, plan)](
            g, rows // len(g), y, norm, gradient, gy, rows, channels, **plan.options,
            **self._constants,
        )  # fmt: skip
        return gy

    # ------------------------------------------------------------------------ 1×1 convolutions

    def pointwise(
        self, x: Tensor, x_norm: Tensor | None, weight: Tensor, module: nn.BatchNorm2d
    ) -> tuple[Tensor, Tensor]:
        """The 1×1 convolution of ``x``, normalised on the way if ``x_norm`` is given; its norm."""
        rows, in_channels = x.shape
        out_channels = len(weight)
        y = x.new_empty(rows, out_channels)
        plan = gpu_plans.forward(in_channels, out_channels)
        programs, blocks = self._grid(
            plan, rows, plan.block["ROWS"], out_channels, plan.block["OUT"]
        )
        moments = self._partial(x, programs, 3, out_channels) if module.training else None
        gpu_kernels.pointwise_forward[(programs * blocks,)](
            x, x_norm, _stored(weight, x), y, moments, rows, in_channels, out_channels,
            AT_ONCE=in_channels <= plan.block["IN"], **plan.options, **self._products,
            **self._constants,
        )  # fmt: skip
        return y, self._frozen(y, module) if moments is None else self._finish(moments, module)

    def pointwise_backward(
        self, g: Tensor, y: Tensor, y_norm: Tensor, y_gradient: Tensor, activated: bool,
        x: Tensor, x_norm: Tensor | None, weight: Tensor, residual: Tensor | None,
        wants_x: bool, wants_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
        """Gradients of ``x`` (masked, if ``x_norm`` is given), weight, and ``x_norm``."""
        out_channels, in_channels = weight.shape[:2]
        gx = torch.empty_like(x) if wants_x else None
        output = g, len(y) // len(g), y, y_norm, y_gradient
        matrix = _stored(weight, x)
        if plan := gpu_plans.backward(in_channels, out_channels):
            sums, products = self._both(
                plan, output, activated, x, x_norm, matrix, residual, gx, wants_weight
            )
        else:
            sums = products = None
            if gx is not None:
                sums = self._of_input(output, activated, x, x_norm, matrix, residual, gx)
            if wants_weight:
                products = self._of_weight(output, activated, x, x_norm, out_channels)
        x_gradient = weight_gradient = None
        if products is not None:
            weight_gradient = products.sum(0).view_as(weight)
        if x_norm is not None:
            assert sums is not None
            x_gradient = self._finish_gradient(sums, x_norm)
        return gx, weight_gradient, x_gradient

    def _both(
        self, plan: Plan, output: tuple[Any, ...], activated: bool, x: Tensor,
        x_norm: Tensor | None, matrix: Tensor, residual: Tensor | None, gx: Tensor | None,
        wants_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        """Sums for the norm of ``x`` and for the weight, from one sweep over all."""
        rows, in_channels = x.shape
        out_channels = len(matrix)
        programs, _ = self._grid(plan, rows, plan.block["ROWS"], 1, 1)
        sums = None if x_norm is None else self._partial(x, programs, 2, in_channels)
        products = self._partial(x, programs, out_channels, in_channels) if wants_weight else None
        gpu_kernels.pointwise_backward[(programs,)](
            *output, x, x_norm, matrix, residual, gx, sums, products, rows, in_channels,
            out_channels, ACTIVATED=activated, **plan.options, **self._products, **self._constants,
        )  # fmt: skip
        return sums, products

    def _of_input(
        self, output: tuple[Any, ...], activated: bool, x: Tensor, x_norm: Tensor | None,
        matrix: Tensor, residual: Tensor | None, gx: Tensor,
    ) -> Tensor | None:  # fmt: skip
        """Sums for the norm of ``x``."""
        rows, in_channels = x.shape
        plan = gpu_plans.backward_input(in_channels, len(matrix))
        programs, blocks = self._grid(plan, rows, plan.block["ROWS"], in_channels, plan.block["IN"])
        sums = None if x_norm is None else self._partial(x, programs, 2, in_channels)
        gpu_kernels.pointwise_backward_input[(programs * blocks,)](
            *output, x, x_norm, matrix, residual, gx, sums, rows, in_channels, len(matrix),
            ACTIVATED=activated, **plan.options, **self._products, **self._constants,
        )  # fmt: skip
        return sums

    def _of_weight(
        self, output: tuple[Any, ...], activated: bool, x: Tensor, x_norm: Tensor | None,
        out_channels: int,
    ) -> Tensor:  # fmt: skip
        """Sums for the weight."""
        rows, in_channels = x.shape
        plan = gpu_plans.backward_weight(in_channels, out_channels)
        of_out = triton.cdiv(out_channels, plan.block["OUT"])
        of_in = triton.cdiv(in_channels, plan.block["IN"])
        programs, _ = self._grid(plan, rows, plan.block["ROWS"], of_in * of_out, 1)
        products = self._partial(x, programs, out_channels, in_channels)
        gpu_kernels.pointwise_backward_weight[(programs, of_in, of_out)](
            *output, x, x_norm, products, rows, in_channels, out_channels, ACTIVATED=activated,
            **plan.options, **self._products, **self._constants,
        )  # fmt: skip
        return products

    # ------------------------------------------------------------------ depthwise convolutions

    def depthwise(
        self, x: Tensor, norm: Tensor | None, weight: Tensor, shape: DepthwiseShape,
        module: nn.BatchNorm2d,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The 3×3 convolution of ``x``, normalised on the way if ``norm`` is given; its norm."""
        channels: int = shape.channels
        height, width = out_sides(shape)
        y = x.new_empty(shape.images * height * width, channels)
        plan = gpu_plans.depthwise(channels, shape.stride)
        squares = len(y) // (4 if shape.stride == 1 else 1)
        grid = self._grid(plan, squares, plan.block["SQUARES"], channels, plan.block["CHANNELS"])
        moments = self._partial(x, grid[0], 3, channels) if module.training else None
        gpu_kernels.depthwise_forward[grid](
            x, norm, _tap_by_tap(weight), y, moments, shape.images, shape.height, shape.width,
            height, width, channels, STRIDE=shape.stride, PADDING=0 if shape.backwards else 1,
            **plan.options, **self._constants,
        )  # fmt: skip
        return y, self._frozen(y, module) if moments is None else self._finish(moments, module)

    def depthwise_backward(
        self, g: Tensor, y: Tensor, y_norm: Tensor, y_gradient: Tensor, x: Tensor,
        x_norm: Tensor | None, weight: Tensor, shape: DepthwiseShape,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        """Gradients of ``x`` (masked, if ``x_norm`` is given), weight, and ``x_norm``."""
        channels: int = shape.channels
        gx = torch.empty_like(x)
        plan = gpu_plans.depthwise_backward(channels, shape.stride)
        squares = len(x) // 4
        grid = self._grid(plan, squares, plan.block["SQUARES"], channels, plan.block["CHANNELS"])
        sums = self._partial(x, grid[0], 11, channels)
        gpu_kernels.depthwise_backward[grid](
            g, y, y_norm, y_gradient, x, x_norm, _tap_by_tap(weight), gx, sums, shape.images,
            shape.height, shape.width, *out_sides(shape), channels, STRIDE=shape.stride,
            PADDING=0 if shape.backwards else 1, **plan.options, **self._constants,
        )  # fmt: skip
        weight_gradient = sums[:, 2:].sum(0).t().reshape(weight.shape)
        x_gradient = None if x_norm is None else self._finish_gradient(sums, x_norm)
        return gx, weight_gradient, x_gradient

    # --------------------------------------------------------------------------------- helpers

    def _grid(
        self, plan: Plan, rows: int, at_once: int, channels: int, block: int
    ) -> tuple[int, int]:
        """Programs that share the rows, for each block of channels, and those blocks."""
        blocks = triton.cdiv(channels, block)
        most = max(1, plan.programs * self._processors // blocks)
        return max(1, min(triton.cdiv(rows, at_once), most)), blocks

    def _partial(self, like: Tensor, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._real, device=like.device)

    def _finish(self, moments: Tensor, module: nn.BatchNorm2d) -> Tensor:
        return self._to_norm(moments, len(moments), moments.shape[-1], module)

    def _frozen(self, y: Tensor, module: nn.BatchNorm2d) -> Tensor:
        return self._to_norm(y, 0, y.shape[1], module)

    def _to_norm(
        self, moments: Tensor, programs: int, channels: int, module: nn.BatchNorm2d
    ) -> Tensor:
        norm = self._partial(moments, 5, channels)
        gpu_kernels.finish_statistics[(triton.cdiv(channels, _FINISH["CHANNELS"]),)](
            moments, programs, norm, module.weight, module.bias, module.running_mean,
            module.running_var, module.num_batches_tracked, module.eps, module.momentum or 0.0,
            channels, FROZEN=not module.training, **_FINISH,
        )  # fmt: skip
        return norm

    def _finish_gradient(self, sums: Tensor, norm: Tensor) -> Tensor:
        programs, channels = len(sums), norm.shape[1]
        gradient = self._partial(norm, 4, channels)
        gpu_kernels.finish_gradient[(triton.cdiv(channels, _FINISH["CHANNELS"]),)](
            sums, programs, sums[0].numel(), norm, gradient, channels, **_FINISH
        )
        return gradient


@functools.cache
def load(dtype: torch.dtype, device: torch.device) -> GpuKernels:
    """The kernels for activations stored as ``dtype`` on that GPU."""
    return GpuKernels(dtype, torch.cuda.get_device_properties(device).multi_processor_count)


def _tiles(rows: int, channels: int, plan: Plan) -> tuple[int, int]:
    return triton.cdiv(rows, plan.block["ROWS"]), triton.cdiv(channels, plan.block["CHANNELS"])


def _stored(weight: Tensor, x: Tensor) -> Tensor:
    """A 1×1 kernel as a matrix out × in, stored as activations are."""
    return weight.reshape(weight.shape[0], weight.shape[1]).to(x.dtype)


def _tap_by_tap(weight: Tensor) -> Tensor:
    """Depthwise 3×3 kernels as 9 × channels."""
    return weight.reshape(len(weight), 9).t().contiguous()
