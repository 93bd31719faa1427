"""The kernels of 1×1 convolutions, called with tensors."""

from typing import Any

import torch
import triton
from torch import Tensor, nn

from mobilenetv2.network.gpu import plans, pointwise
from mobilenetv2.network.gpu.finishing import Finishing
from mobilenetv2.network.gpu.plans import Plan, in_eights


class PointwiseLaunches(Finishing):
    """Forward and backward of a 1×1 convolution."""

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
            EIGHTS=in_eights(in_channels, out_channels), **self._products, **self._constants,
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
            EIGHTS=in_eights(in_channels, out_channels), **self._products, **self._constants,
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
            plan=plan, EIGHTS=in_eights(in_channels, out_channels), **kinds, **self._products,
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
            EIGHTS=in_eights(in_channels, out_channels), **kinds, **self._products,
            **self._constants,
        )  # fmt: skip
        return products


def _matrix(weight: Tensor) -> Tensor:
    """A 1×1 kernel as a matrix out × in, contiguous."""
    return weight.reshape(weight.shape[0], weight.shape[1]).contiguous()
