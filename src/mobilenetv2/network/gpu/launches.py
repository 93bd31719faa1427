"""The kernels, called with tensors.

The same calls as :class:`mobilenetv2.network.kernels.Kernels` has for a CPU.
"""

import functools
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from mobilenetv2.network.gpu import (
    depthwise,
    depthwise_backward,
    finish,
    norms,
    plans,
    pointwise,
    stem,
)
from mobilenetv2.network.gpu.launcher import Launcher
from mobilenetv2.network.gpu.plans import Plan
from mobilenetv2.network.kernels import Kernels, MapShape, real_dtype

PLENTY_OF_SHARED_MEMORY = 160 << 10
"""Bytes for a program, above which three rounds of loads fit in."""


class GpuKernels(Kernels):
    """The kernels for activations of one dtype, on one GPU.

    Args:
        dtype: what activations are stored as.
        processors: of the GPU; several programs run on each.
        most_stages: rounds of a loop whose loads may be on their way at once.
    """

    def __init__(self, dtype: torch.dtype, processors: int, most_stages: int = 3) -> None:
        self._dtype = dtype
        self._real = real_dtype(dtype)
        self._launcher = Launcher(processors, most_stages)
        self._constants: dict[str, Any] = {
            "REAL": tl.float64 if self._real is torch.float64 else tl.float32
        }
        # Products of float32 would be rounded to 10 bits on the way.
        self._products = {"PRECISION": "tf32" if dtype is torch.bfloat16 else "ieee"}

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
            y, moments, rows, channels, EIGHTS=_in_eights(channels), plan=plan, **self._constants,
        )  # fmt: skip
        return self._finish(moments, module)

    def apply(self, y: Tensor, norm: Tensor, activate: bool, residual: Tensor | None) -> Tensor:
        rows, channels = y.shape
        z = torch.empty_like(y)
        plan = plans.elementwise(channels)
        self._launcher.launch(
            norms.norm_apply, _tiles(rows, channels, plan),
            y, norm, residual, z, rows, channels, ACTIVATE=activate,
            EIGHTS=_in_eights(channels), plan=plan, **self._constants,
        )  # fmt: skip
        return z

    def pool(self, y: Tensor, norm: Tensor, images: int) -> Tensor:
        rows, channels = y.shape
        pooled = y.new_empty(images, channels)
        grid = (images, triton.cdiv(channels, 128))
        self._launcher.launch(
            norms.norm_pool, grid,
            y, norm, pooled, rows // images, channels, ROWS=16, CHANNELS=128,
            EIGHTS=_in_eights(channels), **self._constants,
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
            EIGHTS=_in_eights(channels), plan=plan, **self._constants,
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
            g, rows // len(g), y, norm, gradient, gy, rows, channels, EIGHTS=_in_eights(channels),
            plan=plan, **self._constants,
        )  # fmt: skip
        return gy

    # ------------------------------------------------------------------------ 1×1 convolutions

    def pointwise(
        self, x: Tensor, x_norm: Tensor | None, weight: Tensor, module: nn.BatchNorm2d
    ) -> tuple[Tensor, Tensor]:
        rows, in_channels = x.shape
        out_channels = len(weight)
        y = x.new_empty(rows, out_channels)
        plan = plans.forward(in_channels, out_channels)
        programs, blocks = self._launcher.grid(plan, rows, "ROWS", out_channels, "OUT")
        moments = self._partial(x, programs, 3, out_channels) if module.training else None
        self._launcher.launch(
            pointwise.pointwise_forward, (programs * blocks,),
            x, x_norm, _matrix(weight), y, moments, rows, in_channels, out_channels,
            AT_ONCE=in_channels <= plan.block["IN"], WARPS=plan.warps, plan=plan,
            EIGHTS=_in_eights(in_channels, out_channels), **self._products, **self._constants,
        )  # fmt: skip
        return y, self._frozen(y, module) if moments is None else self._finish(moments, module)

    def pointwise_backward(
        self, g: Tensor, y: Tensor, y_norm: Tensor, y_gradient: Tensor, activated: bool,
        x: Tensor, x_norm: Tensor | None, weight: Tensor, residual: Tensor | None,
        wants_x: bool, wants_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
        out_channels, in_channels = weight.shape[:2]
        gx = torch.empty_like(x) if wants_x else None
        share = len(y) // len(g)
        output = g, share, y, y_norm, y_gradient
        kinds = {"ACTIVATED": activated, "SHARED": share > 1}
        matrix = _matrix(weight)
        if plan := plans.backward(in_channels, out_channels):
            sums, products = self._both(
                plan, output, kinds, x, x_norm, matrix, residual, gx, wants_weight
            )
            if sums is None and products is None:
                return gx, None, None
            norm_gradient, weight_gradient = self._finish_backward(
                sums, 2 * in_channels, x_norm, products, weight
            )
            return gx, weight_gradient, norm_gradient
        norm_gradient = weight_gradient = None
        if gx is not None:
            sums = self._of_input(output, kinds, x, x_norm, matrix, residual, gx)
            if sums is not None:
                norm_gradient, _ = self._finish_backward(sums, 2 * in_channels, x_norm)
        if wants_weight:
            products = self._of_weight(output, kinds, x, x_norm, out_channels)
            _, weight_gradient = self._finish_backward(None, 0, None, products, weight)
        return gx, weight_gradient, norm_gradient

    def _both(
        self, plan: Plan, output: tuple[Any, ...], kinds: dict[str, Any], x: Tensor,
        x_norm: Tensor | None, matrix: Tensor, residual: Tensor | None, gx: Tensor | None,
        wants_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        """Sums for the norm of ``x`` and for the weight, from one sweep over all."""
        rows, in_channels = x.shape
        out_channels = len(matrix)
        programs, blocks = self._launcher.grid(plan, rows, "ROWS", in_channels, "IN")
        sums = None if x_norm is None else self._partial(x, programs, 2, in_channels)
        products = self._partial(x, programs, out_channels, in_channels) if wants_weight else None
        self._launcher.launch(
            pointwise.pointwise_backward, (programs * blocks,),
            *output, x, x_norm, matrix, residual, gx, sums, products, rows, in_channels,
            out_channels, WARPS=plan.warps, plan=plan, **kinds,
            EIGHTS=_in_eights(in_channels, out_channels), **self._products, **self._constants,
        )  # fmt: skip
        return sums, products

    def _of_input(
        self, output: tuple[Any, ...], kinds: dict[str, Any], x: Tensor, x_norm: Tensor | None,
        matrix: Tensor, residual: Tensor | None, gx: Tensor,
    ) -> Tensor | None:  # fmt: skip
        """Sums for the norm of ``x``."""
        rows, in_channels = x.shape
        out_channels = len(matrix)
        plan = plans.backward_input(in_channels, out_channels)
        programs, blocks = self._launcher.grid(plan, rows, "ROWS", in_channels, "IN")
        sums = None if x_norm is None else self._partial(x, programs, 2, in_channels)
        self._launcher.launch(
            pointwise.pointwise_backward_input, (programs * blocks,),
            *output, x, x_norm, matrix, residual, gx, sums, rows, in_channels, out_channels,
            plan=plan, EIGHTS=_in_eights(in_channels, out_channels), **kinds, **self._products,
            **self._constants,
        )  # fmt: skip
        return sums

    def _of_weight(
        self, output: tuple[Any, ...], kinds: dict[str, Any], x: Tensor, x_norm: Tensor | None,
        out_channels: int,
    ) -> Tensor:  # fmt: skip
        """Sums for the weight."""
        rows, in_channels = x.shape
        plan = plans.backward_weight(in_channels, out_channels)
        of_out = triton.cdiv(out_channels, plan.block["OUT"])
        of_in = triton.cdiv(in_channels, plan.block["IN"])
        tiles = triton.cdiv(rows, plan.block["ROWS"])
        programs = self._launcher.programs(plan, tiles, of_in * of_out)
        products = self._partial(x, programs, out_channels, in_channels)
        self._launcher.launch(
            pointwise.pointwise_backward_weight, (programs, of_in, of_out),
            *output, x, x_norm, products, rows, in_channels, out_channels, plan=plan,
            EIGHTS=_in_eights(in_channels, out_channels), **kinds, **self._products,
            **self._constants,
        )  # fmt: skip
        return products

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
            PADDING=_padding(shape), EIGHTS=_in_eights(channels), DEPTH=self._launcher.depth(plan),
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
            STRIDE=shape.stride, PADDING=_padding(shape), EIGHTS=_in_eights(channels),
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
            "EIGHTS": _in_eights(out_channels),
            "plan": plan,
            **self._products,
            **self._constants,
        }

    # --------------------------------------------------------------------------------- helpers

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
        plan = plans.finish()
        self._launcher.launch(
            finish.finish_statistics, (triton.cdiv(channels, plan.block["CHANNELS"]),),
            moments, programs, norm, module.weight, module.bias, module.running_mean,
            module.running_var, module.num_batches_tracked, module.eps, module.momentum or 0.0,
            channels, FROZEN=not module.training, plan=plan,
        )  # fmt: skip
        return norm

    def _finish_backward(
        self, sums: Tensor | None, apart: int, norm: Tensor | None,
        weight_sums: Tensor | None = None, weight: Tensor | None = None, taps: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        """The gradients of a norm and of a weight, from what the programs have left.

        Sums of two programs for the norm lie so many numbers ``apart``. ``taps``: those for the
        weight come tap by tap.
        """
        of_norm = of_weight = channels = numbers = weight_apart = 0
        gradient = weight_gradient = None
        left = sums if weight_sums is None else weight_sums
        assert left is not None
        plan = plans.finish()
        at_once = plan.block["CHANNELS"]
        if norm is not None:
            channels = norm.shape[1]
            gradient = self._partial(norm, 4, channels)
            of_norm = triton.cdiv(channels, at_once)
        if weight_sums is not None:
            assert weight is not None
            weight_gradient = torch.empty_like(weight)
            numbers, weight_apart = weight.numel(), weight_sums.stride(0)
            of_weight = triton.cdiv(numbers, at_once)
            channels = len(weight) if taps else channels
        self._launcher.launch(
            finish.finish_backward, (of_norm + of_weight,),
            sums, apart, norm, gradient, channels, weight_sums, weight_apart, weight_gradient,
            numbers, len(left), TAPS=taps, plan=plan,
        )  # fmt: skip
        return gradient, weight_gradient


@functools.cache
def load(dtype: torch.dtype, device: torch.device) -> GpuKernels:
    """The kernels for activations stored as ``dtype`` on that GPU."""
    gpu = torch.cuda.get_device_properties(device)
    # Loads on their way lie in shared memory, of which an H100 has 227 KB for a program and an RTX
    # card 99; what the plans take of it is in the tests.
    has_room = getattr(gpu, "shared_memory_per_block_optin", 0) >= PLENTY_OF_SHARED_MEMORY
    return GpuKernels(dtype, gpu.multi_processor_count, 3 if has_room else 2)


def _in_eights(*channels: int) -> bool:
    """Whether all of them are multiples of eight, as a network's are."""
    return all(count % 8 == 0 for count in channels)


def _padding(shape: MapShape) -> int:
    """Zeros above and left of the map."""
    return 0 if shape.backwards else 1


def _tiles(rows: int, channels: int, plan: Plan) -> tuple[int, int]:
    return triton.cdiv(rows, plan.block["ROWS"]), triton.cdiv(channels, plan.block["CHANNELS"])


def _strips(images: int, height: int, width: int, plan: Plan) -> int:
    """Strips of two columns."""
    return int(images * triton.cdiv(height, plan.block["segment"]) * triton.cdiv(width, 2))


def _matrix(weight: Tensor) -> Tensor:
    """A 1×1 kernel as a matrix out × in, contiguous."""
    return weight.reshape(weight.shape[0], weight.shape[1]).contiguous()


def _taps(weight: Tensor) -> Tensor:
    """Depthwise 3×3 kernels as channels × 9, contiguous."""
    return weight.reshape(len(weight), 9).contiguous()
