"""Augmentation of a whole batch at once, with a fresh draw for every picture.

Geometry (shift, rotation, zoom, shear, flip) is one affine map per picture, sampled once. What
leaves the picture comes in black. Draws are keyed, see :mod:`mobilenetv2.data.draws`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenetv2.config import AugmentConfig
from mobilenetv2.data.draws import uniform

_DRAWS = 16  # numbers per picture: six for geometry, three for colour, five for the erased box


class Batch(NamedTuple):
    """Pictures on their way into the network, and what they show.

    ``pictures`` is N×C×H×W in 0…255 (uint8, or float32 once something was interpolated). Where two
    pictures were mixed, the loss is ``weight`` × loss on ``labels`` + the rest on ``other_labels``.
    """

    pictures: Tensor
    labels: Tensor
    other_labels: Tensor | None = None
    weight: float = 1.0


def augment(
    batch: Batch, indices: Tensor, config: AugmentConfig, seed: int, epoch: int, step: int
) -> Batch:
    """The batch with every configured change applied.

    Args:
        batch: pictures uint8 N×C×H×W and labels int64 N.
        indices: int64 N, the pictures' places in their set; with seed and epoch they key the draws.
        config: what to change and how much.
        seed: of the run.
        epoch: counted from 0.
        step: counted from 0 within the epoch; keys the one draw that mixing makes per batch.
    """
    draws = uniform(seed, epoch, indices, _DRAWS)
    pictures = batch.pictures
    if _moves(config):
        pictures = _affine(pictures, draws[:, :6], config)
    if config.colour_jitter:
        pictures = _jitter_colour(pictures, draws[:, 6:9], config.colour_jitter)
    if config.erase:
        pictures = _erase(pictures, draws[:, 9:14], config.erase)
    return _mix_pairs(batch._replace(pictures=pictures), config, [seed, epoch, step])


def _moves(config: AugmentConfig) -> bool:
    return bool(config.shift or config.rotate or config.zoom or config.shear or config.flip)


def _affine(pictures: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    height, width = pictures.shape[-2:]
    between = draws * 2 - 1  # in [-1, 1)
    angle = between[:, 0] * math.radians(config.rotate)
    slant = torch.tan(between[:, 1] * math.radians(config.shear))
    scale = 1 + between[:, 2] * config.zoom
    right, down = between[:, 3] * config.shift * width, between[:, 4] * config.shift * height
    if not (config.rotate or config.zoom or config.shear):
        right, down = right.round(), down.round()  # whole pixels: nothing is blurred
    mirror = torch.where(draws[:, 5] < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(angle)

    # Where each output pixel looks in the input, in pixels from the centre: shear, rotation, zoom.
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    matrix = torch.stack(
        [mirror * cos, mirror * (cos * slant - sin), right, sin, sin * slant + cos, down], dim=1
    ).view(-1, 2, 3)
    # affine_grid counts from -1 to 1 across each side.
    half = torch.tensor([width / 2, height / 2], device=pictures.device)
    matrix[:, :, 2] = matrix[:, :, 2] / half
    matrix[:, 0, 1] *= height / width
    matrix[:, 1, 0] *= width / height
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures.float(), grid, align_corners=False)


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


def _mix_pairs(batch: Batch, config: AugmentConfig, key: list[int]) -> Batch:
    """Mixup or cutmix with the batch in reverse order; where both are on, a coin per batch."""
    if not (config.mixup or config.cutmix) or len(batch.labels) < 2:
        return batch
    random = np.random.default_rng(key)
    cut = bool(config.cutmix) and (not config.mixup or random.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    weight = float(random.beta(alpha, alpha))
    others = batch.pictures.flip(0)
    if not cut:
        mixed = batch.pictures.float() * weight + others.float() * (1 - weight)
        return Batch(mixed, batch.labels, batch.labels.flip(0), weight)

    height, width = batch.pictures.shape[-2:]
    box_height, box_width = (round(side * math.sqrt(1 - weight)) for side in (height, width))
    top = int(random.integers(0, height - box_height + 1))
    left = int(random.integers(0, width - box_width + 1))
    pictures = batch.pictures.clone()
    box = (..., slice(top, top + box_height), slice(left, left + box_width))
    pictures[box] = others[box]
    kept = 1 - box_height * box_width / (height * width)
    return Batch(pictures, batch.labels, batch.labels.flip(0), kept)
