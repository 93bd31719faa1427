"""What is known about a folder of pictures after every file has been looked at once."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from mobilenetv2.data.unreadable import Defect
from mobilenetv2.errors import DataError

UNUSABLE_KINDS = get_args(Defect)
"""The kinds of findings for which a picture is left out."""

Severity = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """One kind of finding: its severity, a heading, and what it means for the user."""

    severity: Severity
    title: str
    meaning: str


KINDS = {
    "broken": Kind("error", "Broken", "cannot be decoded; left out"),
    "truncated": Kind("error", "Truncated", "the file ends too early; left out"),
    "not_a_picture": Kind("error", "No picture", "named like one, but isn't; left out"),
    "too_large": Kind("error", "Absurdly large", "could exhaust the memory; left out"),
    "forbidden": Kind("error", "No permission", "cannot be read; left out"),
    "missing": Kind("error", "Gone", "vanished while looking; left out"),
    "leak": Kind("error", "Leak between splits", "the score would flatter; keep one side only"),
    "two_labels": Kind("error", "One picture, two labels", "one of the labels must be wrong"),
    "no_usable": Kind("error", "Class without pictures", "nothing to learn or to measure"),
    "in_no_class": Kind("warning", "In no class", "not used; move it into the folder of its class"),
    "near_two_labels": Kind("warning", "Look-alikes, two labels", "check the labels"),
    "few_pictures": Kind("warning", "Few pictures", "too few to learn from and to measure"),
    "imbalance": Kind("warning", "Imbalance", "small classes tend to be overlooked; try --balance"),
    "duplicates": Kind("warning", "Exact duplicates", "count more than once in training"),
    "near_duplicates": Kind("warning", "Near duplicates", "add little; kept together when split"),
    "tiny": Kind("warning", "Tiny", "hardly anything to see"),
    "extreme_aspect": Kind("warning", "Extremely long", "most of it is cropped away"),
    "animated": Kind("warning", "Animated", "only the first frame is used"),
    "wrong_extension": Kind("note", "Wrong ending", "decoded by content, not by name"),
    "exif_rotated": Kind("note", "EXIF-rotated", "turned upright"),
    "cmyk": Kind("note", "CMYK", "converted to RGB"),
    "sixteen_bit": Kind("note", "16-bit", "scaled to 8 bits"),
    "alpha": Kind("note", "Transparent", "laid on white"),
    "palette": Kind("note", "Palette", "converted to RGB"),
}
"""Every kind of finding, worst first. An error costs pictures or falsifies a score, a warning
deserves a look, a note says what was handled."""


@dataclass(frozen=True)
class PictureReport:
    """One picture file.

    Attributes:
        path: The file.
        split: ``"train"``, ``"val"`` or ``"test"``.
        label: Index into the classes.
        bytes: Size of the file; 0 if it could not be opened.
        reason: Why it cannot be used, in words; None when it can.
        format: Pillow's name of the format; empty when unusable, as all below.
        mode: Pillow's mode as stored.
        width: Pixels, after turning upright.
        height: Pixels, after turning upright.
        digest: SHA-256 of the file.
        group: Name of its group of exact and near duplicates: the digest of one of them.
    """

    path: Path
    split: str
    label: int
    bytes: int = 0
    reason: str | None = None
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    digest: str = ""
    group: str = ""

    @property
    def usable(self) -> bool:
        """Whether it can be decoded."""
        return self.reason is None


@dataclass(frozen=True)
class Finding:
    """Something the user should know.

    Attributes:
        kind: A key of ``KINDS``.
        paths: The files concerned; empty when it is about a class.
        words: What was found there.
    """

    kind: str
    paths: tuple[Path, ...]
    words: str

    @property
    def severity(self) -> Severity:
        """How much it matters: ``"error"``, ``"warning"`` or ``"note"``."""
        return KINDS[self.kind].severity


@dataclass(frozen=True)
class Examination:
    """A folder's health.

    Attributes:
        root: The folder.
        classes: Class names.
        pictures: Every picture, usable or not, in the order of the folder.
        findings: Worst kinds first.
        passed_over: Other files, with the reason.
    """

    root: Path
    classes: tuple[str, ...]
    pictures: tuple[PictureReport, ...]
    findings: tuple[Finding, ...]
    passed_over: tuple[tuple[Path, str], ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that there are, training first."""
        there = {picture.split for picture in self.pictures}
        return tuple(split for split in ("train", "val", "test") if split in there)

    def usable(self, split: str) -> tuple[PictureReport, ...]:
        """The pictures of one split that can be decoded."""
        return tuple(p for p in self.pictures if p.split == split and p.usable)

    def counts(self, split: str) -> tuple[int, ...]:
        """Usable pictures of each class in one split."""
        counts = [0] * len(self.classes)
        for picture in self.usable(split):
            counts[picture.label] += 1
        return tuple(counts)

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def strays_in_words(self) -> str:
        """Pictures that are not used, as they are in no class, in a line; empty if there are none.

        File names in it are as they are on the disk.
        """
        strays = [str(finding.paths[0]) for finding in self.of_kind("in_no_class")]
        if not strays:
            return ""
        noun = "picture" if len(strays) == 1 else "pictures"
        named = ", ".join(strays[:3]) + (", …" if len(strays) > 3 else "")
        return f"{len(strays):,} {noun} in no class, and not used: {named}"

    def require_usable(self) -> None:
        """Makes sure that every class can be trained on.

        Raises:
            DataError: A class has no usable training picture.
        """
        for name, count in zip(self.classes, self.counts("train"), strict=True):
            if count == 0:
                of_class = [p for p in self.pictures if self.classes[p.label] == name]
                first = next(p for p in of_class if p.split == "train")
                raise DataError(
                    f"No picture of class {name!r} in {self.root} can be decoded, for example "
                    f"{first.path}: {first.reason}. Replace them, or remove the class."
                )

    def to_json(self) -> str:
        """Everything, as a JSON document; paths are relative to ``root``."""
        document = {
            "root": str(self.root),
            "classes": self.classes,
            "counts": {
                split: dict(zip(self.classes, self.counts(split), strict=True))
                for split in self.splits
            },
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": finding.severity,
                    "words": finding.words,
                    "paths": [self.relative(path) for path in finding.paths],
                }
                for finding in self.findings
            ],
            "pictures": [
                {**asdict(picture), "path": self.relative(picture.path), "usable": picture.usable}
                for picture in self.pictures
            ],
            "passed_over": [
                {"path": self.relative(path), "reason": reason} for path, reason in self.passed_over
            ],
        }
        # Escaped to ASCII, so that names in a broken encoding survive too.
        return json.dumps(document, indent=1)

    def relative(self, path: Path) -> str:
        """A path as seen from the folder, with forward slashes."""
        return path.relative_to(self.root).as_posix()
