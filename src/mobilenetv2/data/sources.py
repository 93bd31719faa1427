"""Named data sets and folders of pictures, ready for training and measuring.

Whatever the source, what comes out is the same: pictures in memory as uint8, divided into training,
validation and test, with the preprocessing that made them. Small sets (MNIST: 47 MB) stay there for
the whole run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilenetv2.complaints import suggestion
from mobilenetv2.config import DataConfig, Preprocessing
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.data.examination import Examination
from mobilenetv2.data.folders import PictureFolder, scan_folder
from mobilenetv2.data.kept_pictures import KeptPictures
from mobilenetv2.data.known_folders import examine_once, forget
from mobilenetv2.data.named_sets import NAMES, Array, NamedSet, read_named_set
from mobilenetv2.data.picture_cache import memory_limit
from mobilenetv2.data.picture_files import fit, load_files
from mobilenetv2.data.preprocessing import (
    preprocessing_of_files,
    preprocessing_of_published,
    resize_of_photos,
    with_statistics,
)
from mobilenetv2.data.splits import content_split, stratified_split
from mobilenetv2.data.unreadable import UnreadablePicture
from mobilenetv2.errors import DataError


@dataclass(frozen=True)
class DataSet:
    """Pictures divided for training, validation and test, and how they were prepared.

    Attributes:
        name: as the user said it.
        classes: class names in the order of the labels.
        train: what the network learns from; photos have a margin around what is evaluated, for
            random crops.
        val: what decides between epochs; no picture of it is in ``train``.
        test: touched once, at the end; None where the data brings none.
        preprocessing: the way from a picture file to the network's input.
        examination: what the doctor found in a folder; None for named sets.
    """

    name: str
    classes: tuple[str, ...]
    train: LabelledPictures
    val: LabelledPictures
    test: LabelledPictures | None
    preprocessing: Preprocessing
    examination: Examination | None = None


def load_data(
    config: DataConfig,
    preprocessing: Preprocessing | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> DataSet:
    """The data set that ``config`` names, divided for training.

    Args:
        config: name or folder, and how to divide it.
        preprocessing: of an existing classifier; if left out, it is derived from the settings and
            the training pictures.
        tell: takes a line for the user, where there is something to wait for.

    Raises:
        DataError: unknown name, missing or damaged files, or a folder without classes.
    """
    if config.data in NAMES:
        return _load_named(config, read_named_set(config), preprocessing)
    if preprocessing is None:
        kept = _to_keep(config, None, resize_of_photos(config), config.colour)
    else:
        kept = _to_keep(config, None, preprocessing.resize, preprocessing.colour)
    folder = _scan(config)
    examination = examine_once(folder, kept.keep, tell=tell)
    with _examined_anew_if_unreadable(folder):
        return _load_folder(config, examination, preprocessing, kept)


def load_for_measuring(
    config: DataConfig,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    tell: Callable[[str], object] = lambda _: None,
    remark: Callable[[str], object] = lambda _: None,
) -> tuple[str, LabelledPictures]:
    """Pictures to measure an existing classifier on, each counted once.

    A named set gives its test set. A folder gives `test/`, else `val/`, else everything in it.

    Args:
        config: name or folder.
        preprocessing: the classifier's.
        labels: the classifier's; the pictures' labels are places in it.
        tell: takes a line for the user, where there is something to wait for.
        remark: takes a line on pictures that no figure can count, as they are in no class.

    Returns:
        What the set is called ("test", "validation" or "all"), and the pictures.

    Raises:
        DataError: as :func:`load_data`, or the classifier doesn't know a class.
    """
    if config.data in NAMES:
        raw = read_named_set(config)
        pictures, numbers = raw.test
        places = _places(raw.classes, labels, config.data)
        return "test", LabelledPictures(_prepare(pictures, preprocessing), places[numbers])
    folder = _scan(config, fewest=1)
    places = _places(folder.classes, labels, config.data)
    split = next(split for split in ("test", "val", "train") if split in folder.splits)
    kept = _to_keep(config, split, preprocessing.resize, preprocessing.colour)
    examination = examine_once(folder, kept.keep, tell=tell)
    _require_all_readable(examination, split)
    if strays := examination.strays_in_words():
        remark(strays)
    with _examined_anew_if_unreadable(folder):
        read = load_files(examination.usable(split), preprocessing, config, kept)
    alone = examination.splits == ("train",)
    name = "all" if alone else {"val": "validation"}.get(split, split)
    return name, LabelledPictures(read.pictures, places[read.labels], read.names)


def _places(classes: Sequence[str], labels: Sequence[str], data: str) -> Tensor:
    """Where each of ``classes`` stands among the classifier's ``labels``: int64."""
    unknown = [name for name in classes if name not in labels]
    if unknown:
        raise DataError(
            f"{data}: the classifier does not know the class {unknown[0]!r}"
            f"{suggestion(unknown[0], labels)} (it knows {', '.join(labels[:10])}"
            f"{', …' if len(labels) > 10 else ''})"
        )
    return torch.tensor([labels.index(name) for name in classes])


# --------------------------------------------------------------------- named sets


def _load_named(config: DataConfig, raw: NamedSet, preprocessing: Preprocessing | None) -> DataSet:
    pictures, labels = raw.train
    height, width = pictures.shape[1:3]
    train_at, val_at = stratified_split(labels, config.val_fraction, config.split_seed)
    if preprocessing is None:
        wanted = preprocessing_of_published(config, height, width, is_grey=pictures.ndim == 3)
    else:
        wanted = preprocessing

    def labelled(pictures: Array, labels: Array) -> LabelledPictures:
        return LabelledPictures(_prepare(pictures, wanted), torch.from_numpy(labels))

    train = labelled(pictures[train_at], labels[train_at])
    val = labelled(pictures[val_at], labels[val_at])
    test = labelled(*raw.test)
    if preprocessing is None:
        wanted = with_statistics(wanted, train.pictures)
    return DataSet(config.data, raw.classes, train, val, test, wanted)


def _prepare(pictures: Array, wanted: Preprocessing) -> Tensor:
    """Published arrays to uint8 N×C×H×W, by the same road as a file where anything changes."""
    grey = pictures.ndim == 3
    unchanged = (wanted.height, wanted.width) == pictures.shape[1:3] and (
        wanted.resize == min(wanted.height, wanted.width)
    )
    if unchanged and grey == (wanted.colour == "grey"):
        stacked = pictures[:, None] if grey else pictures.transpose(0, 3, 1, 2)
        return torch.from_numpy(stacked.copy())
    images = (Image.fromarray(picture) for picture in pictures)
    return torch.from_numpy(np.stack([fit(image, wanted) for image in images]))


# ------------------------------------------------------------------------ folders


def _scan(config: DataConfig, fewest: int = 2) -> PictureFolder:
    folder = Path(config.data)
    if not folder.exists():
        raise DataError(
            f"{config.data}: neither a folder nor a known data set ({', '.join(NAMES)})"
            f"{suggestion(config.data, NAMES)}"
        )
    return scan_folder(folder, fewest)


def _to_keep(config: DataConfig, split: str | None, resize: int, colour: str) -> KeptPictures:
    """A place for what the examination decodes, which is never grey."""
    limit = 0 if colour == "grey" else memory_limit(config) / 2
    return KeptPictures(split, resize, limit)


@contextmanager
def _examined_anew_if_unreadable(folder: PictureFolder) -> Iterator[None]:
    """A file that is not what it was when it was examined makes the next start look again."""
    try:
        yield
    except UnreadablePicture:
        forget(folder)
        raise


def _load_folder(
    config: DataConfig,
    examination: Examination,
    preprocessing: Preprocessing | None,
    kept: KeptPictures,
) -> DataSet:
    examination.require_usable()
    for split in examination.splits:
        if not examination.usable(split):
            raise DataError(
                f"{config.data}: no picture of {split}/ can be decoded; replace or remove them"
            )
    train = examination.usable("train")
    if "val" in examination.splits:
        val = examination.usable("val")
    else:
        train_at, val_at = content_split(
            [picture.group for picture in train],
            [picture.label for picture in train],
            config.val_fraction,
            config.split_seed,
        )
        train, val = tuple(train[at] for at in train_at), tuple(train[at] for at in val_at)
        if not val:
            raise DataError(
                f"{config.data}: no picture is left for validation, as in every class all readable "
                "ones show the same. Add pictures, or a val/ folder beside train/"
            )
    wanted = preprocessing or preprocessing_of_files(config, train)
    # Photos keep the whole square around the crop that is evaluated: 256 around 224.
    margin = max(0, wanted.resize - min(wanted.height, wanted.width)) // 4 * 4
    around = {"height": wanted.height + margin, "width": wanted.width + margin}
    pictures = load_files(train, wanted.model_copy(update=around), config, kept)
    if preprocessing is None:
        wanted = with_statistics(wanted, pictures.pictures)
    has_test = "test" in examination.splits
    return DataSet(
        name=config.data,
        classes=examination.classes,
        train=pictures,
        val=load_files(val, wanted, config, kept),
        test=load_files(examination.usable("test"), wanted, config, kept) if has_test else None,
        preprocessing=wanted,
        examination=examination,
    )


def _require_all_readable(examination: Examination, split: str) -> None:
    """A figure over a set must count every picture of it."""
    broken = [p for p in examination.pictures if p.split == split and not p.usable]
    if broken:
        raise DataError(
            f"{examination.root}: {len(broken)} files cannot be read, so not every picture can be "
            "counted; repair or remove them:\n"
            + "\n".join(f"  {picture.path}: {picture.reason}" for picture in broken[:20])
        )
