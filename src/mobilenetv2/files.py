"""Files that are either whole or not there."""

import errno
import glob
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mobilenetv2.errors import WorkFailed

LEFT_BEHIND = 24 * 3600  # seconds


@contextmanager
def written_whole(path: Path, previous: Path | None = None) -> Iterator[IO[bytes]]:
    """A file open for writing that takes the place of ``path`` only when the block succeeds.

    The bytes go to a neighbour, are flushed to the disk and renamed, and the folder is flushed
    after them: whatever happens, ``path`` holds either the old contents or the new ones.

    Args:
        path: the file to write.
        previous: where to keep the old contents. Between two renames ``path`` is then missing for
            a moment; a reader who finds it so takes ``previous``.

    Raises:
        WorkFailed: the disk is full, the folder cannot be written, …; ``path`` is as it was.
    """
    neighbour = None
    try:
        descriptor, neighbour = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part"
        )
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            flush_to_disk(file)
        _give_owner(Path(neighbour), path)
        Path(neighbour).chmod(_permissions(path))
        if previous is not None:
            with suppress(FileNotFoundError):  # nothing was there before
                path.replace(previous)
        Path(neighbour).replace(path)
        neighbour = None
        with suppress(OSError):  # the file is in place; some network drives cannot flush folders
            flush_folder(path.parent)
    except OSError as error:
        raise WorkFailed(
            f"{path}: cannot be written ({error.strerror or error}){_what_is_left(path, previous)}"
        ) from error
    finally:
        if neighbour is not None:
            Path(neighbour).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file, or leave the old one.

    File names in a broken encoding come as surrogates, which UTF-8 has no bytes for. They are
    written as JSON and YAML escape them.
    """
    with written_whole(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def flush_to_disk(file: IO[Any]) -> None:
    """Make sure that a power cut cannot take back what was written to ``file``."""
    file.flush()
    os.fsync(file.fileno())


def read_back(file: IO[bytes], contents: bytes | bytearray) -> None:
    """Make sure that the disk gives ``contents`` back for a file just written.

    Raises:
        OSError: it gives something else.
    """
    flush_to_disk(file)
    if hasattr(os, "posix_fadvise"):  # or the answer would come from memory
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file.seek(0)
    if file.read() != contents:
        raise OSError(errno.EIO, "the disk does not give back what was written")


def remove_leftovers(path: Path) -> None:
    """Delete the unfinished neighbours that a killed process left beside ``path``.

    Only for who knows that nobody is writing there now.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        leftover.unlink(missing_ok=True)


def is_left_behind(path: Path) -> bool:
    """Whether nobody can be at work in an unfinished file or folder: for a day nothing was written.

    Raises:
        FileNotFoundError: it has gone meanwhile.
    """
    return time.time() - path.stat().st_mtime > LEFT_BEHIND


def flush_folder(folder: Path) -> None:
    """Make sure that a power cut cannot take back what was renamed in a folder."""
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _what_is_left(path: Path, previous: Path | None) -> str:
    if path.exists():
        return "; what was there before is still there"
    if previous is not None and previous.exists():
        return f"; what was there before is in {previous}"
    return ""


def _give_owner(new: Path, old: Path) -> None:
    """Somebody else's file stays theirs, where we may give it to them: as the root user, mostly."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        before, now = old.stat(), new.stat()
        if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
            os.chown(new, before.st_uid, before.st_gid)


def _permissions(path: Path) -> int:
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
