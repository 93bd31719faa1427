"""The doctor: looks at every file of a folder once and says what is wrong. It changes nothing."""

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobilenetv2.data.examination import Examination, Finding, PictureReport
from mobilenetv2.data.findings import (
    about_classes,
    about_copies,
    about_one_picture,
    about_strays,
    sorted_findings,
)
from mobilenetv2.data.fingerprints import (
    ENOUGH_PIXELS,
    file_digest,
    fingerprint,
    group_names,
    near_duplicate_groups,
)
from mobilenetv2.data.folders import PictureFolder
from mobilenetv2.data.many_files import in_order, threads_for
from mobilenetv2.data.pictures import UnreadablePicture, decode, open_file
from mobilenetv2.data.unreadable import as_unreadable


def examine(
    folder: PictureFolder,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    decoded: Callable[[PictureReport, Image.Image], None] | None = None,
) -> Examination:
    """Opens and decodes every picture of a folder once, and reports what is wrong.

    Args:
        folder: As ``scan_folder`` found it.
        threads: That decode at the same time; by default as many as are fastest here.
        progress: Called with the number of pictures done and their total, after each.
        decoded: Called by the threads with each picture that can be decoded, of mode RGB, upright;
            a JPEG at the smallest scale whose shorter side has ``ENOUGH_PIXELS``, an eighth at
            most.

    Returns:
        The examination. Memory stays at about 1 KB per picture and what the decoding of one picture
        per thread takes, at most ``MAX_PIXELS`` each.
    """
    todo = [
        PictureReport(file.path, split, file.label)
        for split, files in folder.splits.items()
        for file in files
    ]
    looks = []
    threads = threads or threads_for([picture.path for picture in todo])
    look_at = partial(_look_at, decoded=decoded)
    for done, look in enumerate(in_order(look_at, todo, threads), start=1):
        looks.append(look)
        if progress is not None:
            progress(done, len(todo))
    pictures = _with_groups(looks)
    findings = [finding for look in looks for finding in look.findings]
    findings += about_copies([picture for picture in pictures if picture.usable], folder.classes)
    findings += about_classes(pictures, folder.classes, list(folder.splits))
    findings += about_strays(folder)
    return Examination(
        root=folder.root,
        classes=folder.classes,
        pictures=tuple(pictures),
        findings=sorted_findings(findings),
        passed_over=folder.passed_over,
    )


class _Look(NamedTuple):
    """What one file told."""

    picture: PictureReport
    findings: tuple[Finding, ...]
    fingerprint: NDArray[np.uint8] | None


def _look_at(
    picture: PictureReport, decoded: Callable[[PictureReport, Image.Image], None] | None
) -> _Look:
    """Reads one file once: its bytes for the digest, its pixels for the fingerprint."""
    size, digest = 0, ""
    try:
        with open_file(picture.path) as file:
            size = os.fstat(file.fileno()).st_size
            with as_unreadable(picture.path, file):
                digest = file_digest(file)
            # JPEGs are decoded at reduced scale: every byte is read, few pixels are made.
            header, image = decode(file, picture.path, "RGB", at_least=ENOUGH_PIXELS)
            traces = fingerprint(image)
    except UnreadablePicture as error:
        picture = dataclasses.replace(picture, bytes=size, digest=digest, reason=error.reason)
        return _Look(picture, (Finding(error.defect, (picture.path,), error.reason),), None)
    picture = dataclasses.replace(
        picture,
        bytes=size,
        digest=digest,
        format=header.format,
        mode=header.mode,
        width=header.width,
        height=header.height,
    )
    if decoded is not None:
        decoded(picture, image)
    return _Look(picture, tuple(about_one_picture(picture, header)), traces)


def _with_groups(looks: list[_Look]) -> list[PictureReport]:
    """The pictures, each usable one with the name of its group of near duplicates."""
    seen = [look for look in looks if look.fingerprint is not None]
    if not seen:
        return [look.picture for look in looks]
    digests = [look.picture.digest for look in seen]
    groups = near_duplicate_groups(
        digests,
        np.stack([look.fingerprint for look in seen if look.fingerprint is not None]),
        [min(look.picture.width, look.picture.height) for look in seen],
    )
    sizes = [(look.picture.width * look.picture.height, look.picture.bytes) for look in seen]
    names = iter(group_names(groups, digests, sizes))
    return [
        look.picture
        if look.fingerprint is None
        else dataclasses.replace(look.picture, group=next(names))
        for look in looks
    ]
