"""Weights, and what a network must be like for them to be right."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mobilenetv2.errors import ModelFileError
from mobilenetv2.network.mobilenetv2 import Padding

Convention = Literal["torchvision", "keras"]


@dataclass(frozen=True)
class WeightsInfo:
    """What a network and its preprocessing must be like for the weights to be right.

    Attributes:
        origin: where the weights are from, for people.
        licence: of the weights; None where unknown.
        width: multiplier of the channels.
        in_channels: of the pictures.
        num_classes: of the classifier; None where the weights have none.
        strides: of the stem and the seven stages; None where unknown.
        padding: option of :class:`MobileNetV2`.
        norm_eps: option of :class:`MobileNetV2`.
        mean: to be subtracted from pixels in [0, 1], one per channel.
        std: to divide by after that.
        image_size: side of the pictures in training; None where unknown.
        resize_size: shorter side before the centre crop to ``image_size``; None where unknown.
        guessed: whether padding, epsilon and normalisation are torchvision's for want of a word.
    """

    origin: str
    licence: str | None = None
    width: float = 1.0
    in_channels: int = 3
    num_classes: int | None = None
    strides: tuple[int, ...] | None = None
    padding: Padding = "symmetric"
    norm_eps: float = 1e-5
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    image_size: int | None = None
    resize_size: int | None = None
    guessed: bool = False

    def trained_by(self, convention: Convention) -> "WeightsInfo":
        """The same with the options that torchvision or Keras trains with."""
        if convention == "keras":
            half = (0.5, 0.5, 0.5)
            return replace(self, padding="keras", norm_eps=1e-3, mean=half, std=half)
        default = WeightsInfo(self.origin)
        return replace(self, padding="symmetric", norm_eps=1e-5, mean=default.mean, std=default.std)


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors under this network's names, and what they need."""

    info: WeightsInfo
    tensors: Mapping[str, Tensor]


def to_grey(weights: Weights) -> Weights:
    """RGB weights for grey pictures: the answer is that for the grey picture's RGB copy.

    With the means m_c and deviations s_c of the three channels, a grey value g reaches the stem as
    (g - m_c) / s_c. Normalised once, z = (g - m) / s with the channels' average m and s, the same
    sum is the kernel Σ s / s_c · w_c over z, plus the constant Σ (m - m_c) / s_c · w_c, which the
    running mean of the batch norm behind the stem takes up.

    For Keras' normalisation the constant is zero and the answers are equal. For torchvision's they
    are equal but for the pictures' outermost pixels: padding adds zeros, the average colour, and
    that is not grey there. Measured on 40 photos with trained weights of width 0.35, that moved the
    pooled features by 1.2 % at 224 px and by 2.9 % at 96 px.
    """
    info = weights.info
    mean, std = torch.tensor([info.mean, info.std], dtype=torch.float64)
    kernel = weights.tensors["features.0.0.weight"].double()
    scale = (std.mean() / std).view(1, -1, 1, 1)
    shift = ((mean.mean() - mean) / std).view(1, -1, 1, 1)
    constant = (kernel * shift).sum((1, 2, 3))
    tensors = dict(weights.tensors)
    tensors["features.0.0.weight"] = (kernel * scale).sum(1, keepdim=True).float()
    tensors["features.0.1.running_mean"] = (
        weights.tensors["features.0.1.running_mean"] - constant
    ).float()
    return Weights(averaged(info, 1), tensors)


def for_channels(weights: Weights, channels: int) -> Weights:
    """The weights for pictures of 1 or 3 channels; those for colour can be made grey.

    Raises:
        ModelFileError: those for grey were given colour.
    """
    if weights.info.in_channels == channels:
        return weights
    if weights.info.in_channels == 3 and channels == 1:
        return to_grey(weights)
    raise ModelFileError(
        f"{weights.info.origin} has weights for pictures of {weights.info.in_channels} channels, "
        f"not of {channels}{'; add --colour grey' if weights.info.in_channels == 1 else ''}."
    )


def averaged(info: WeightsInfo, channels: int) -> WeightsInfo:
    """One normalisation for all of ``channels``: the average of the RGB channels'."""
    mean, std = sum(info.mean) / len(info.mean), sum(info.std) / len(info.std)
    return replace(info, in_channels=channels, mean=(mean,) * channels, std=(std,) * channels)
