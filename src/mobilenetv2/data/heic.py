"""HEIC, as iPhones save photos: decoded by pillow-heif, where that is installed.

It is an extra because its packages carry an encoder under the GPL.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from mobilenetv2.data.unreadable import UnreadablePicture
from mobilenetv2.extras import pip_install

_BRANDS = frozenset(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split())


def is_heic(file: BinaryIO) -> bool:
    """Whether an open file says that it is HEIC; leaves it at its beginning."""
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


def open_heic(file: BinaryIO, path: Path) -> Image.Image:
    """The picture of an open HEIC file, upright, not decoded yet.

    Args:
        file: At its beginning.
        path: For messages.

    Raises:
        UnreadablePicture: pillow-heif is not installed, or not whole.
    """
    try:
        # The class itself: registered with Pillow, it would decode for the whole process.
        from pillow_heif import HeifImageFile

        image: Image.Image = HeifImageFile(file)  # type: ignore[no-untyped-call]
    except ImportError as error:
        ways_out = f"repair pillow-heif ({error})" if heic_version() else pip_install("heic")
        reason = f"HEIC: convert it to JPEG, or {ways_out}"
        raise UnreadablePicture(path, reason, "not_a_picture") from None
    return image


def heic_version() -> str:
    """The version of pillow-heif, which may decide what comes out; empty without it."""
    try:
        return version("pillow-heif")
    except PackageNotFoundError:
        return ""
