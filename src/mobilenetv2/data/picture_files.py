"""Picture files as a batch in memory: decoded side by side, each by the same road."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mobilenetv2.config import Preprocessing
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.data.examination import PictureReport
from mobilenetv2.data.named_sets import Array
from mobilenetv2.data.pictures import Colour, read_picture, resize_and_crop, to_array, to_colour


def load_files(pictures: Sequence[PictureReport], wanted: Preprocessing) -> LabelledPictures:
    """Decode the files of an examination that are usable.

    Args:
        pictures: what to read, with labels.
        wanted: the way from a file to the network's input.

    Returns:
        uint8 N×C×H×W, with labels and file names.

    Raises:
        UnreadablePicture: a file has gone or changed since it was examined.
    """
    shape = (len(pictures), wanted.channels, wanted.height, wanted.width)
    stacked = np.empty(shape, np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside Python's lock
        paths = [picture.path for picture in pictures]
        for index, pixels in enumerate(pool.map(partial(read_file, wanted=wanted), paths)):
            stacked[index] = pixels
    return LabelledPictures(
        torch.from_numpy(stacked),
        torch.tensor([picture.label for picture in pictures]),
        tuple(map(str, paths)),
    )


def fit(image: Image.Image, wanted: Preprocessing) -> Array:
    """A decoded picture as the network sees it before normalisation: uint8 C×H×W."""
    image = to_colour(image, "RGB" if wanted.colour == "rgb" else "L")
    return to_array(resize_and_crop(image, wanted.height, wanted.width, wanted.resize))


def read_file(path: Path, wanted: Preprocessing) -> Array:
    """A file as the network sees it before normalisation: uint8 C×H×W.

    Raises:
        UnreadablePicture: the file is missing, broken or no picture.
    """
    colour: Colour = "RGB" if wanted.colour == "rgb" else "L"
    image = read_picture(path, colour, at_least=wanted.resize)
    return to_array(resize_and_crop(image, wanted.height, wanted.width, wanted.resize))
