"""More pictures to prove a file on: each photo as it is, mirrored, and cut out of itself.

For comparing answers, not for measuring accuracy: copies of a photo are no new photos. Sizes differ
from one cut to the next, so that an exported file's resizing is tried on many of them. With
``digits`` in place of a folder, all 1,797 of scikit-learn's, those of the training too.

    python benchmarks/picture_variants.py photos/ variants/
    mobilenetv2 export runs/photos --verify variants/
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mobilenetv2.config import DataConfig
from mobilenetv2.data.named_sets import read_named_set
from mobilenetv2.data.picture_tree import list_pictures
from mobilenetv2.data.pictures import UnreadablePicture, read_picture

SMALLEST = 0.5
"""Of the sides, in a cut."""


def main() -> None:
    """Write them into a folder for each class."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="a folder of CLASS/… at any depth, or digits")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    written = 0
    source = digits() if arguments.pictures == Path("digits") else variants(arguments.pictures)
    for label, name, picture in source:
        folder = arguments.out / label
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{name}.png")
        written += 1
    print(f"{written:,} pictures: {arguments.out}")


def variants(pictures: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """Label, name and picture, three for each readable one."""
    random = np.random.default_rng(0)
    for path in list_pictures([pictures]):
        try:
            picture = Image.fromarray(np.asarray(read_picture(path, "RGB")))
        except UnreadablePicture:
            continue
        yield path.parent.name, path.stem, picture
        yield path.parent.name, f"{path.stem}-mirrored", ImageOps.mirror(picture)
        yield path.parent.name, f"{path.stem}-cut", cut(picture, random)


def digits() -> Iterator[tuple[str, str, Image.Image]]:
    """Label, name and picture of both sets."""
    named = read_named_set(DataConfig(data="digits"))
    for part, (pictures, labels) in {"train": named.train, "test": named.test}.items():
        for place, (pixels, label) in enumerate(zip(pictures, labels, strict=True)):
            yield named.classes[label], f"{part}-{place}", Image.fromarray(pixels)


def cut(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """A part of a picture, at a random place and of a random size."""
    width, height = (round(side * random.uniform(SMALLEST, 1)) for side in picture.size)
    left = int(random.integers(picture.width - width + 1))
    top = int(random.integers(picture.height - height + 1))
    return picture.crop((left, top, left + width, top + height))


if __name__ == "__main__":
    main()
