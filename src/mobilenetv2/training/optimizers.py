"""From settings to an optimizer: PyTorch's, or the paper's RMSProp."""

import torch
from torch import nn

from mobilenetv2.config import OptimizerConfig
from mobilenetv2.network.cpp_sgd import CppSgd
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.training.rmsprop import RMSprop
from mobilenetv2.training.sgd import CompiledSGD


def build_optimizer(
    network: nn.Module,
    config: OptimizerConfig,
    lr: float,
    layer_decay: float = 1.0,
    compiled: CppSgd | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters, decaying only weights of two and more axes.

    Norm scales and biases hold no capacity worth shrinking, and pulling a scale towards zero
    works against the norm itself.

    Args:
        network: whose parameters with ``requires_grad`` are optimised.
        config: which optimizer and its numbers.
        lr: peak learning rate; ``config.lr`` may say "auto".
        layer_decay: below 1, each block of ``network.features`` gets this share of the next one's
            rate (Howard and Ruder 2018, "discriminative fine-tuning"); the classifier gets ``lr``.
        compiled: SGD's step over all weights; None for PyTorch's own.
    """
    groups = []
    for share, parameters in _by_depth(network, layer_decay):
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        for decay, chosen in (
            (config.weight_decay, [p for p in trainable if p.ndim > 1]),
            (0.0, [p for p in trainable if p.ndim <= 1]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": lr * share, "weight_decay": decay})
    # One pass over all weights instead of one for each: the same numbers, a shorter step.
    fused = next(network.parameters()).device.type in ("cpu", "cuda")
    match config.optimizer:
        case "sgd":
            momentum, nesterov = config.momentum, config.nesterov
            if compiled is not None:
                return CompiledSGD(groups, lr, momentum, nesterov, compiled)
            return torch.optim.SGD(groups, lr, momentum, nesterov=nesterov, fused=fused)
        case "rmsprop":
            return RMSprop(groups, lr, config.momentum, config.rmsprop_epsilon)
        case "adam":
            return torch.optim.Adam(groups, lr, betas=(config.momentum, 0.999), fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, lr, betas=(config.momentum, 0.999), fused=fused)


def clip_gradient(network: nn.Module, longest: float | None) -> None:
    """Scale the gradient of all parameters together down to this norm where it is longer."""
    if longest is not None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), longest)


def _by_depth(network: nn.Module, layer_decay: float) -> list[tuple[float, list[nn.Parameter]]]:
    """Parameters with their share of the learning rate, the classifier's first."""
    if layer_decay == 1:
        return [(1.0, list(network.parameters()))]
    assert isinstance(network, MobileNetV2)
    blocks = [list(network.classifier.parameters())]
    blocks += [list(block.parameters()) for block in reversed(network.features)]
    return [(layer_decay**depth, block) for depth, block in enumerate(blocks)]
