"""From settings to a network."""

from torch import nn

from mobilenetv2.config import NetworkConfig
from mobilenetv2.network.first_version import FirstVersion
from mobilenetv2.network.mobilenetv2 import PAPER_STRIDES, MobileNetV2, stride_plan


def complete(config: NetworkConfig, height: int, width: int) -> NetworkConfig:
    """The settings with everything written in that was left to us.

    The width multiplier is 1 unless given, the strides are the plan for pictures of ``height`` ×
    ``width`` pixels. The plain first version has neither.
    """
    if config.network == "first-version":
        return config.model_copy(update={"width": None, "strides": None})
    config = config.model_copy(update={"width": config.width or 1.0})
    if config.strides is not None:
        return config
    return config.model_copy(update={"strides": stride_plan(height, width)})


def build_network(config: NetworkConfig, num_classes: int, in_channels: int) -> nn.Module:
    """The network that ``config`` describes, freshly initialised from PyTorch's random state."""
    if config.network == "first-version":
        return FirstVersion(num_classes, in_channels)
    return MobileNetV2(
        num_classes,
        in_channels,
        config.width or 1.0,
        PAPER_STRIDES if config.strides is None else config.strides,
        dropout=config.dropout,
        padding=config.padding,
        norm_eps=config.norm_eps,
        norm_momentum=config.norm_momentum,
    )
