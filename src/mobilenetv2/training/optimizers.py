"""From settings to one of PyTorch's optimizers."""

import torch
from torch import nn

from mobilenetv2.config import OptimizerConfig

RMSPROP_DECAY = 0.9
"""Decay of RMSprop's squared gradients (paper, section 6.1)."""


def build_optimizer(
    network: nn.Module, config: OptimizerConfig, lr: float
) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters, decaying only weights of two and more axes.

    Norm scales and biases hold no capacity worth shrinking, and pulling a scale towards zero
    works against the norm itself.

    Args:
        network: whose parameters with ``requires_grad`` are optimised.
        config: which optimizer and its numbers.
        lr: peak learning rate; ``config.lr`` may say "auto".
    """
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in trainable if parameter.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {
            "params": [parameter for parameter in trainable if parameter.ndim <= 1],
            "weight_decay": 0.0,
        },
    ]
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr, config.momentum, nesterov=config.nesterov)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr, RMSPROP_DECAY, momentum=config.momentum)
        case "adam":
            return torch.optim.Adam(groups, lr, betas=(config.momentum, 0.999))
        case "adamw":
            return torch.optim.AdamW(groups, lr, betas=(config.momentum, 0.999))
