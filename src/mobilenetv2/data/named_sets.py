"""The published sets that are known by name, as they were published.

``digits`` comes with scikit-learn. The others are fetched through torchvision, or found where they
lie already: in torchvision's layout or, for MNIST and its likes, as bare idx files.
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilenetv2.cache import cache_folder
from mobilenetv2.config import DataConfig
from mobilenetv2.data.set_downloads import download_set
from mobilenetv2.data.splits import stratified_split
from mobilenetv2.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

IDX_SETS = ("mnist", "fashion-mnist", "kmnist")
CIFAR_SETS = ("cifar10", "cifar100")
NAMES = ("digits", *IDX_SETS, *CIFAR_SETS)

DIGITS_TEST_FRACTION = 0.2
DIGITS_TEST_SEED = 0  # the test set is the same for every run, whatever its seeds

MNIST_LABELS = "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13"
"""SHA-256 of MNIST's training labels, a byte each: the three sets have files of the same names."""

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
KMNIST_CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


@dataclass(frozen=True)
class NamedSet:
    """A set as it was published.

    Attributes:
        classes: class names in the order of the labels.
        train: uint8 N×H×W (grey) or N×H×W×3 (RGB), and labels int64 N.
        test: the same.
    """

    classes: tuple[str, ...]
    train: tuple[Array, Array]
    test: tuple[Array, Array]


def read_named_set(config: DataConfig) -> NamedSet:
    """The set that ``config.data``, one of :data:`NAMES`, names; downloaded where it is missing.

    Raises:
        DataError: files are damaged or incomplete, or cannot be fetched.
    """
    folder = config.data_dir or cache_folder() / "data"
    if config.data == "digits":
        return _digits()
    if config.data in IDX_SETS:
        return _idx_set(config.data, folder)
    return _cifar(config.data, folder)


def _digits() -> NamedSet:
    """8×8 digits that scikit-learn carries; the test set is a fixed stratified fifth of them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    train, test = stratified_split(labels, DIGITS_TEST_FRACTION, DIGITS_TEST_SEED)
    classes = tuple(str(name) for name in digits.target_names)
    return NamedSet(classes, (pictures[train], labels[train]), (pictures[test], labels[test]))


def _idx_set(name: str, folder: Path) -> NamedSet:
    """MNIST and its likes: torchvision's layout, or bare idx files (gzip or not), or a download."""
    from torchvision import datasets

    published = {
        "mnist": (datasets.MNIST, tuple("0123456789")),
        "fashion-mnist": (datasets.FashionMNIST, FASHION_CLASSES),
        "kmnist": (datasets.KMNIST, KMNIST_CLASSES),
    }
    dataset_class, classes = published[name]
    fetched = folder / dataset_class.__name__ / "raw"
    # Only the first two say whose files they are.
    places = (fetched, folder / name, folder)
    place = next((place for place in places if _idx_file(place, "train-images-idx3-ubyte")), None)

    def read(part: str, place: Path) -> tuple[Array, Array]:
        pictures = read_idx(_required(place, f"{part}-images-idx3-ubyte"), axes=3)
        labels = read_idx(_required(place, f"{part}-labels-idx1-ubyte"), axes=1).astype(np.int64)
        if len(pictures) != len(labels) or labels.max(initial=0) >= len(classes):
            raise DataError(
                f"{place}: {part} has {len(pictures):,} pictures and {len(labels):,} labels up to "
                f"{labels.max(initial=0)}; the files do not belong together"
            )
        return pictures, labels

    def read_both(place: Path) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        return read("train", place), read("t10k", place)

    try:
        if place is None:
            raise DataError(f"{name}: not found in {folder}")
        train, test = read_both(place)
    except DataError as error:
        if place not in (None, fetched):
            raise
        # A download of torchvision's own that was interrupted leaves half a set in its layout.
        download_set(dataset_class, folder, str(error), lambda: read_both(fetched))
        train, test = read_both(fetched)
    if place == folder and name != "mnist" and _is_mnist(train[1]):
        raise DataError(
            f"{folder}: these files are MNIST's, not those of {name}. Name mnist, or put the files "
            f"of {name} into {folder / name}"
        )
    return NamedSet(classes, train, test)


def _is_mnist(labels: Array) -> bool:
    return hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest() == MNIST_LABELS


def read_idx(path: Path, axes: int) -> Array:
    """The uint8 array in an idx file, gzip or not (format: yann.lecun.com/exdb/mnist).

    Raises:
        DataError: not an idx file of bytes with that many axes, or truncated.
    """
    try:
        contents = path.read_bytes()
        if contents[:2] == b"\x1f\x8b":
            contents = gzip.decompress(contents)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the file again") from error
    start = 4 + 4 * axes
    if len(contents) < start or contents[:4] != bytes([0, 0, 8, axes]):
        raise DataError(
            f"{path}: not an idx file of bytes with {axes} axes (its first four bytes are "
            f"{contents[:4].hex(' ') or 'missing'}, expected 00 00 08 {axes:02x})"
        )
    shape = tuple(int(size) for size in np.frombuffer(contents, ">u4", axes, offset=4))
    if len(contents) - start != math.prod(shape):
        raise DataError(
            f"{path}: truncated or damaged: {len(contents) - start:,} bytes of data where its "
            f"header promises {math.prod(shape):,}; fetch the file again"
        )
    return np.frombuffer(contents, np.uint8, offset=start).reshape(shape)


def _cifar(name: str, folder: Path) -> NamedSet:
    """CIFAR through torchvision, which checks each file's MD5 before it opens it."""
    from torchvision import datasets

    dataset_class = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100

    def read_train() -> Any:
        return dataset_class(str(folder), train=True)

    try:
        train = read_train()
    except (OSError, RuntimeError):  # not there, damaged or forbidden
        download_set(dataset_class, folder, f"{name}: not found in {folder}", read_train)
        train = read_train()
    test = dataset_class(str(folder), train=False)
    return NamedSet(
        tuple(train.classes),
        (train.data, np.array(train.targets, np.int64)),
        (test.data, np.array(test.targets, np.int64)),
    )


def _idx_file(folder: Path, name: str) -> Path | None:
    candidates: Sequence[Path] = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _required(folder: Path, name: str) -> Path:
    path = _idx_file(folder, name)
    if path is None:
        raise DataError(f"{folder}: {name} (or {name}.gz) is missing; the set is incomplete")
    return path
