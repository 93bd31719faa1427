"""How the learning rate moves: a pure function of the step.

A schedule is the factor on the peak learning rate before step ``k`` of ``n``; step ``n``, which no
batch uses any more, is where it ends. PyTorch's ``LambdaLR`` applies it after every batch.
"""

import math
from collections.abc import Callable

import torch

from mobilenetv2.config import ScheduleConfig

EXPONENTIAL_GAMMA = 0.98  # per epoch (paper, section 6.1)
MULTISTEP_GAMMA = 0.1


def schedule_factor(
    config: ScheduleConfig, epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """The factor as a function of the step, from 0 to ``epochs`` × ``steps_per_epoch``.

    >>> factor = schedule_factor(ScheduleConfig(warmup_epochs=1), epochs=10, steps_per_epoch=2)
    >>> [round(factor(step), 3) for step in (0, 1, 2, 11, 20)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    total = epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    milestones = config.milestones or (epochs / 2, epochs * 3 / 4)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        match config.schedule:
            case "constant":
                return 1.0
            case "cosine":
                progress = (step - warmup) / max(1, total - warmup)
                return (1 + math.cos(math.pi * min(1.0, progress))) / 2
            case "exponential":
                gamma = config.gamma or EXPONENTIAL_GAMMA
                return float(gamma ** ((step - warmup) / steps_per_epoch))
            case "multistep":
                passed = sum(step >= round(at * steps_per_epoch) for at in milestones)
                return float((config.gamma or MULTISTEP_GAMMA) ** passed)

    return factor


def build_schedule(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, epochs: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The scheduler to step once after every batch."""
    factor = schedule_factor(config, epochs, steps_per_epoch)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
