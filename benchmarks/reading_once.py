"""What is saved where pictures are read once, and a folder is examined once.

Full-size photos are made ready for training as a first start does: with the pictures kept that the
doctor has decoded, and as if nothing were kept. Small pictures are made ready by a first start and
by a later one, which relies on the first one's examination. Both sides in turns, in one run.

    python benchmarks/reading_once.py
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from machine import headline, run_main, seconds
from mobilenetv2.config import DataConfig
from mobilenetv2.data import known_folders
from mobilenetv2.data.folders import scan_folder
from mobilenetv2.data.kept_pictures import KeptPictures
from mobilenetv2.data.sources import load_data
from small_files import write as write_digits

SIZE = (4032, 3024)


def write_photos(folder: Path, count: int) -> None:
    """Distinct JPEGs of twelve megapixels, with structure at every scale and some noise."""
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 4, (SIZE[1], SIZE[0], 1)).astype(np.int16)
    for number in range(count):
        small = Image.fromarray(draw.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize(SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
        path = folder / f"class_{number % 2}" / f"{number:04}.jpg"
        path.parent.mkdir(exist_ok=True)
        noisy = (pixels + np.roll(noise, number, 0)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path, quality=88)


def start(folder: Path, *, first: bool, keep: bool = True) -> None:
    """Make a folder ready for training."""
    if first:
        known_folders.forget(scan_folder(folder))
    keeping = KeptPictures.keep
    try:
        if not keep:
            KeptPictures.keep = lambda *_: None  # type: ignore[method-assign]
        load_data(DataConfig(data=str(folder)))
    finally:
        KeptPictures.keep = keeping  # type: ignore[method-assign]


def compare(what: str, rounds: int, **sides: Callable[[], None]) -> None:
    """Time two sides in turns, and print both and their ratio."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            times[name].append(seconds(work))
    (slow, before), (fast, after) = ((name, median(each)) for name, each in times.items())
    words = f"{slow.replace('_', ' ')} {before:.2f} s, {fast.replace('_', ' ')} {after:.2f} s"
    print(f"{what}: {words}: {before / after:.2f} ×", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--small", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.photos < 20 or arguments.small < 100 or arguments.rounds < 1:
        parser.error("take 20 photos, 100 small pictures and one round at least")
    print(headline())
    with tempfile.TemporaryDirectory() as name:
        os.environ["MOBILENETV2_CACHE"] = str(Path(name, "cache"))
        photos, small = Path(name, "photos"), Path(name, "small")
        photos.mkdir()
        small.mkdir()
        write_photos(photos, arguments.photos)
        write_digits(small, arguments.small)
        time.sleep(known_folders.SETTLED + 1)  # what has just been written is not relied on
        compare(
            f"{arguments.photos} photos of {SIZE[0]} × {SIZE[1]} pixels, first start",
            arguments.rounds,
            read_twice=lambda: start(photos, first=True, keep=False),
            read_once=lambda: start(photos, first=True),
        )
        compare(
            f"{arguments.small:,} digits of 28 × 28 pixels",
            arguments.rounds,
            first_start=lambda: start(small, first=True),
            later_start=lambda: start(small, first=False),
        )


if __name__ == "__main__":
    run_main(main)
