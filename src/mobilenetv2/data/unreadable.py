"""Files that cannot be decoded, and why, in words."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from PIL import UnidentifiedImageError

from mobilenetv2.errors import DataError

Defect = Literal["broken", "truncated", "not_a_picture", "too_large", "forbidden", "missing"]


class UnreadablePicture(DataError):  # noqa: N818 - named as the rest of errors.py
    """A file that cannot be decoded.

    Attributes:
        path: The file.
        reason: Why, in words, without the path.
        defect: Why, as one of a few kinds.
    """

    def __init__(self, path: Path, reason: str, defect: Defect = "broken") -> None:
        super().__init__(path, reason, defect)  # as arguments: survives pickling by workers
        self.path = path
        self.reason = reason
        self.defect = defect

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


_FIRST_BYTES = {
    "JPEG": b"\xff\xd8",
    "PNG": b"\x89PNG",
    "GIF": b"GIF8",
    "WebP": b"RIFF",
    "TIFF": b"II*\0",
    "BMP": b"BM",
}


@contextlib.contextmanager
def as_unreadable(path: Path, file: BinaryIO) -> Iterator[None]:
    """Turns whatever a decoder throws at a broken file into ``UnreadablePicture``."""
    defect: Defect = "broken"
    try:
        yield
    except UnreadablePicture:
        raise
    except UnidentifiedImageError:
        reason, defect = _what_else(file)
    except MemoryError:
        reason, defect = "not enough memory to decode it", "too_large"
    # Decoders fed with broken bytes raise nearly everything: SyntaxError, struct.error, zlib.error…
    except Exception as error:
        words = str(error) or type(error).__name__
        too_early = ("truncated", "end of file")
        if isinstance(error, EOFError) or any(mark in words.lower() for mark in too_early):
            reason, defect = "the file ends too early", "truncated"
        else:
            reason = words
    else:
        return
    raise UnreadablePicture(path, reason, defect) from None


def _what_else(file: BinaryIO) -> tuple[str, Defect]:
    """What a file that no decoder recognises seems to be."""
    file.seek(0)
    head = file.read(512)
    if not head:
        return "the file is empty", "not_a_picture"
    if not head.strip(b"\0"):
        return "only zeros, as after a failed copy", "not_a_picture"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, as from a failed download", "not_a_picture"
    if head.lstrip().startswith((b"<svg", b"<?xml")):
        return "SVG or XML, which has no pixels", "not_a_picture"
    for name, start in _FIRST_BYTES.items():
        if head.startswith(start):
            return f"begins like {name}, but its head is broken", "broken"
    return "not a picture, or broken from its first bytes", "not_a_picture"
