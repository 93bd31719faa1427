"""Photos that were decoded for the doctor, kept for training: a large file is read only once.

The doctor decodes JPEGs at the smallest scale that its fingerprint allows, an eighth at most. Of
files of many megapixels that is still more than the network sees, and so the very decoding that
training would repeat, as is that of every format without reduced scales.
"""

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobilenetv2.config import Preprocessing
from mobilenetv2.data.colours import GREY_MODES
from mobilenetv2.data.examination import PictureReport
from mobilenetv2.data.fingerprints import ENOUGH_PIXELS
from mobilenetv2.data.resizing import resize_shorter_side

LONGEST = 4
"""Ratio of the sides up to which a picture is kept; most of a longer one would be cropped away."""


class KeptPictures:
    """Resized photos in memory, as long as there is room; safe to fill by several threads.

    Args:
        split: whose pictures are wanted; None for all.
        resize: length of the shorter side, in pixels.
        limit: bytes that may be kept.
    """

    def __init__(self, split: str | None, resize: int, limit: float) -> None:
        self._split = split
        self._resize = resize
        self._room = limit
        self._lock = threading.Lock()
        self._pixels: dict[Path, NDArray[np.uint8]] = {}

    def keep(self, picture: PictureReport, image: Image.Image) -> None:
        """Keep a picture, if reading its file again would decode at the same scale.

        Args:
            picture: what the doctor reports, before groups are known.
            image: of mode RGB, decoded with ``ENOUGH_PIXELS`` or more.
        """
        if self._split not in (None, picture.split) or picture.mode in GREY_MODES:
            return  # a grey set would have been decoded as such
        short, long = sorted(image.size)
        if long > LONGEST * short or not self._same_scale(picture, short):
            return
        with self._lock:
            size = 3 * self._resize * (self._resize * long // short)
            if size > self._room:
                return
            self._room -= size
        self._pixels[picture.path] = np.array(resize_shorter_side(image, self._resize))

    def _same_scale(self, picture: PictureReport, short: int) -> bool:
        """Whether Pillow, asked for ``resize`` pixels, would come to the doctor's scale as well.

        Of 1/8, 1/4, 1/2 and 1 it takes the first 1/s for which the shorter side holds s times what
        is asked for, rounded down; what comes out has rounded up.
        """
        side = min(picture.width, picture.height)
        return self._resize >= ENOUGH_PIXELS and side // self._resize >= round(side / short)

    def take(self, picture: PictureReport, wanted: Preprocessing) -> Image.Image | None:
        """A kept picture that needs no more than the crop, once; None if it must be read."""
        if wanted.colour != "rgb" or wanted.resize != self._resize:
            return None
        pixels = self._pixels.pop(picture.path, None)
        return None if pixels is None else Image.fromarray(pixels)
