"""Published sets fetched through torchvision: whole or not there at all, by one process for all."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mobilenetv2.errors import DataError
from mobilenetv2.files import is_left_behind
from mobilenetv2.locks import one_at_a_time

PART = ".download-"
"""What the names of folders begin with into which sets are fetched."""


def download_set(dataset_class: Any, folder: Path, why: str, read: Callable[[], object]) -> None:
    """Fetch through torchvision, which shows progress and checks sums, into ``folder``.

    It writes to the files' own names; here they get these once all are whole, so that nobody reads
    half a file, and one process fetches for all.

    Args:
        dataset_class: torchvision's.
        folder: where the set lies then, in torchvision's layout.
        why: what is wrong with what lies there.
        read: reads the set; tried again, as another process may have fetched it meanwhile.

    Raises:
        DataError: no network, a wrong checksum, or a folder that cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder / f".{dataset_class.__name__}.lock"):
            if not _reads(read):
                _fetch(dataset_class, folder)
    except (OSError, RuntimeError, HTTPException) as error:
        if _reads(read):  # where there are no locks, another process may have been sooner
            return
        reason = " ".join(str(error).split())  # torchvision's has several lines
        raise DataError(
            f"{why}, and the download failed ({reason}). Put the files there yourself, or name the "
            "folder that holds them with --data-dir"
        ) from error


def _reads(read: Callable[[], object]) -> bool:
    """Whether another process has fetched the set meanwhile."""
    with suppress(OSError, RuntimeError, DataError):
        read()
        return True
    return False


def _fetch(dataset_class: Any, folder: Path) -> None:
    _sweep(folder)
    with TemporaryDirectory(prefix=PART, dir=folder) as fresh:
        archive = folder / getattr(dataset_class, "filename", "")
        if archive.is_file():  # torchvision checks it, and fetches another if it is damaged
            shutil.copy(archive, fresh)
        dataset_class(fresh, download=True)
        for file in sorted(Path(fresh).rglob("*")):
            if file.is_file():
                target = folder / file.relative_to(fresh)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)


def _sweep(folder: Path) -> None:
    """Remove what downloads left behind that were killed, a day ago or earlier."""
    for part in folder.glob(f"{PART}*"):
        with suppress(OSError):
            if is_left_behind(part):
                shutil.rmtree(part)
