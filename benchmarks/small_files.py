"""Small files: one thread beside one per core, in the same run.

Practice digits as PNG files of a few hundred bytes are examined, as the doctor does, and named by a
network of width 0.25 at 28 px, with random weights: by one worker in large batches, and by a
worker for each core in the batches that photos get.

    python benchmarks/small_files.py
"""

import argparse
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from machine import headline, run_main
from mobilenetv2.classifier import Classifier
from mobilenetv2.config import NetworkConfig, Preprocessing
from mobilenetv2.cores import available_cores
from mobilenetv2.data.doctor import examine
from mobilenetv2.data.folders import scan_folder
from mobilenetv2.evaluation.predict_files import BATCH_SIZE, LARGE_BATCH, predict_files

SIDE = 28


def write(folder: Path, count: int) -> list[Path]:
    """So many digits, in a folder for each class."""
    digits = load_digits()
    paths = []
    for number in range(count):
        place = number % len(digits.images)
        path = folder / str(digits.target[place]) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        small = Image.fromarray((digits.images[place] * 15).astype(np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(path)
        paths.append(path)
    return paths


def rate(work: Callable[[], object], count: int) -> float:
    """Files a second."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure by turns, and print both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    preprocessing = Preprocessing(
        colour="grey", height=SIDE, width=SIDE, resize=SIDE, mean=(0.1,), std=(0.3,)
    )
    labels = tuple("0123456789")
    classifier = Classifier.create(NetworkConfig(width=0.25), preprocessing, labels)
    cores = available_cores()
    with tempfile.TemporaryDirectory() as name:
        paths = write(Path(name), arguments.files)
        size = sum(path.stat().st_size for path in paths) // len(paths)
        folder = scan_folder(Path(name))
        works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "examined": (lambda: examine(folder, threads=1), lambda: examine(folder, cores)),
            "named": (
                lambda: deque(predict_files(classifier, paths, 3, 1, LARGE_BATCH), 0),
                lambda: deque(predict_files(classifier, paths, 3, cores, BATCH_SIZE), 0),
            ),
        }
        print(headline())
        print(f"{len(paths):,} files of {size} bytes; medians of {arguments.rounds} rounds")
        for what, sides in works.items():
            rates: tuple[list[float], list[float]] = ([], [])
            for _ in range(arguments.rounds):
                for side, work in zip(rates, sides, strict=True):
                    side.append(rate(work, len(paths)))
            one, many = map(median, rates)
            print(f"{what}: {one:,.0f} a second by one, {many:,.0f} by {cores}: {one / many:.2f} ×")


if __name__ == "__main__":
    run_main(main)
