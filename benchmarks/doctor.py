"""How long the doctor takes, beside decoding the same files and nothing else.

Writes distinct JPEG files of about 100 KB into a temporary folder, then measures in turns, with the
same number of threads: decoding every file in full with Pillow, decoding at the reduced scale that
the doctor uses, and the whole examination (digest, decoding, fingerprint, near duplicates, rules).

    python benchmarks/doctor.py                         # 10,000 files, 1 GB
    python benchmarks/doctor.py --files 1000 --rounds 5
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from mobilenetv2.data.doctor import examine
from mobilenetv2.data.fingerprints import ENOUGH_PIXELS
from mobilenetv2.data.folders import PictureFolder, scan_folder


def write_photos(folder: Path, count: int) -> int:
    """Distinct noise with structure at every scale; returns the bytes written."""
    draw = np.random.default_rng(0)
    written = 0
    for number in range(count):
        picture = np.zeros((480, 640, 3), np.float32)
        for cells in (4, 16, 64):
            grid = Image.fromarray(draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            picture += np.asarray(grid.resize((640, 480), Image.Resampling.BICUBIC))
        picture = picture / 3 + draw.normal(0, 7, (480, 640, 1)).astype(np.float32)
        path = folder / f"class_{number % 10}" / f"{number:05}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=88)
        written += path.stat().st_size
    return written


def decode_fully(path: Path) -> None:
    """All pixels, as every reader must."""
    with Image.open(path) as image:
        image.load()


def decode_reduced(path: Path) -> None:
    """An eighth or so of the pixels a side."""
    with Image.open(path) as image:
        image.draft("RGB", (ENOUGH_PIXELS, ENOUGH_PIXELS))
        image.load()


def decode_all(paths: Iterable[Path], decode: Callable[[Path], None]) -> None:
    """Decodes with one thread per processor."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, paths):
            pass


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall time, and processor time of all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(folder: PictureFolder, rounds: int) -> None:
    """Takes turns, prints every time, the medians and the ratios."""
    paths = [file.path for file in folder.train]
    sides: dict[str, Callable[[], object]] = {
        "decoding in full": lambda: decode_all(paths, decode_fully),
        "decoding reduced": lambda: decode_all(paths, decode_reduced),
        "the doctor": lambda: examine(folder),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, work in sides.items():
            wall, processor = seconds(work)
            times[name].append((wall, processor))
            took = f"{wall:8.2f} s, processors {processor:8.2f} s"
            print(f"  round {number + 1}  {name:<18}{took}", flush=True)
    for index, clock in enumerate(("wall time", "processor time")):
        full, reduced, doctor = (median(t[index] for t in times[name]) for name in sides)
        print(f"{clock}: {full:.2f} s in full, {reduced:.2f} s reduced, {doctor:.2f} s the doctor")
        print(f"  doctor / decoding in full  {doctor / full:.2f}   (to reach: 1.20 or less)")
        print(f"  doctor / decoding reduced  {doctor / reduced:.2f}")


def main() -> None:
    """Parses the options and measures in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = write_photos(folder, options.files)
        print(f"{options.files:,} files, {written / options.files / 1000:.0f} KB each, on average")
        measure(scan_folder(folder), options.rounds)


if __name__ == "__main__":
    main()
