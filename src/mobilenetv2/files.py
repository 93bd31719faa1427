"""Files that are either whole or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mobilenetv2.errors import WorkFailed


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file open for writing that takes the place of ``path`` only when the block succeeds.

    The bytes go to a neighbour, are flushed to the disk and renamed, and the folder is flushed
    after them: whatever happens, ``path`` holds either the old contents or the new ones.

    Raises:
        WorkFailed: the disk is full, the folder cannot be written, …; ``path`` is as it was.
    """
    neighbour = None
    try:
        descriptor, neighbour = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(neighbour).chmod(_permissions(path))
        Path(neighbour).replace(path)
        neighbour = None
        with suppress(OSError):  # the file is in place; some network drives cannot flush folders
            _flush_folder(path.parent)
    except OSError as error:
        raise WorkFailed(
            f"{path}: cannot be written ({error.strerror or error}); the file is as it was before"
        ) from error
    finally:
        if neighbour is not None:
            Path(neighbour).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file, or leave the old one."""
    with written_whole(path) as file:
        file.write(text.encode())


def _permissions(path: Path) -> int:
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
