"""TrivialAugment: one random change to each picture, of random strength, and nothing to tune.

Müller and Hutter 2021, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", in its
wide form. A whole batch is done at once: what moves pixels becomes part of the batch's one affine
map, and what changes colours is applied to those pictures of the batch that drew it. Shears and
turns are around the centre.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
OPERATIONS = (
    "identity", *MOVES,
    "brightness", "colour", "contrast", "sharpness",
    "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
DRAWS = 3  # numbers per picture: which operation, how strong, in which direction

MOST_SHEAR = 0.99
MOST_SHIFT = 1 / 7  # of the side: the paper's 32 pixels of 224
MOST_DEGREES = 135
MOST_BLEND = 0.99
FEWEST_BITS = 2

LUMA = (0.299, 0.587, 0.114)


def moved(draws: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel of the result comes from, in pixels from the centre.

    Args:
        draws: N×3 in [0, 1).
        height: of the pictures.
        width: of the pictures.

    Returns:
        Affine maps N×2×3; the identity where a picture drew a change of colours.
    """
    operation, strength, sign = _decide(draws)
    amount = strength * sign
    zero, one = torch.zeros_like(amount), torch.ones_like(amount)

    def where(name: str, value: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(operation == OPERATIONS.index(name), value, otherwise)

    angle = where("rotate", amount * math.radians(MOST_DEGREES), zero)
    return torch.stack(
        [
            angle.cos(), where("shear_x", amount * MOST_SHEAR, -angle.sin()),
            where("translate_x", amount * MOST_SHIFT * width, zero),
            where("shear_y", amount * MOST_SHEAR, angle.sin()), angle.cos() * one,
            where("translate_y", amount * MOST_SHIFT * height, zero),
        ],
        dim=1,
    ).view(-1, 2, 3)  # fmt: skip


def recoloured(pictures: Tensor, draws: Tensor) -> Tensor:
    """Pictures N×C×H×W in 0…255 with their change of colours, float32.

    Args:
        pictures: uint8 or float32.
        draws: N×3 in [0, 1), the same as for :func:`moved`.
    """
    operation, strength, sign = _decide(draws)
    result = pictures.float().clone()
    for place, name in enumerate(OPERATIONS):
        chosen = (operation == place).nonzero().flatten()
        if name == "identity" or name in MOVES or not len(chosen):
            continue
        m, s = strength[chosen].view(-1, 1, 1, 1), sign[chosen].view(-1, 1, 1, 1)
        result[chosen] = _recolour(name, result[chosen], m, 1 + s * m * MOST_BLEND)
    return result


def _decide(draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each picture: the operation's place, its strength from 0 to 1, and its direction."""
    operation = (draws[:, 0] * len(OPERATIONS)).long()
    return operation, draws[:, 1], torch.where(draws[:, 2] < 0.5, -1.0, 1.0)


def _recolour(name: str, x: Tensor, strength: Tensor, factor: Tensor) -> Tensor:
    """One operation on M pictures; strength and factor are M×1×1×1."""
    from torchvision.transforms.v2 import functional

    match name:
        case "brightness":
            return (x * factor).clamp(0, 255)
        case "colour":
            return _blend(x, _grey(x), factor)
        case "contrast":
            return _blend(x, _grey(x).mean((1, 2, 3), keepdim=True), factor)
        case "sharpness":
            return _blend(x, _blurred(x), factor)
        case "posterize":
            step = 2 ** (strength * (8 - FEWEST_BITS)).round()
            return (x / step).floor() * step
        case "solarize":
            return torch.where(x >= 255 * (1 - strength), 255 - x, x)
    counted = functional.autocontrast if name == "autocontrast" else functional.equalize
    whole: Tensor = counted(x.round().clamp(0, 255).to(torch.uint8))
    return whole.float()


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """``other`` at factor 0, ``x`` at 1, and beyond."""
    return (other + (x - other) * factor).clamp(0, 255)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return x
    weights = torch.tensor(LUMA, device=x.device).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def _blurred(x: Tensor) -> Tensor:
    """Smoothed as Pillow does for sharpness; the outermost pixels stay."""
    kernel = torch.ones(3, 3, device=x.device)
    kernel[1, 1] = 5
    channels = x.shape[1]
    weights = (kernel / kernel.sum()).expand(channels, 1, 3, 3)
    blurred = x.clone()
    blurred[..., 1:-1, 1:-1] = F.conv2d(x, weights, groups=channels)
    return blurred
