"""A folder of pictures: which classes there are, and which file belongs to which.

Two layouts are understood. ``CLASS/…`` alone, to be split later; or ``train/CLASS/…`` with
``val/`` or ``test/`` beside it, under these names or some others (:data:`SPLIT_NAMES`). Inside a
class, folders may nest to any depth. Nothing is opened or decoded here; what is no picture is
passed over, and counted.
"""

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from mobilenetv2.data.picture_tree import (
    DRAWN_HERE,
    SUFFIX_HINT,
    check_folder,
    folder_identity,
    holds_only_drawings,
    is_visible_folder,
    sorted_entries,
    walk,
    why_passed_over,
)
from mobilenetv2.errors import DataError

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "train_set", "training_set"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "val_set", "validation_set"), "val"),
    **dict.fromkeys(("test", "testing", "test_set", "testing_set"), "test"),
}

IN_NO_CLASS = "in no class"
"""Why a picture beside the folders of classes or splits is passed over."""

DEEPEST_HINT = 10
"""Folders, one inside another, through which the classes are looked for."""


@dataclass(frozen=True)
class PictureFile:
    """One picture of a class.

    Attributes:
        path: The file.
        label: Index into ``PictureFolder.classes``.
    """

    path: Path
    label: int


@dataclass(frozen=True)
class PictureFolder:
    """What a folder holds, in an order that depends on names alone.

    Attributes:
        root: The folder.
        classes: Class names (Unicode NFC), sorted.
        train: The pictures of ``train/``, or of all classes when there are no splits.
        val: The pictures of ``val/``, or None without one.
        test: The pictures of ``test/``, or None without one.
        passed_over: What was not taken, with the reason.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[PictureFile, ...]
    val: tuple[PictureFile, ...] | None
    test: tuple[PictureFile, ...] | None
    passed_over: tuple[tuple[Path, str], ...]

    @property
    def in_no_class(self) -> tuple[Path, ...]:
        """Pictures beside the folders of classes or splits: nothing says what they show."""
        return tuple(path for path, reason in self.passed_over if reason == IN_NO_CLASS)

    @property
    def splits(self) -> dict[str, tuple[PictureFile, ...]]:
        """The splits that there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: files for name, files in named.items() if files is not None}


def scan_folder(folder: Path, fewest: int = 2) -> PictureFolder:
    """Finds the classes and pictures of a folder.

    Symbolic links are followed; a link back to where the walk already is, or to nowhere, is passed
    over. So are hidden files, files whose names don't end like a picture's, and pictures beside the
    class folders.

    Args:
        folder: In one of the two layouts above.
        fewest: Classes that it must have at least; a classifier can be measured on one.

    Raises:
        DataError: The folder is missing or a file; it has no pictures, too few classes or an empty
            class; or the classes of ``train/`` differ from those beside it.
    """
    check_folder(folder)
    passed_over: list[tuple[Path, str]] = []
    split_folders = _split_folders(folder, passed_over)
    for where in split_folders.values():
        check_folder(where)
    # A link from inside a class to one of these would make every class part of it.
    above = {folder_identity(where) for where in (folder, *split_folders.values())}
    classes_of = {
        split: _classes_of(where, above, passed_over)
        for split, where in (split_folders or {"train": folder}).items()
    }
    classes = tuple(sorted(classes_of["train"]))
    try:
        _check_classes(folder, split_folders, classes_of, fewest)
    except DataError as error:
        strays = [path for path, reason in passed_over if reason == IN_NO_CLASS]
        if not strays:
            raise
        raise DataError(
            f"{error} {_count(strays)} beside the class folders, such as {strays[0]}: move each "
            "into the folder of its class."
        ) from None
    files = {
        split: tuple(
            PictureFile(path, label)
            for label, name in enumerate(classes)
            for path in sorted(found[name], key=lambda path: path.parts)
        )
        for split, found in classes_of.items()
    }
    return PictureFolder(
        folder, classes, files["train"], files.get("val"), files.get("test"), tuple(passed_over)
    )


def _split_folders(folder: Path, passed_over: list[tuple[Path, str]]) -> dict[str, Path]:
    """The folders of the splits, by split name; empty when the folder has no splits."""
    folders: list[os.DirEntry[str]] = []
    drawings: list[os.DirEntry[str]] = []
    for entry in filter(is_visible_folder, sorted_entries(folder)):
        (drawings if holds_only_drawings(Path(entry.path)) else folders).append(entry)
    by_split: dict[str, list[Path]] = {}
    for entry in folders:
        if split := SPLIT_NAMES.get(entry.name.lower()):
            by_split.setdefault(split, []).append(Path(entry.path))
    beside = [entry for entry in folders if entry.name.lower() not in SPLIT_NAMES]
    if "train" not in by_split:
        if by_split and not beside:
            names = " and ".join(f"{path.name}/" for found in by_split.values() for path in found)
            raise DataError(
                f"{folder} has {names} but no train/. Add train/ with one folder of pictures per "
                "class, or name the folder that holds the classes."
            )
        return {}
    if len(by_split) == 1 and not _is_train_alone(by_split["train"][0], beside):
        return {}  # a class of railway trains
    for split, found in by_split.items():
        if len(found) > 1:
            names = " and ".join(f"{path.name}/" for path in found)
            raise DataError(f"{folder} has {names}, both for {split}. Rename one of them.")
    passed_over += [(Path(entry.path), DRAWN_HERE) for entry in drawings]
    passed_over += [(Path(entry.path), "beside train/") for entry in beside]
    passed_over += [
        (Path(entry.path), why_passed_over(entry) or IN_NO_CLASS)
        for entry in sorted_entries(folder)
        if not is_visible_folder(entry)
    ]
    return {split: found[0] for split, found in by_split.items()}


def _is_train_alone(train: Path, beside: list[os.DirEntry[str]]) -> bool:
    """Whether a ``train/`` without ``val/`` and ``test/`` holds classes, rather than being one."""
    if beside:
        return False
    check_folder(train)
    return any(is_visible_folder(entry) for entry in sorted_entries(train))


def _classes_of(
    folder: Path, above: set[tuple[int, int]], passed_over: list[tuple[Path, str]]
) -> dict[str, list[Path]]:
    """The pictures of each class folder, by class name."""
    classes: dict[str, list[Path]] = {}
    loose = []
    for entry in sorted_entries(folder):
        path = Path(entry.path)
        if is_visible_folder(entry):
            if holds_only_drawings(path):
                passed_over.append((path, DRAWN_HERE))
                continue
            check_folder(path)
            # macOS writes é as e and an accent; elsewhere it is one character.
            name = unicodedata.normalize("NFC", entry.name)
            classes.setdefault(name, []).extend(walk(path, set(above), passed_over))
        elif reason := why_passed_over(entry):
            passed_over.append((path, reason))
        else:
            loose.append(path)
    if any(classes.values()):
        passed_over += [(path, IN_NO_CLASS) for path in loose]
    elif loose:
        raise DataError(
            f"{folder} holds {_count(loose)} but no class folders with pictures. Make one "
            "folder per class and move the pictures into them; to label pictures, use "
            "`mobilenetv2 predict`."
        )
    return classes


def _check_classes(
    folder: Path,
    split_folders: dict[str, Path],
    classes_of: dict[str, dict[str, list[Path]]],
    fewest: int,
) -> None:
    train = classes_of["train"]
    where = split_folders.get("train", folder)
    if not any(train.values()):
        raise DataError(
            f"No pictures in {where}. It should hold one folder per class, with pictures in each. "
            + SUFFIX_HINT
        )
    if len(train) < fewest:
        # From the disk: the class's name may be spelt in other characters there.
        only, inside = where, _folders_in(where)
        for _ in range(DEEPEST_HINT):
            if len(inside) != 1:
                break
            only, inside = inside[0], _folders_in(inside[0])
        hint = f" Or did you mean {only}, which holds {len(inside)} folders?"
        hint = hint if len(inside) > 1 else ""
        raise DataError(
            f"{where} has one class only, {next(iter(train))!r}. A classifier needs two or more: "
            f"add a folder of pictures for each.{hint}"
        )
    for split, found in classes_of.items():
        where = split_folders.get(split, folder)
        missing, surplus = sorted(set(train) - set(found)), sorted(set(found) - set(train))
        if missing or surplus:
            told = [f"lacks {_listed(missing)}"] * bool(missing)
            told += [f"has {_listed(surplus)} beyond those"] * bool(surplus)
            raise DataError(
                f"{where} is to have the classes of {split_folders['train']}, but it "
                f"{' and '.join(told)}."
            )
        if empty := sorted(name for name, files in found.items() if not files):
            raise DataError(
                f"No pictures in the {_listed(empty)} of {where}. Add some, or remove the folder. "
                + SUFFIX_HINT
            )


def _folders_in(folder: Path) -> list[Path]:
    try:
        entries = sorted_entries(folder)
    except OSError:
        return []
    found = [Path(entry.path) for entry in entries if is_visible_folder(entry)]
    return [path for path in found if not holds_only_drawings(path)]


def _listed(classes: list[str]) -> str:
    return ("class " if len(classes) == 1 else "classes ") + ", ".join(map(repr, classes))


def _count(paths: list[Path]) -> str:
    return "1 picture" if len(paths) == 1 else f"{len(paths)} pictures"
