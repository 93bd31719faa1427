"""Resized pictures in a file, for sets that the memory should not hold.

A file's name is a digest of everything that decides its bytes: the contents of the picture files,
in order, and how they are prepared. So a file is never stale, only unused, and those that were not
used for longest give way when room is needed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobilenetv2.cache import cache_folder
from mobilenetv2.config import CacheConfig, Preprocessing
from mobilenetv2.data.examination import PictureReport
from mobilenetv2.data.heic import heic_version
from mobilenetv2.distributed import processes_here
from mobilenetv2.errors import DataError
from mobilenetv2.files import is_left_behind, written_whole
from mobilenetv2.locks import one_at_a_time
from mobilenetv2.machine_memory import usable_memory

GIB = 1 << 30
SUFFIX = ".u8"
OURS = re.compile(r"[0-9a-f]{64}\.u8|\.[0-9a-f]{64}\.u8\..+\.part")
"""Names of the cache's files, finished and unfinished; others that lie there are not touched."""

WAYS_OUT = (
    "Allow more in memory with --memory-limit, name another place with --cache-dir, or take "
    "smaller pictures with --image-size"
)

FORMAT = 1
"""To be raised when pictures come out of the decoding otherwise than before."""


def memory_limit(config: CacheConfig) -> float:
    """Bytes of one set that may lie in memory."""
    if config.memory_limit is not None:
        return config.memory_limit * GIB
    usable = usable_memory()
    return 2 * GIB if usable is None else usable / 4 / processes_here()


def cached(
    pictures: Sequence[PictureReport],
    wanted: Preprocessing,
    config: CacheConfig,
    decoded: Iterable[NDArray[np.uint8]],
) -> Tensor:
    """Prepared pictures in a memory-mapped file, which is written if it is not there.

    Args:
        pictures: N, with digests.
        wanted: how they are prepared.
        config: place and size of the cache.
        decoded: the prepared pictures in order, uint8 C×H×W; asked for only if they are needed.

    Returns:
        uint8 N×C×H×W. Pages are read from the disk when they are looked at, and may be forgotten
        again.

    Raises:
        DataError: there is no room, or the place cannot be written.
        WorkFailed: the disk failed or filled up on the way; nothing is left behind.
    """
    shape = (len(pictures), wanted.channels, wanted.height, wanted.width)
    size = int(np.prod(shape))
    folder = config.cache_dir or cache_folder() / "pictures"
    path = folder / f"{_key(pictures, wanted)}{SUFFIX}"
    if not _is_there(path, size):
        limit = config.cache_limit * GIB
        _require_within(limit, size)
        with _usable(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path.with_suffix(".lock")):
            if not _is_there(path, size):  # else another process was first
                _make_room(folder, size, limit)
                with written_whole(path) as file:
                    for picture in decoded:
                        file.write(picture.tobytes())
    with suppress(OSError):
        os.utime(path)  # it was used just now
    try:
        flat = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:  # another user's, or it has just given way to other pictures
        raise DataError(f"{path}: cannot be read ({error}); try again. {WAYS_OUT}") from error
    return flat.view(shape)


def _key(pictures: Sequence[PictureReport], wanted: Preprocessing) -> str:
    settings = wanted.model_dump(include={"colour", "height", "width", "resize"})
    recipe = {"format": FORMAT, "pillow": PIL.__version__, **settings}
    if any(picture.format == "HEIF" for picture in pictures):
        recipe["pillow_heif"] = heic_version()
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for picture in pictures:
        digest.update(bytes.fromhex(picture.digest))
    return digest.hexdigest()


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _gib(size: float) -> str:
    gib = size / GIB
    return f"{gib:.1f}" if gib >= 1 else f"{gib:.2g}"


def _require_within(limit: float, size: int) -> None:
    if size > limit:
        raise DataError(
            f"the resized pictures take {_gib(size)} GiB, and --cache-limit allows "
            f"{_gib(limit)}; raise it. {WAYS_OUT}"
        )


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Turns what a folder refuses into words."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"--cache-dir {folder}: cannot be used ({reason}). {WAYS_OUT}") from error


def _make_room(folder: Path, size: int, limit: float) -> None:
    """Removes what was not used for longest until ``size`` bytes more are within ``limit``."""
    with _usable(folder):
        files = sorted(_finished(folder), key=lambda file: file[1])
        taken = sum(file_size for _, _, file_size in files)
        for path, _, file_size in files:
            if taken + size <= limit:
                break
            path.unlink(missing_ok=True)
            taken -= file_size
        free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            f"the resized pictures take {_gib(size)} GiB, and {folder} has only "
            f"{_gib(free)} free. {WAYS_OUT}"
        )


def _finished(folder: Path) -> Iterator[tuple[Path, float, int]]:
    """The cache's files with the time of their last use and their size.

    Leftovers of writers that were killed are removed on the way.
    """
    for path in folder.iterdir():
        if not OURS.fullmatch(path.name):
            continue
        try:
            status = path.stat()
            if path.suffix == SUFFIX:
                yield path, status.st_mtime, status.st_size
            elif is_left_behind(path):
                path.unlink()
        except FileNotFoundError:  # another process made room too
            continue
