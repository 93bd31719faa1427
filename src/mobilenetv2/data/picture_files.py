"""Picture files as a set of tensors: decoded side by side, each by the same road."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from mobilenetv2.config import CacheConfig, Preprocessing
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.data.examination import PictureReport
from mobilenetv2.data.fingerprints import file_digest
from mobilenetv2.data.kept_pictures import KeptPictures
from mobilenetv2.data.many_files import in_order, threads_for
from mobilenetv2.data.named_sets import Array
from mobilenetv2.data.picture_cache import cached, memory_limit
from mobilenetv2.data.pictures import (
    Colour,
    decode,
    open_file,
    to_array,
    to_colour,
)
from mobilenetv2.data.resizing import resize_and_crop
from mobilenetv2.data.unreadable import UnreadablePicture, as_unreadable


def load_files(
    pictures: Sequence[PictureReport],
    wanted: Preprocessing,
    cache: CacheConfig,
    kept: KeptPictures | None = None,
) -> LabelledPictures:
    """Decode the files of an examination that are usable.

    Args:
        pictures: what to read, with labels.
        wanted: the way from a file to the network's input.
        cache: how much may lie in memory, and where the rest goes.
        kept: what the examination has decoded already.

    Returns:
        uint8 N×C×H×W, with labels and file names.

    Raises:
        UnreadablePicture: a file has gone or changed since it was examined.
        DataError: the pictures fit neither into memory nor into the cache.
    """
    shape = (len(pictures), wanted.channels, wanted.height, wanted.width)
    decoded = _decoded(pictures, wanted, kept)
    if math.prod(shape) <= memory_limit(cache):
        stacked = np.empty(shape, np.uint8)
        for index, pixels in enumerate(decoded):
            stacked[index] = pixels
        tensor = torch.from_numpy(stacked)
    else:
        tensor = cached(pictures, wanted, cache, decoded)
    return LabelledPictures(
        tensor,
        torch.tensor([picture.label for picture in pictures]),
        tuple(str(picture.path) for picture in pictures),
    )


def _decoded(
    pictures: Sequence[PictureReport], wanted: Preprocessing, kept: KeptPictures | None
) -> Iterator[Array]:
    """Each picture as uint8 C×H×W, in order, never more than a few at once."""
    threads = threads_for([picture.path for picture in pictures])
    yield from in_order(partial(_read_examined, wanted=wanted, kept=kept), pictures, threads)


def _read_examined(
    picture: PictureReport, wanted: Preprocessing, kept: KeptPictures | None
) -> Array:
    """A kept picture, or a file that must still be what was examined."""
    if kept is not None and (image := kept.take(picture, wanted)) is not None:
        return fit(image, wanted)
    with open_file(picture.path) as file:
        with as_unreadable(picture.path, file):
            digest = file_digest(file)
        if digest != picture.digest:
            reason = "the file has changed since it was looked at; start again"
            raise UnreadablePicture(picture.path, reason)
        return _prepared(file, picture.path, wanted)


def fit(image: Image.Image, wanted: Preprocessing) -> Array:
    """A decoded picture as the network sees it before normalisation: uint8 C×H×W."""
    image = to_colour(image, "RGB" if wanted.colour == "rgb" else "L")
    return to_array(resize_and_crop(image, wanted.height, wanted.width, wanted.resize))


def read_file(path: Path, wanted: Preprocessing) -> Array:
    """A file as the network sees it before normalisation: uint8 C×H×W.

    Raises:
        UnreadablePicture: the file is missing, broken or no picture.
    """
    with open_file(path) as file:
        return _prepared(file, path, wanted)


def _prepared(file: BinaryIO, path: Path, wanted: Preprocessing) -> Array:
    colour: Colour = "RGB" if wanted.colour == "rgb" else "L"
    _, image = decode(file, path, colour, at_least=wanted.resize)
    return to_array(resize_and_crop(image, wanted.height, wanted.width, wanted.resize))
