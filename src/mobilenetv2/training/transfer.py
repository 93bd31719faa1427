"""Transfer: how much of a pretrained network learns."""

from dataclasses import dataclass

import torch
from torch import nn

from mobilenetv2.config import TransferConfig
from mobilenetv2.data.sources import DataSet
from mobilenetv2.network.mobilenetv2 import MobileNetV2

ENOUGH_PER_CLASS = 20
"""Training pictures of the smallest class from which on fine-tuning is worth its time."""


@dataclass(frozen=True)
class Tuning:
    """What learns.

    Attributes:
        pretrained: whether the network starts from pretrained weights. Their batch norms keep
            their statistics, and a new head is fitted before anything else moves.
        frozen_blocks: of ``network.features``, from the first on, that do not learn.
        layer_decay: learning rate of each block as a share of the next one's.
        reason: why, for the user.
    """

    pretrained: bool = False
    frozen_blocks: int = 0
    layer_decay: float = 1.0
    reason: str = ""

    @property
    def head_only(self) -> bool:
        """Whether nothing but the classifier learns."""
        return self.frozen_blocks == BLOCKS


BLOCKS = 19
"""Blocks in ``network.features``: stem, seventeen inverted residuals, head convolution."""


def choose_tuning(config: TransferConfig, data: DataSet) -> Tuning:
    """What ``--tune`` means for these pictures."""
    if config.weights == "none":
        return Tuning()
    counts = torch.bincount(data.train.labels, minlength=len(data.classes))
    least = int(counts.min())
    tune, reason = config.tune, f"tuning: {config.tune}, as asked"
    if tune == "auto":
        tune = "all" if least >= ENOUGH_PER_CLASS else "head"
        reason = (
            f"tuning: {tune}, because the smallest class has {least} training pictures "
            f"({ENOUGH_PER_CLASS} or more are worth fine-tuning)"
        )
    frozen = BLOCKS - tune if isinstance(tune, int) else {"head": BLOCKS, "all": 0}[tune]
    return Tuning(True, frozen, config.layer_decay, reason)


def freeze(network: nn.Module, tuning: Tuning) -> None:
    """Take the parameters that do not learn out of training (in place)."""
    if tuning.pretrained:
        assert isinstance(network, MobileNetV2)
        for block in network.features[: tuning.frozen_blocks]:
            block.requires_grad_(False)


def set_train_mode(network: nn.Module, tuning: Tuning) -> None:
    """Training mode, in which pretrained batch norms keep the statistics that they came with.

    Statistics of a few hundred pictures are worse than those of a million, and small batches make
    them worse still.
    """
    network.train()
    if tuning.pretrained:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
