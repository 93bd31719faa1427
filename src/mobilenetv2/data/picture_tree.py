"""What lies below a folder: pictures, folders, and what is passed over.

Nothing is opened here. Hidden files, what the system keeps for itself, and names that do not end
like a picture's are no pictures; symbolic links are followed, but never in circles.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mobilenetv2.data.pictures import PICTURE_SUFFIXES
from mobilenetv2.errors import DataError

SUFFIX_HINT = "Pictures are files whose names end with .jpg, .png, .webp and the like."
_SYSTEM_NAMES = frozenset(
    ["__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"]
)


_DRAWN = re.compile(
    r"(first-batch|curves|doctor|comparison|find-lr|benchmark|(\w+-)?(confusion|mistakes)"
    r"|.+\.ladder|icon-512)\.png"
)
"""Names of the pictures that this program writes into run folders, reports and pages."""
DRAWN_HERE = "drawings of this program"
"""Why a folder is passed over."""


def list_pictures(paths: Iterable[Path]) -> list[Path]:
    """The pictures that files and folders name, each once.

    Args:
        paths: Files, taken whatever their names end with; and folders, searched to any depth for
            pictures, which come sorted.

    Raises:
        DataError: A path does not exist, or there is no picture at all.
    """
    paths = list(paths)
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            check_folder(path)
            found.update(dict.fromkeys(sorted(walk(path, set(), []), key=lambda path: path.parts)))
        elif path.exists():
            found[path] = None
        else:
            raise DataError(f"{path} does not exist. Name picture files, or folders of them.")
    if not paths:
        raise DataError("No pictures are named. Name picture files, or folders of them.")
    if not found:
        raise DataError(f"No pictures in {', '.join(map(str, paths))}. {SUFFIX_HINT}")
    return list(found)


def check_folder(folder: Path) -> None:
    """Make sure that a folder can be listed.

    Raises:
        DataError: it is missing, a file, or forbidden.
    """
    if not folder.exists():
        raise DataError(f"The folder {folder} does not exist. Check the path.")
    if not folder.is_dir():
        raise DataError(
            f"{folder} is a file. Name the folder that holds one folder of pictures per class."
        )
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"No permission to list {folder}. Change its permissions, or copy it.")


def walk(
    folder: Path, visited: set[tuple[int, int]], passed_over: list[tuple[Path, str]]
) -> Iterator[Path]:
    """The pictures below a folder; each real folder is entered once, so links cannot loop."""
    levels = [_entries(folder, visited, passed_over)]  # folders may lie deeper than calls may
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif is_visible_folder(entry):
            levels.append(_entries(Path(entry.path), visited, passed_over))
        elif reason := why_passed_over(entry):
            passed_over.append((Path(entry.path), reason))
        else:
            yield Path(entry.path)


def _entries(
    folder: Path, visited: set[tuple[int, int]], passed_over: list[tuple[Path, str]]
) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder that was not entered yet."""
    try:
        identity = folder_identity(folder)
        entries = sorted_entries(folder)
    except OSError as error:
        passed_over.append((folder, f"cannot be listed: {error.strerror}"))
        return
    if identity in visited:
        passed_over.append((folder, "a link to a folder that is already counted"))
        return
    visited.add(identity)
    yield from entries


def folder_identity(folder: Path) -> tuple[int, int]:
    """What a folder and every link to it have in common: device and inode."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def sorted_entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name."""
    with os.scandir(folder) as entries:
        # Real folders before links to them, so that a link is what gets passed over.
        return sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))


def is_visible_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one, that people see."""
    try:
        return not is_hidden(entry.name) and entry.is_dir()
    except OSError:  # a link to itself
        return False


def holds_only_drawings(folder: Path) -> bool:
    """Whether all pictures below it are ones that this program draws, such as ``curves.png``.

    Whoever trains in the folder of their pictures finds ``runs/`` there the next time.
    """
    found, waiting = False, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if is_visible_folder(entry):
                        if not entry.is_symlink():
                            waiting.append(Path(entry.path))
                    elif why_passed_over(entry) is None:
                        if not _DRAWN.fullmatch(entry.name):
                            return False
                        found = True
        except OSError:  # it will be told of where it is listed
            return False
    return found


def is_hidden(name: str) -> bool:
    """Whether a name is hidden, or the system's own."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def why_passed_over(entry: os.DirEntry[str]) -> str | None:
    """Why something that is no visible folder is not taken; None for a picture."""
    if is_hidden(entry.name):
        return "hidden"
    if os.path.splitext(entry.name)[1].lower() not in PICTURE_SUFFIXES:  # noqa: PTH122 - speed
        return "not a picture"
    try:
        is_file = entry.is_file()
    except OSError:
        is_file = False
    if is_file:
        return None
    return "a link to nothing" if entry.is_symlink() else "not a regular file"
