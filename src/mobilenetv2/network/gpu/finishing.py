"""What all calls of kernels share: how they are launched, and how what they leave is added up."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from mobilenetv2.network.gpu import finish, plans
from mobilenetv2.network.gpu.launcher import Launcher
from mobilenetv2.network.kernels import real_dtype


class Finishing:
    """Launches kernels on one GPU, and adds up what their programs leave.

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

    def _partial(self, like: Tensor, *shape: int) -> Tensor:
        """Room for what programs leave."""
        return torch.empty(shape, dtype=self._real, device=like.device)

    def _finish(self, moments: Tensor, module: nn.BatchNorm2d) -> Tensor:
        """The norm of a map with these moments, programs × 3 × channels."""
        return self._to_norm(moments, len(moments), moments.shape[-1], module)

    def _frozen(self, y: Tensor, module: nn.BatchNorm2d) -> Tensor:
        """A frozen norm, whatever the map is."""
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
