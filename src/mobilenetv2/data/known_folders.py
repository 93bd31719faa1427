"""Examinations of folders, kept until a file of theirs changes.

A folder is looked at by `train`, `evaluate` and `export`, by a run that goes on, and by every
process of a run on several. What one has found is good for the others as long as every file has the
same name, size, times and inode number: the signs by which Git, too, tells changed files. Where a
picture could not be decoded, nothing is kept: it may have been the disk.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from mobilenetv2.cache import cache_folder
from mobilenetv2.data.doctor import examine
from mobilenetv2.data.examination import UNUSABLE_KINDS, Examination, Finding, PictureReport
from mobilenetv2.data.findings import about_strays, sorted_findings
from mobilenetv2.data.folders import PictureFolder
from mobilenetv2.data.heic import heic_version
from mobilenetv2.errors import ConfigError, WorkFailed
from mobilenetv2.files import remove_leftovers, written_whole
from mobilenetv2.locks import one_at_a_time

FORMAT = 1
"""To be raised when the doctor finds something else than before."""

MOST = 32
"""Folders that are remembered; those that were not needed for longest give way."""

UNSURE = frozenset(UNUSABLE_KINDS) - {"not_a_picture"}
"""Findings that may have been the disk, the memory or a permission, and not the file."""

SETTLED = 2.0
"""Seconds that a file must have been left alone: within one tick of a disk's clock, a second change
leaves the times as they are."""


def examine_once(
    folder: PictureFolder,
    decoded: Callable[[PictureReport, Image.Image], None] | None = None,
    *,
    anew: bool = False,
    tell: Callable[[str], object] = lambda _: None,
) -> Examination:
    """The examination of a folder: an earlier one, if it is still true.

    While one process examines, others that ask for the same folder wait once for what it finds.

    Args:
        folder: As ``scan_folder`` found it.
        decoded: As ``examine`` calls it; not called where nothing has to be decoded.
        anew: Look at every file, whatever is known, and keep what is found.
        tell: Takes a line for the user, where there is something to wait for.
    """
    examining = f"examining the pictures in {folder.root}"
    waiting = f"waiting for another process, which is {examining}"
    try:
        path = _path(folder)
    except ConfigError:  # no place to remember anything
        tell(examining)
        return examine(folder, decoded=decoded)

    if anew:
        tell(examining)
        return _look(path, folder, decoded)
    if (known := _recall(path, folder)) is not None:
        return known
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path.with_suffix(".lock"), lambda: tell(waiting)) as waited:
        if (known := _recall(path, folder)) is not None:
            return known
        if not waited:
            tell(examining)
            return _look(path, folder, decoded)
    # The other process was stopped, or could not keep what it found: one by one would take longest.
    tell(examining)
    return _look(path, folder, decoded)


def forget(folder: PictureFolder) -> None:
    """Let the next ``examine_once`` look at every file again."""
    with suppress(OSError, ConfigError):
        _path(folder).unlink()


def _look(
    path: Path,
    folder: PictureFolder,
    decoded: Callable[[PictureReport, Image.Image], None] | None,
) -> Examination:
    """Examine the folder, and keep what was found, if others may rely on it."""
    begun = time.time()
    signs, changed = _signs(folder)  # before: a file that changes meanwhile has others next time
    examination = examine(folder, decoded=decoded)
    with suppress(WorkFailed, OSError):
        path.unlink(missing_ok=True)
        sure = not any(finding.kind in UNSURE for finding in examination.findings)
        if sure and changed < begun - SETTLED:
            _remember(path, examination, signs)
    return examination


def _path(folder: PictureFolder) -> Path:
    name = hashlib.sha256(os.fsencode(folder.root.resolve())).hexdigest()[:32]
    return cache_folder() / "examinations" / f"{name}.json"


def _files(folder: PictureFolder) -> Iterator[tuple[str, Path, int]]:
    """Split, path and label of every picture, in the order of an examination."""
    for split, files in folder.splits.items():
        for file in files:
            yield split, file.path, file.label


def _signs(folder: PictureFolder) -> tuple[str, float]:
    """What tells whether anything has changed since.

    Returns:
        A digest that changes with every file, with what is there, and with what decodes it; and
        when a file was last changed, in seconds since 1970.
    """
    digest = hashlib.sha256(f"{FORMAT} {PIL.__version__} {heic_version()}".encode())
    digest.update(json.dumps(folder.classes).encode())
    last = 0.0
    for split, path, label in _files(folder):
        try:
            status = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, once per picture
            facts = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            # Where the system notes changes itself, a camera's clock may be as wrong as it likes.
            last = max(last, status.st_ctime if os.name == "posix" else status.st_mtime)
        except OSError:
            facts = []  # the doctor will say why, and nothing is kept
        where = os.fsencode(path.relative_to(folder.root))
        digest.update(f"\n{split} {label} {facts} ".encode() + where)
    return digest.hexdigest(), last


def _remember(path: Path, examination: Examination, signs: str) -> None:
    place = {picture.path: index for index, picture in enumerate(examination.pictures)}
    contents = {
        "pictures": [
            {name: value for name, value in vars(picture).items() if name not in _FROM_FOLDER}
            for picture in examination.pictures
        ],
        "findings": [
            (finding.kind, [place[path] for path in finding.paths], finding.words)
            for finding in examination.findings
            if finding.kind != "in_no_class"  # no picture of the folder, and known from its names
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    with written_whole(path) as file:
        file.write(f"{signs}\n{json.dumps(contents)}".encode())
    others = sorted(path.parent.glob("*.json"), key=lambda other: other.stat().st_mtime)
    for other in others[:-MOST]:
        other.unlink(missing_ok=True)


_FROM_FOLDER = ("path", "split", "label")


def _recall(path: Path, folder: PictureFolder) -> Examination | None:
    """What is remembered of the folder, if nothing has changed since."""
    try:
        with path.open("rb") as file:
            if file.readline().decode() != _signs(folder)[0] + "\n":
                return None
            contents: dict[str, Any] = json.load(file)
        files = zip(_files(folder), contents["pictures"], strict=True)
        pictures = tuple(
            PictureReport(where, split, label, **facts) for (split, where, label), facts in files
        )
        findings = [
            Finding(kind, tuple(pictures[index].path for index in indices), words)
            for kind, indices, words in contents["findings"]
        ]
    except (OSError, ValueError, TypeError, KeyError, IndexError):  # none, or not what we wrote
        return None
    with suppress(OSError):
        os.utime(path)  # it was needed just now
    findings += about_strays(folder)
    return Examination(
        folder.root, folder.classes, pictures, sorted_findings(findings), folder.passed_over
    )
