"""The doctor's rules: from what is known of each picture to what the user should know."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from mobilenetv2.data.examination import KINDS, Finding, PictureReport
from mobilenetv2.data.folders import PictureFolder
from mobilenetv2.data.pictures import PictureHeader

T = TypeVar("T")

TINY = 16
"""A shorter side below this many pixels counts as tiny. Handwritten digits have 28."""
EXTREME_ASPECT = 5.0
"""From this ratio of the sides on, the centre crop sees a fifth of the picture or less."""
FEW_PICTURES = 5
IMBALANCE = 5.0

_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo", ".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".heif", ".heic"),
    "HEIF": (".heic", ".heif", ".hif"),
    "BMP": (".bmp", ".dib"),
    "DIB": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".pnm", ".ppm", ".pgm", ".pbm"),
}


def about_one_picture(picture: PictureReport, header: PictureHeader) -> Iterator[Finding]:
    """What is unusual about a picture that can be decoded."""

    def finding(kind: str, words: str) -> Finding:
        return Finding(kind, (picture.path,), words)

    short, long = sorted((picture.width, picture.height))
    size = f"{picture.width} × {picture.height} pixels"
    if short < TINY:
        yield finding("tiny", size)
    if long >= EXTREME_ASPECT * short:
        yield finding("extreme_aspect", size)
    if header.animated:
        yield finding("animated", f"{header.format}, several frames")
    suffix = picture.path.suffix.lower()
    if suffix not in _ENDINGS.get(header.format, (suffix,)):
        yield finding("wrong_extension", f"{header.format} named {suffix}")
    if header.orientation != 1:
        yield finding("exif_rotated", f"orientation {header.orientation}")
    if header.mode == "CMYK":
        yield finding("cmyk", header.format)
    if header.sixteen_bit:
        yield finding("sixteen_bit", f"{header.format}, mode {header.mode}")
    if header.transparent:
        yield finding("alpha", f"{header.format}, mode {header.mode}")
    if header.mode in ("P", "PA"):
        yield finding("palette", header.format)


def about_copies(pictures: Sequence[PictureReport], classes: Sequence[str]) -> Iterator[Finding]:
    """Duplicates, contradicting labels and leaks among usable pictures."""
    for group in _grouped(pictures, "group"):
        same_file = _grouped(group, "digest")
        exact = len(group) == sum(map(len, same_file)) and len(same_file) == 1
        what = "the same file" if exact else "near duplicates"
        splits = _in_order(picture.split for picture in group)
        labels = _in_order(picture.label for picture in group)
        if len(splits) > 1:
            yield Finding("leak", _paths(group), f"{what} in {_and(splits)}")
        if len(labels) > 1:
            contradicting = [
                copies for copies in same_file if len({picture.label for picture in copies}) > 1
            ]
            for copies in contradicting:
                names = [classes[label] for label in _in_order(p.label for p in copies)]
                yield Finding("two_labels", _paths(copies), f"the same file as {_and(names)}")
            if not contradicting:
                names = [classes[label] for label in labels]
                yield Finding("near_two_labels", _paths(group), f"near duplicates as {_and(names)}")
        for copies in same_file:
            yield Finding("duplicates", _paths(copies), f"{len(copies)} copies of one file")
        if not exact:
            yield Finding("near_duplicates", _paths(group), f"{len(group)} that look the same")


def about_classes(
    pictures: Sequence[PictureReport], classes: Sequence[str], splits: Sequence[str]
) -> Iterator[Finding]:
    """Classes with too few pictures, and imbalance in training."""
    counts: dict[tuple[str, int], int] = defaultdict(int)
    for picture in pictures:
        counts[picture.split, picture.label] += picture.usable
    for split in splits:
        for label, name in enumerate(classes):
            count = counts[split, label]
            if count == 0:
                words = f"class {name!r} has no usable picture in {split}"
                yield Finding("no_usable", (), words)
            elif count < FEW_PICTURES:
                words = f"class {name!r} has {count} usable in {split}"
                yield Finding("few_pictures", (), words)
    of_class = {label: counts["train", label] for label in range(len(classes))}
    most, least = max(of_class, key=of_class.__getitem__), min(of_class, key=of_class.__getitem__)
    if of_class[least] and of_class[most] >= IMBALANCE * of_class[least]:
        words = (
            f"{classes[most]!r} has {of_class[most]} pictures in train, {classes[least]!r} has "
            f"{of_class[least]}: {of_class[most] / of_class[least]:.0f} to 1"
        )
        yield Finding("imbalance", (), words)


def about_strays(folder: PictureFolder) -> Iterator[Finding]:
    """Pictures in no class: nothing says what they show."""
    for path in folder.in_no_class:
        yield Finding("in_no_class", (path,), "beside the folders of classes")


def sorted_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Worst kinds first, then by path."""
    rank = {kind: index for index, kind in enumerate(KINDS)}
    return tuple(sorted(findings, key=lambda found: (rank[found.kind], found.paths, found.words)))


def _grouped(pictures: Sequence[PictureReport], attribute: str) -> list[list[PictureReport]]:
    """The sets of two or more that share an attribute."""
    groups: dict[str, list[PictureReport]] = defaultdict(list)
    for picture in pictures:
        groups[getattr(picture, attribute)].append(picture)
    return [group for group in groups.values() if len(group) > 1]


def _paths(pictures: Sequence[PictureReport]) -> tuple[Path, ...]:
    return tuple(picture.path for picture in pictures)


def _in_order(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def _and(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1]
