"""The preprocessing that suits the pictures of a set, and what was asked for."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mobilenetv2.config import DataConfig, Preprocessing
from mobilenetv2.data.colours import GREY_MODES
from mobilenetv2.data.examination import PictureReport
from mobilenetv2.data.pictures import SMALL_SIDE
from mobilenetv2.errors import ConfigError

SMALLEST_SIDE = 8

PHOTO_SIDE, PHOTO_MARGIN = 224, 32
"""The field's habit: of the shorter side, resized to 256 px, the centre 224. For other sizes the
margin is in proportion, but a multiple of 4, and so is always the one that training sees: only then
is the centre of a square with margin equal to the square that is cropped at once, whichever way an
odd pixel is rounded."""

STATISTICS_BATCH = 1000


def preprocessing_of_published(
    config: DataConfig, height: int, width: int, is_grey: bool
) -> Preprocessing:
    """For a set whose pictures all have one size; mean and deviation are measured later.

    Raises:
        ConfigError: ``--resize`` would leave black around the pictures.
    """
    target = _pair(config.image_size or (height, width))
    # Whole pictures, no crop: the shorter side is resized so that the target is covered.
    resize = math.ceil(max(target[0] / height, target[1] / width) * min(height, width))
    colour = _colour(config.colour, is_grey)
    return _unmeasured(colour, target, _resize(config, target, resize, resize))


def preprocessing_of_files(config: DataConfig, pictures: Sequence[PictureReport]) -> Preprocessing:
    """Size and colour that suit the training pictures; mean and deviation are measured later.

    Raises:
        ConfigError: ``--resize`` would leave black around the pictures.
    """
    sizes = [(picture.height, picture.width) for picture in pictures]
    colour = _colour(config.colour, is_grey=all(p.mode in GREY_MODES for p in pictures))
    small = max(max(size) for size in sizes) <= SMALL_SIDE
    if config.image_size is not None:
        size = _pair(config.image_size)
    elif small:
        height, width = Counter(sizes).most_common(1)[0][0]
        size = (max(height, SMALLEST_SIDE), max(width, SMALLEST_SIDE))
    else:
        size = (PHOTO_SIDE, PHOTO_SIDE)
    default = min(size) if small else resize_of_photos(config)
    return _unmeasured(colour, size, _resize(config, size, default, min(size)))


def resize_of_photos(config: DataConfig) -> int:
    """The shorter side, in pixels, before the centre is cropped, if the set turns out to be photos.

    Known before any file is opened; not checked.
    """
    side = min(_pair(config.image_size or PHOTO_SIDE))
    return config.resize or side + 4 * round(side * PHOTO_MARGIN / PHOTO_SIDE / 4)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _colour(asked: Literal["auto", "rgb", "grey"], is_grey: bool) -> Literal["rgb", "grey"]:
    if asked == "auto":
        return "grey" if is_grey else "rgb"
    return asked


def _unmeasured(
    colour: Literal["rgb", "grey"], size: tuple[int, int], resize: int
) -> Preprocessing:
    """Preprocessing whose mean and deviation wait for the pictures that it makes."""
    half = (0.5,) * (3 if colour == "rgb" else 1)
    return Preprocessing(
        colour=colour, height=size[0], width=size[1], resize=resize, mean=half, std=half
    )


def with_statistics(wanted: Preprocessing, pictures: Tensor) -> Preprocessing:
    """With mean and standard deviation of each channel of ``pictures``, uint8 N×C×H×W.

    In units of 0…1, to four digits; exact, from counts of the 256 values.
    """
    mean, std = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(pictures.shape[1]):
        counts = torch.zeros(256, dtype=torch.float64)
        for some in pictures[:, channel].split(STATISTICS_BATCH):
            counts += torch.bincount(some.flatten(), minlength=256)
        shares = counts / counts.sum()
        mean.append(float((shares * values).sum()))
        std.append(float((shares * (values - mean[-1]) ** 2).sum().sqrt()))
    rounded = {
        "mean": tuple(round(number, 4) for number in mean),
        "std": tuple(max(round(number, 4), 1e-3) for number in std),
    }
    return wanted.model_copy(update=rounded)


def _resize(config: DataConfig, size: tuple[int, int], default: int, least: int) -> int:
    """The shorter side before the centre of ``size`` is cropped."""
    if config.resize is None:
        return default
    if config.resize < least:
        raise ConfigError(
            f"--resize {config.resize}: the network sees {size[0]}×{size[1]} pixels, so black "
            f"would surround every picture; name at least {least}, or a smaller --image-size"
        )
    return config.resize
