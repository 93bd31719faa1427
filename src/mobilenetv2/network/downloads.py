"""Files from the network: whole and checked, or not there at all."""

import contextlib
import glob
import hashlib
import os
import secrets
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from mobilenetv2.errors import ModelFileError, WorkFailed
from mobilenetv2.files import flush_folder, is_left_behind, write_text

Progress = Callable[[int, int | None], None]
"""Called with the bytes received so far and the bytes to come in all, None where unknown."""

TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 18


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    check: Callable[[Path], object] | None = None,
    progress: Progress | None = None,
) -> Path:
    """The file of ``url`` at ``target``, downloaded unless it lies there already.

    The bytes are written beside ``target``, checked, synced to the disk and only then renamed, so
    that whatever interrupts a download, ``target`` is whole or absent. Where no checksum is known
    beforehand, that of the first use is kept in ``target``.sha256 and must hold ever after.

    Args:
        url: where the file is.
        target: where it shall be; its folder is made.
        sha256: the checksum in hexadecimal digits, or how it begins.
        check: reads the downloaded file and raises ModelFileError if it is of no use; a page that
            says "not found" politely, for example.
        progress: is told how far the download is.

    Returns:
        ``target``.

    Raises:
        ModelFileError: no network, no such file, an interrupted transfer, a wrong checksum. The
            message names the URL and where to put the file by hand.
    """
    if target.exists():
        _check_digest(target, sha256)
        return target
    by_hand = f"Try again, or fetch it by other means and put it at {target}."
    part = target.with_name(f".{secrets.token_hex(4)}.part.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        digest = _download(url, part, progress)
        if sha256 and not digest.startswith(sha256):
            raise ModelFileError(
                f"{url} has the wrong content: SHA-256 {digest}, expected {sha256}…. {by_hand}"
            )
        if check is not None:
            try:
                check(part)
            except ModelFileError as error:
                reason = str(error).replace(str(part), "the answer")
                raise ModelFileError(f"{url} is not the file sought: {reason} {by_hand}") from error
        part.replace(target)
        flush_folder(target.parent)
    except (OSError, HTTPException) as error:
        raise ModelFileError(f"Could not download {url}: {error}. {by_hand}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    if not sha256:
        _remember_digest(target, digest)
    return target


def _sweep(target: Path) -> None:
    """Removes what downloads of ``target`` left behind that were killed, a day ago or earlier."""
    for part in target.parent.glob(f".*.part.{glob.escape(target.name)}"):
        with contextlib.suppress(OSError):
            if is_left_behind(part):
                part.unlink()


def _download(url: str, part: Path, progress: Progress | None) -> str:
    """Streams ``url`` into ``part``, synced to the disk; returns its SHA-256."""
    digest = hashlib.sha256()
    with (
        urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
        part.open("xb") as file,
    ):
        length = response.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        done = 0
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        # A connection that breaks looks like the end of the file; only the count tells.
        if total is not None and done != total:
            raise HTTPException(f"the transfer broke off after {done} of {total} bytes")
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _check_digest(path: Path, sha256: str | None) -> None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        record = _record(path)
        expected = sha256 or (
            record.read_text("utf-8").partition(" ")[0] if record.exists() else ""
        )
    except OSError as error:
        raise ModelFileError(f"Could not read {path}: {error}") from error
    if not digest.startswith(expected):
        raise ModelFileError(
            f"{path} has changed since it was downloaded: SHA-256 {digest}, expected {expected}. "
            f"Delete it{'' if sha256 else f' and {record}'} to download it again."
        )
    if not expected:
        _remember_digest(path, digest)


def _remember_digest(path: Path, digest: str) -> None:
    """Keeps the checksum in the format of ``sha256sum``; a read-only cache goes without."""
    with contextlib.suppress(WorkFailed):
        write_text(_record(path), f"{digest}  {path.name}\n")


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
