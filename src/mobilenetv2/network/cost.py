"""Parameters and multiply-adds, layer by layer, as the papers count them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mobilenetv2.network.duplicate import duplicate


@dataclass(frozen=True)
class LayerCost:
    """What one convolution or linear layer costs for one picture.

    Attributes:
        name: the module's path, as in the state dict.
        kind: such as ``"conv 3×3 /2 depthwise"``.
        output: shape of its output without the batch, such as (32, 112, 112).
        params: trainable numbers, the batch norm behind a convolution included.
        madds: multiply-adds; norms, activations and pooling are not counted, as in the papers.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    params: int
    madds: int


def layer_costs(network: nn.Module, in_channels: int, height: int, width: int) -> list[LayerCost]:
    """The cost of every layer for one picture of ``height`` × ``width`` pixels.

    Runs a copy of the network on no pictures at all: shapes are computed, numbers are not. (So they
    are on PyTorch's meta device, but its first use imports the compiler, which takes seconds.)
    """
    network = duplicate(network).to_empty(device="cpu").eval()
    costs: list[LayerCost] = []

    def record(name: str, module: nn.Module, output: Tensor) -> None:
        params = sum(parameter.numel() for parameter in module.parameters())
        if isinstance(module, nn.BatchNorm2d):
            if costs:  # shown with the convolution that it follows
                last = costs[-1]
                costs[-1] = LayerCost(
                    last.name, last.kind, last.output, last.params + params, last.madds
                )
            return
        shape = tuple(output.shape[1:])
        weight = module.weight
        assert isinstance(weight, Tensor)
        pixels = math.prod(shape[1:])
        costs.append(LayerCost(name, _kind(module), shape, params, weight.numel() * pixels))

    hooks = [
        module.register_forward_hook(
            lambda module, _inputs, output, name=name: record(name, module, output)
        )
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d)
    ]
    with torch.no_grad():
        network(torch.empty(0, in_channels, height, width))
    for hook in hooks:
        hook.remove()
    return costs


def count_params(network: nn.Module) -> int:
    """Trainable numbers of the whole network; running statistics are not among them."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_madds(network: nn.Module, in_channels: int, height: int, width: int) -> int:
    """Multiply-adds of the whole network for one picture.

    >>> from mobilenetv2.network.mobilenetv2 import MobileNetV2
    >>> count_madds(MobileNetV2(), 3, 224, 224)
    300774272
    """
    return sum(cost.madds for cost in layer_costs(network, in_channels, height, width))


def _kind(module: nn.Module) -> str:
    if not isinstance(module, nn.Conv2d):
        return "linear"
    kernel, stride = module.kernel_size, module.stride[0]
    kind = f"conv {kernel[0]}×{kernel[1]}"
    if stride > 1:
        kind += f" /{stride}"
    if module.groups > 1:
        kind += " depthwise" if module.groups == module.in_channels else f" {module.groups} groups"
    return kind
