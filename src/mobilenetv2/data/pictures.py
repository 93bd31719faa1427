"""One picture file, decoded safely and as a viewer would show it.

Everything that reads a user's pictures goes through here, so a sideways phone photo, a CMYK scan,
a 16-bit microscope picture or a transparent PNG comes out the same in training, evaluation and
prediction. What cannot be decoded raises ``UnreadablePicture``, which names path and reason.
"""

import contextlib
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mobilenetv2.data.colours import Colour, to_colour
from mobilenetv2.data.heic import is_heic, open_heic
from mobilenetv2.data.unreadable import UnreadablePicture, as_unreadable

__all__ = [
    "MAX_PIXELS",
    "PICTURE_SUFFIXES",
    "SMALL_SIDE",
    "Colour",
    "PictureHeader",
    "UnreadablePicture",
    "decode",
    "open_file",
    "read_frame",
    "read_picture",
    "to_array",
    "to_colour",
    "upright",
]

# fmt: off
PICTURE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".avif",
    ".bmp", ".dib", ".tif", ".tiff", ".pnm", ".ppm", ".pgm", ".pbm", ".heic", ".heif", ".hif",
])
# fmt: on
"""What a picture's name ends with, in lower case. HEIC is reported rather than overlooked where it
cannot be decoded."""

FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "PPM")
"""The decoders of Pillow that a file may reach. Some of the forty others start other programs."""

SMALL_SIDE = 96
"""Pictures up to this side keep their own size; larger ones are photos and become 224 px."""

MAX_PIXELS = 120_000_000
"""Larger pictures are refused before anything is decoded. The largest common sensor below it has
108 megapixels, and decoding that many takes about half a gigabyte."""

MAX_BYTES = 1 << 30
"""Larger files are refused: some decoders read a file whole."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
# Python's warning filters belong to the whole process, so two threads must not replace and restore
# them at once. Only the parsing of headers happens under this lock; decoding runs in parallel.
_warning_filters = threading.Lock()


class PictureHeader(NamedTuple):
    """What a file says about itself, before anything is converted.

    Attributes:
        format: Pillow's name of the format, such as ``"JPEG"``.
        mode: Pillow's mode, such as ``"RGB"``, ``"P"`` or ``"CMYK"``.
        width: Pixels, after turning upright.
        height: Pixels, after turning upright.
        orientation: The EXIF orientation, 1 (upright) to 8.
        sixteen_bit: Whether a channel holds more than 8 bits.
        transparent: Whether there is an alpha channel or a transparent colour.
        animated: Whether it holds more than one frame or page; only the first is used.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int
    sixteen_bit: bool
    transparent: bool
    animated: bool


def read_picture(path: Path, colour: Colour, at_least: int | None = None) -> Image.Image:
    """Decodes one file, upright and in the asked colours.

    The EXIF orientation is applied; transparency is laid on white; CMYK with an embedded profile
    is converted through it; 16-bit pictures are scaled, not clipped; animations give their first
    frame.

    Args:
        path: A picture file. It is only read.
        colour: ``"RGB"``, or ``"L"`` for grey.
        at_least: Lets JPEGs be decoded at 1/2, 1/4 or 1/8 of their size, much faster, as long as
            the shorter side stays at least this many pixels long.

    Returns:
        A picture of mode ``colour``.

    Raises:
        UnreadablePicture: The file is missing, forbidden, broken, truncated, no picture, or larger
            than ``MAX_PIXELS``.
    """
    with open_file(path) as file:
        return decode(file, path, colour, at_least)[1]


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels as a contiguous uint8 array of shape C×H×W; C is 3, or 1 for grey.

    >>> to_array(Image.new("RGB", (4, 2), "red")).shape
    (3, 2, 4)
    """
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels[None].copy()
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_frame(path: Path) -> tuple[str, tuple[int, int]]:
    """Pillow's mode and the size of a file, before turning it upright; nothing is decoded.

    Raises:
        UnreadablePicture: As of ``read_picture``, but of what lies behind the header.
    """
    with open_file(path) as file, as_unreadable(path, file):
        with _without_warnings():
            Image.init()
            image = _opened(file, path)
        return image.mode, image.size


# The two steps of read_picture, for those who also want the header or the bytes of the file.


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[BufferedReader]:
    """The file opened for reading; only regular files of at most ``MAX_BYTES``.

    Raises:
        UnreadablePicture: It is missing, forbidden, too large, or no regular file.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, once per picture
        if not stat.S_ISREG(status.st_mode):
            # Opening a named pipe would wait for ever.
            raise UnreadablePicture(path, "not a regular file", "not_a_picture")
        if status.st_size > MAX_BYTES:
            size = f"{status.st_size / 2**30:.1f} GiB"
            reason = f"the file has {size}, more than any picture should"
            raise UnreadablePicture(path, reason, "too_large")
        file = path.open("rb")
    except PermissionError:
        raise UnreadablePicture(path, "no permission to read it", "forbidden") from None
    except FileNotFoundError:
        raise UnreadablePicture(path, "the file is gone", "missing") from None
    except OSError as error:
        raise UnreadablePicture(path, f"cannot be opened: {error.strerror or error}") from None
    with file:
        yield file


def decode(
    file: BinaryIO, path: Path, colour: Colour, at_least: int | None = None
) -> tuple[PictureHeader, Image.Image]:
    """Decodes an open file as ``read_picture`` does.

    Args:
        file: At its beginning.
        path: For messages.
        colour: As in ``read_picture``.
        at_least: As in ``read_picture``.

    Returns:
        The header, and the picture, upright and of mode ``colour``.

    Raises:
        UnreadablePicture: The file is broken, truncated, no picture or too large.
    """
    with as_unreadable(path, file):
        with _without_warnings():
            Image.init()
            image = _opened(file, path)
        if image.width * image.height > MAX_PIXELS:
            raise UnreadablePicture(path, _too_large(image.width * image.height), "too_large")
        mode, size, sixteen_bit = image.mode, image.size, _sixteen_bit(image)
        orientation = _orientation(image) if image.format == "TIFF" else None
        # HEIC at reduced scale would be the preview beside the picture, sound where that is broken.
        if at_least is not None and image.format != "HEIF":
            image.draft("L" if colour == "L" else None, (at_least, at_least))
        image.load()
        if orientation is None:
            orientation = _orientation(image)
            picture = _turned(to_colour(image, colour), orientation)
            width, height = size if orientation < 5 else size[::-1]
        else:  # Pillow turns TIFF pictures by itself while it loads them
            picture = to_colour(image, colour)
            width, height = image.size
        header = PictureHeader(
            format=image.format or "",
            mode=mode,
            width=width,
            height=height,
            orientation=orientation,
            sixteen_bit=sixteen_bit,
            transparent=image.has_transparency_data,
            animated=_animated(image),
        )
        return header, picture


def _opened(file: BinaryIO, path: Path) -> Image.Image:
    try:
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        if not is_heic(file):
            raise
        return open_heic(file, path)
    except Image.DecompressionBombError as error:
        # Above Pillow's own limit, only its message tells the size.
        pixels = int("".join(filter(str.isdigit, str(error).split("pixels")[0])) or 0)
        raise UnreadablePicture(path, _too_large(pixels), "too_large") from None


def upright(image: Image.Image) -> Image.Image:
    """A picture in memory, turned as its metadata say; as it is where those are broken."""
    image.load()  # Pillow turns TIFF pictures by itself
    turned = _turned(image, _stated_orientation(image))
    turned.format = image.format  # a copy forgets it, and it tells the scale of 16-bit greys
    return turned


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    if image.format != "TIFF" and not any("exif" in k or "xmp" in k for k in map(str, image.info)):
        return 1  # most pictures; parsing nothing takes longer than decoding an icon
    return _stated_orientation(image)


def _stated_orientation(image: Image.Image) -> int:
    try:
        with _without_warnings():
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken metadata of every kind; the picture itself is fine
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _animated(image: Image.Image) -> bool:
    # Phones store depth and gain maps as further frames of a JPEG: nothing that a viewer shows.
    if image.format == "MPO":
        return False
    try:
        with _without_warnings():
            return bool(getattr(image, "is_animated", False))
    except Exception:  # what is broken lies behind the first frame
        return False


def _sixteen_bit(image: Image.Image) -> bool:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return True
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8)) > 8
    # Pillow narrows 16-bit colours to 8 while decoding; only the decoder's raw mode tells.
    arguments = image.tile[0].args if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    if image.format == "PPM" and isinstance(arguments, tuple):
        return isinstance(arguments[-1], int) and arguments[-1] > 255
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw_mode, str) and ";16" in raw_mode


def _too_large(pixels: int) -> str:
    return (
        f"{pixels / 1e6:,.0f} megapixels; pictures above {MAX_PIXELS / 1e6:.0f} are refused, "
        "as a decompression bomb would be"
    )


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences Pillow's remarks on odd metadata and size; the size is judged here."""
    with _warning_filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield
