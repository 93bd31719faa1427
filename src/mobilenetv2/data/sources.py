"""Named data sets and folders of pictures, ready for training and measuring.

Whatever the source, what comes out is the same: pictures in memory as uint8, divided into training,
validation and test, with the preprocessing that made them. Small sets (MNIST: 47 MB) stay there for
the whole run.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilenetv2.config import DataConfig, Preprocessing, suggestion
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.data.folders import PictureFile, PictureFolder, scan_folder
from mobilenetv2.data.named_sets import NAMES, Array, NamedSet, read_named_set
from mobilenetv2.data.pictures import (
    UnreadablePicture,
    read_picture,
    resize_and_crop,
    to_array,
    to_colour,
)
from mobilenetv2.data.splits import content_split, stratified_split
from mobilenetv2.errors import DataError

SMALL_SIDE = 96
"""Pictures up to this side keep their own size; larger ones are photos and become 224 px."""

PHOTO_SIDE, PHOTO_RESIZE = 224, 256  # the field's habit: the centre 7/8 of the shorter side


@dataclass(frozen=True)
class DataSet:
    """Pictures divided for training, validation and test, and how they were prepared.

    Attributes:
        name: as the user said it.
        classes: class names in the order of the labels.
        train: what the network learns from.
        val: what decides between epochs; no picture of it is in ``train``.
        test: touched once, at the end; None where the data brings none.
        preprocessing: the way from a picture file to the network's input.
        left_out: files that could not be used, each with its reason.
    """

    name: str
    classes: tuple[str, ...]
    train: LabelledPictures
    val: LabelledPictures
    test: LabelledPictures | None
    preprocessing: Preprocessing
    left_out: tuple[str, ...] = field(default=())


def load_data(config: DataConfig, preprocessing: Preprocessing | None = None) -> DataSet:
    """The data set that ``config`` names, divided for training.

    Args:
        config: name or folder, and how to divide it.
        preprocessing: of an existing classifier; if left out, it is derived from the settings and
            the training pictures.

    Raises:
        DataError: unknown name, missing or damaged files, or a folder without classes.
    """
    if config.data in NAMES:
        return _load_named(config, read_named_set(config), preprocessing)
    return _load_folder(config, _scan(config), preprocessing)


def load_for_measuring(
    config: DataConfig, preprocessing: Preprocessing, labels: Sequence[str]
) -> tuple[str, LabelledPictures]:
    """Pictures to measure an existing classifier on, each counted once.

    A named set gives its test set. A folder gives `test/`, else `val/`, else everything in it.

    Args:
        config: name or folder.
        preprocessing: the classifier's.
        labels: the classifier's; the pictures' labels are places in it.

    Returns:
        What the set is called ("test", "validation" or "all"), and the pictures.

    Raises:
        DataError: as :func:`load_data`, or the classifier doesn't know a class.
    """
    if config.data in NAMES:
        raw = read_named_set(config)
        pictures, numbers = raw.test
        places = _places(raw.classes, labels, config.data)
        return "test", LabelledPictures(_prepare(pictures, preprocessing), places[numbers])
    folder = _scan(config)
    places = _places(folder.classes, labels, config.data)
    name, files = next(
        (name, files)
        for name, files in (
            ("test", folder.test), ("validation", folder.val), ("all", folder.train)
        )
        if files is not None
    )  # fmt: skip
    read, left_out = _read_files(files, preprocessing)
    if left_out:
        raise DataError(
            f"{config.data}: {len(left_out)} files cannot be read, so not every picture can be "
            "counted:\n  " + "\n  ".join(left_out[:20])
        )
    return name, LabelledPictures(read.pictures, places[read.labels], read.names)


def _places(classes: Sequence[str], labels: Sequence[str], data: str) -> Tensor:
    """Where each of ``classes`` stands among the classifier's ``labels``: int64."""
    unknown = [name for name in classes if name not in labels]
    if unknown:
        raise DataError(
            f"{data}: the classifier does not know the class {unknown[0]!r}"
            f"{suggestion(unknown[0], labels)} (it knows {', '.join(labels[:10])}"
            f"{', …' if len(labels) > 10 else ''})"
        )
    return torch.tensor([labels.index(name) for name in classes])


# --------------------------------------------------------------------- named sets


def _load_named(config: DataConfig, raw: NamedSet, preprocessing: Preprocessing | None) -> DataSet:
    pictures, labels = raw.train
    height, width = pictures.shape[1:3]
    train_at, val_at = stratified_split(labels, config.val_fraction, config.split_seed)
    if preprocessing is None:
        colour = _colour(config.colour, is_grey=pictures.ndim == 3)
        size = config.image_size or (height, width)
        target = (size, size) if isinstance(size, int) else size
        # Whole pictures, no crop: the shorter side is resized so that the target is covered.
        resize = math.ceil(max(target[0] / height, target[1] / width) * min(height, width))
        mean, std = _statistics(pictures[train_at], colour)
        preprocessing = Preprocessing(
            colour=colour, height=target[0], width=target[1], resize=resize, mean=mean, std=std
        )

    def labelled(pictures: Array, labels: Array) -> LabelledPictures:
        return LabelledPictures(_prepare(pictures, preprocessing), torch.from_numpy(labels))

    return DataSet(
        config.data,
        raw.classes,
        labelled(pictures[train_at], labels[train_at]),
        labelled(pictures[val_at], labels[val_at]),
        labelled(*raw.test),
        preprocessing,
    )


def _prepare(pictures: Array, wanted: Preprocessing) -> Tensor:
    """Published arrays to uint8 N×C×H×W, by the same road as a file where anything changes."""
    grey = pictures.ndim == 3
    unchanged = (wanted.height, wanted.width) == pictures.shape[1:3] and (
        wanted.resize == min(wanted.height, wanted.width)
    )
    if unchanged and grey == (wanted.colour == "grey"):
        stacked = pictures[:, None] if grey else pictures.transpose(0, 3, 1, 2)
        return torch.from_numpy(stacked.copy())
    images = (Image.fromarray(picture) for picture in pictures)
    return torch.from_numpy(np.stack([_fit(image, wanted) for image in images]))


def _fit(image: Image.Image, wanted: Preprocessing) -> Array:
    image = to_colour(image, "RGB" if wanted.colour == "rgb" else "L")
    return to_array(resize_and_crop(image, wanted.height, wanted.width, wanted.resize))


# ------------------------------------------------------------------------ folders


def _scan(config: DataConfig) -> PictureFolder:
    folder = Path(config.data)
    if not folder.exists():
        raise DataError(
            f"{config.data}: neither a folder nor a known data set ({', '.join(NAMES)})"
            f"{suggestion(config.data, NAMES)}"
        )
    return scan_folder(folder)


def _load_folder(
    config: DataConfig, folder: PictureFolder, preprocessing: Preprocessing | None
) -> DataSet:
    derive = preprocessing is None
    if preprocessing is None:
        preprocessing = _derive_preprocessing(config, folder)
    train, left_out = _read_files(folder.train, preprocessing)
    if folder.val is None:
        groups = [_digest(picture) for picture in train.pictures]
        train_at, val_at = content_split(
            groups, train.labels.tolist(), config.val_fraction, config.split_seed
        )
        train, val = (train.select(torch.from_numpy(at)) for at in (train_at, val_at))
    else:
        val, more = _read_files(folder.val, preprocessing)
        left_out += more
    test = None
    if folder.test is not None:
        test, more = _read_files(folder.test, preprocessing)
        left_out += more
    if derive:
        by_channel = train.pictures.transpose(1, 3).numpy()
        mean, std = _statistics(by_channel, preprocessing.colour)
        preprocessing = preprocessing.model_copy(update={"mean": mean, "std": std})
    name = config.data
    return DataSet(name, folder.classes, train, val, test, preprocessing, tuple(left_out))


def _read_files(
    files: Sequence[PictureFile], wanted: Preprocessing
) -> tuple[LabelledPictures, list[str]]:
    """Decode files side by side; what cannot be decoded is left out and named."""

    def read(file: PictureFile) -> Array | str:
        try:
            image = read_picture(
                file.path, "RGB" if wanted.colour == "rgb" else "L", at_least=wanted.resize
            )
        except UnreadablePicture as error:
            return str(error)
        return _fit(image, wanted)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside Python's lock
        results = list(pool.map(read, files))
    kept = [(file, picture) for file, picture in zip(files, results, strict=True)
            if not isinstance(picture, str)]  # fmt: skip
    left_out = [reason for reason in results if isinstance(reason, str)]
    if not kept:
        raise DataError("no picture can be read:\n  " + "\n  ".join(left_out[:20]))
    return (
        LabelledPictures(
            torch.from_numpy(np.stack([picture for _, picture in kept])),
            torch.tensor([file.label for file, _ in kept]),
            tuple(str(file.path) for file, _ in kept),
        ),
        left_out,
    )


def _derive_preprocessing(config: DataConfig, folder: PictureFolder) -> Preprocessing:
    """Size and colour that suit the training pictures, from what the files say of themselves."""
    sizes, grey = [], True
    for file in folder.train:
        try:
            with Image.open(file.path) as image:
                sizes.append((image.height, image.width))
                grey = grey and image.mode in ("1", "L", "I;16")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # will be left out, with its reason, when it is decoded
    colour = _colour(config.colour, is_grey=grey)
    if config.image_size is not None:
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        photo = min(height, width) > SMALL_SIDE
        resize = round(min(height, width) * PHOTO_RESIZE / PHOTO_SIDE) if photo else 0
    elif sizes and max(map(max, sizes)) <= SMALL_SIDE:
        height, width = max(set(sizes), key=sizes.count)
        resize = 0
    else:
        height = width = PHOTO_SIDE
        resize = PHOTO_RESIZE
    channels = 3 if colour == "rgb" else 1
    return Preprocessing(
        colour=colour,
        height=height,
        width=width,
        resize=resize or min(height, width),
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )


def _digest(picture: Tensor) -> str:
    return hashlib.sha256(picture.numpy().tobytes()).hexdigest()


# -------------------------------------------------------------------------- both


def _colour(asked: Literal["auto", "rgb", "grey"], is_grey: bool) -> Literal["rgb", "grey"]:
    if asked == "auto":
        return "grey" if is_grey else "rgb"
    return asked


def _statistics(
    pictures: Array, colour: Literal["rgb", "grey"]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of 0…1, to four digits.

    Args:
        pictures: uint8, the channels last where there are three.
        colour: what the network sees.
    """
    if pictures.ndim == 3 or pictures.shape[-1] == 1 or colour == "grey":
        channels = [pictures]
    else:
        channels = [pictures[..., channel] for channel in range(3)]
    mean = tuple(round(float(channel.mean(dtype=np.float64)) / 255, 4) for channel in channels)
    std = tuple(
        max(round(float(channel.std(dtype=np.float64)) / 255, 4), 1e-3) for channel in channels
    )
    return (mean * 3, std * 3) if colour == "rgb" and len(mean) == 1 else (mean, std)
