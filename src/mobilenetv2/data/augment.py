"""Augmentation of a whole batch at once, with a fresh draw for every picture.

Geometry (crop, shift, rotation, zoom, shear, flip) is one affine map per picture, sampled once,
also to another size than evaluation sees (Touvron et al. 2019, "Fixing the train-test resolution
discrepancy"). Black comes in from outside the picture. Draws are keyed, see
:mod:`mobilenetv2.data.draws`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenetv2.config import AugmentConfig
from mobilenetv2.data.draws import uniform
from mobilenetv2.data.trivial_augment import DRAWS as TRIVIAL_DRAWS
from mobilenetv2.data.trivial_augment import moved, recoloured
from mobilenetv2.distributed import Share
from mobilenetv2.errors import ConfigError

# Numbers per picture. Nine are for geometry, then three for colour and five for the erased box, the
# rest for TrivialAugment. A number does not depend on how many follow it.
_FOR_GEOMETRY, _FOR_ALL_BUT_TRIVIAL, _FOR_ALL = 9, 17, 17 + TRIVIAL_DRAWS


class Batch(NamedTuple):
    """Pictures on their way into the network, and what they show.

    ``pictures`` is N×C×H×W in 0…255 (uint8, or float32 once something was interpolated). Where two
    pictures were mixed, the loss is ``weight`` × loss on ``labels`` + the rest on ``other_labels``.
    ``share`` says which part of a divided batch this is.
    """

    pictures: Tensor
    labels: Tensor
    other_labels: Tensor | None = None
    weight: float | Tensor = 1.0
    share: Share | None = None


def changed(
    pictures: Tensor,
    size: tuple[int, int],
    indices: Tensor,
    config: AugmentConfig,
    seed: int,
    epoch: int,
) -> Tensor:
    """Pictures with every configured change that each of them has by itself, in any company.

    Args:
        pictures: uint8 N×C×H×W, perhaps with a margin around what is evaluated.
        size: height and width that evaluation sees: without changes, the centre of that size,
            brought to ``config.train_size``.
        indices: int64 N, what the draws are keyed on: the pictures' places in their set.
        config: what to change and how much.
        seed: of the run; every picture's draws follow from it, the epoch, and its place.
        epoch: counted from 0.
    """
    draws = uniform(seed, epoch, indices, _draws_for(config))
    seen = train_size(config, size)
    if not _moves(config) and seen == size:
        pictures = centre(pictures, size)
    elif _by_whole_pixels(config) and seen == size and _has_centre(pictures, size):
        pictures = _shifted(pictures, size, draws, config)
    else:
        pictures = _affine(pictures, size, seen, draws, config)
    if config.colour_jitter:
        pictures = _jitter_colour(pictures, draws[:, 9:12], config.colour_jitter)
    if config.trivial:
        pictures = recoloured(pictures, draws[:, 17:])
    if config.erase:
        pictures = _erase(pictures, draws[:, 12:17], config.erase)
    return pictures


def train_size(config: AugmentConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width that the network sees in training, where evaluation sees ``size``.

    Raises:
        ConfigError: it is less than half of that: sampling would skip pixels.

    >>> train_size(AugmentConfig(train_size=24), (32, 48))
    (24, 36)
    """
    side = config.train_size
    if side is None:
        return size
    if isinstance(side, int):
        height, width = (round(side * length / min(size)) for length in size)
    else:
        height, width = side
    if 2 * height < size[0] or 2 * width < size[1]:
        raise ConfigError(
            f"--train-size: {height}×{width} is less than half of the {size[0]}×{size[1]} pixels "
            "that evaluation sees; take more, or a smaller --image-size"
        )
    return height, width


def centre(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of pictures N×C×H×W: what evaluation sees of pictures with a margin."""
    top, left = ((pictures.shape[axis] - size[axis - 2]) // 2 for axis in (2, 3))
    return pictures[:, :, top : top + size[0], left : left + size[1]]


def _moves(config: AugmentConfig) -> bool:
    return bool(
        config.shift or config.rotate or config.zoom or config.shear or config.flip
        or config.crop < 1 or config.trivial
    )  # fmt: skip


def _draws_for(config: AugmentConfig) -> int:
    if config.trivial:
        return _FOR_ALL
    return _FOR_ALL_BUT_TRIVIAL if config.erase or config.colour_jitter else _FOR_GEOMETRY


def _turns(config: AugmentConfig) -> bool:
    return bool(config.rotate or config.zoom or config.shear)


def _by_whole_pixels(config: AugmentConfig) -> bool:
    return not (_turns(config) or config.crop < 1 or config.trivial)


def _has_centre(pictures: Tensor, size: tuple[int, int]) -> bool:
    """Whether the margins on both sides have the same number of pixels."""
    return all((pictures.shape[axis] - size[axis - 2]) % 2 == 0 for axis in (2, 3))


def _shifted(
    pictures: Tensor, size: tuple[int, int], draws: Tensor, config: AugmentConfig
) -> Tensor:
    """As :func:`_affine` where pixels are only moved and mirrored, but exact, and sooner: bytes."""
    rows, columns = (
        torch.arange(side, device=pictures.device) + (pictures.shape[axis] - side) // 2
        for axis, side in zip((2, 3), size, strict=True)
    )
    right, down = _shift(draws, size, config)
    mirrors = (draws[:, 5:6] < 0.5) & config.flip
    columns = torch.where(mirrors, columns.flip(0), columns) + right.long()[:, None]
    rows = rows + down.long()[:, None]
    # A frame of black for what lies outside.
    framed = F.pad(pictures, (1, 1, 1, 1))
    height, width = framed.shape[2:]
    rows, columns = (rows + 1).clamp(0, height - 1), (columns + 1).clamp(0, width - 1)
    places = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    places = places[:, None].expand(-1, pictures.shape[1], -1)
    return framed.flatten(2).gather(2, places).view(*pictures.shape[:2], *size)


def _shift(draws: Tensor, size: tuple[int, int], config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """How far to the right and down a picture looks, float32 N each."""
    height, width = size
    between = draws * 2 - 1  # in [-1, 1)
    right, down = between[:, 3] * config.shift * width, between[:, 4] * config.shift * height
    if not _turns(config):
        # Whole pixels: where the size stays, nothing is blurred.
        right, down = right.round(), down.round()
    return right, down


def _affine(
    pictures: Tensor,
    size: tuple[int, int],
    seen: tuple[int, int],
    draws: Tensor,
    config: AugmentConfig,
) -> Tensor:
    """Crop, shift, rotation, zoom, shear and mirror in one sampling, to pictures as ``seen``.

    A place in a picture of ``size``, in pixels from its centre, is first turned, slanted, zoomed
    and mirrored, then stretched to the crop box, then moved: that is where it looks in the input.
    """
    height, width = size
    in_height, in_width = pictures.shape[-2:]
    between = draws * 2 - 1  # in [-1, 1)
    angle = between[:, 0] * math.radians(config.rotate)
    slant = torch.tan(between[:, 1] * math.radians(config.shear))
    scale = 1 + between[:, 2] * config.zoom
    mirror = torch.where(draws[:, 5] < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(angle)
    right, down = _shift(draws, size, config)
    stretch_x = stretch_y = torch.ones_like(angle)
    if config.crop < 1:
        box_width, box_height = _crop_box(draws[:, 6:8], in_width, in_height, config.crop)
        stretch_x, stretch_y = box_width / width, box_height / height
        right = right * stretch_x + between[:, 3] * (in_width - box_width) / 2
        down = down * stretch_y + between[:, 4] * (in_height - box_height) / 2

    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    matrix = torch.stack(
        [
            stretch_x * mirror * cos, stretch_x * mirror * (cos * slant - sin), right,
            stretch_y * sin, stretch_y * (sin * slant + cos), down,
        ],
        dim=1,
    ).view(-1, 2, 3)  # fmt: skip
    if config.trivial:  # happens to what the rest makes, so the way back begins with it
        last = moved(draws[:, 17:], height, width)
        matrix[:, :, 2:] += matrix[:, :, :2] @ last[:, :, 2:]
        matrix[:, :, :2] @= last[:, :, :2]
    # affine_grid and grid_sample count from -1 to 1 across each side, of output and input.
    # Each number by itself: a GPU would have to wait for a tensor of them.
    matrix[:, :, 0] *= width / 2
    matrix[:, :, 1] *= height / 2
    matrix[:, 0] /= in_width / 2
    matrix[:, 1] /= in_height / 2
    grid = F.affine_grid(matrix, [*pictures.shape[:2], *seen], align_corners=False)
    return F.grid_sample(pictures.float(), grid, align_corners=False)


def _crop_box(draws: Tensor, width: int, height: int, least: float) -> tuple[Tensor, Tensor]:
    """Sides of a box with a random share of the area and a shape between 3:4 and 4:3."""
    area = (least + draws[:, 0] * (1 - least)) * width * height
    shape = torch.exp((draws[:, 1] * 2 - 1) * math.log(4 / 3))
    return (area * shape).sqrt().clamp(max=width), (area / shape).sqrt().clamp(max=height)


def _jitter_colour(pictures: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Brightness, contrast and saturation, each by a factor of 1 ± strength."""
    factors = (1 + (draws * 2 - 1) * strength)[:, :, None, None, None]
    brightness, contrast, saturation = factors.unbind(1)
    pictures = pictures.float() * brightness
    mean = pictures.mean((1, 2, 3), keepdim=True)
    pictures = mean + (pictures - mean) * contrast
    grey = pictures.mean(1, keepdim=True)
    return (grey + (pictures - grey) * saturation).clamp(0, 255)


def _erase(pictures: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Blank a box of 2 to 33 % of the area, sides between 1:3 and 3:1 (Zhong et al. 2017)."""
    height, width = pictures.shape[-2:]
    area = 0.02 + draws[:, 1] * (0.33 - 0.02)
    stretch = torch.exp((draws[:, 2] * 2 - 1) * math.log(3) / 2)
    box_height = (area.sqrt() * stretch).clamp(max=1) * height
    box_width = (area.sqrt() / stretch).clamp(max=1) * width
    top = draws[:, 3] * (height - box_height)
    left = draws[:, 4] * (width - box_width)
    rows = torch.arange(height, device=pictures.device) + 0.5
    columns = torch.arange(width, device=pictures.device) + 0.5
    in_rows = (rows >= top[:, None]) & (rows < (top + box_height)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + box_width)[:, None])
    chosen = draws[:, 0] < probability
    box = in_rows[:, None, :, None] & in_columns[:, None, None, :] & chosen[:, None, None, None]
    return pictures.masked_fill(box, 0)


def mixed(batch: Batch, config: AugmentConfig, key: tuple[int, int, int]) -> Batch:
    """Mixup or cutmix with the batch in reverse order; where both are on, a coin per batch.

    The one draw that a batch has follows from the ``key``: seed, epoch and step in the epoch, the
    last two counted from 0.
    """
    if not (config.mixup or config.cutmix) or len(batch.labels) < 2:
        return batch
    random = np.random.default_rng(key)
    cut = bool(config.cutmix) and (not config.mixup or random.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    weight = float(random.beta(alpha, alpha))
    others = batch.pictures.flip(0)
    if not cut:
        sums = batch.pictures.float() * weight + others.float() * (1 - weight)
        return batch._replace(pictures=sums, other_labels=batch.labels.flip(0), weight=weight)

    height, width = batch.pictures.shape[-2:]
    box_height, box_width = (round(side * math.sqrt(1 - weight)) for side in (height, width))
    top = int(random.integers(0, height - box_height + 1))
    left = int(random.integers(0, width - box_width + 1))
    pictures = batch.pictures.clone()
    box = (..., slice(top, top + box_height), slice(left, left + box_width))
    pictures[box] = others[box]
    kept = 1 - box_height * box_width / (height * width)
    return batch._replace(pictures=pictures, other_labels=batch.labels.flip(0), weight=kept)
