"""What few small pictures gain from smaller batches and more epochs, as their recipe has them.

Writes so many pictures of each MNIST digit into a folder, and some of the test set beside them;
trains on it with the defaults for folders, and with batches of 128 in 30 epochs.

    python benchmarks/few_pictures.py --data-dir data --per-class 20 50 150
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mobilenetv2
from machine import describe, headline, run_main
from mobilenetv2.config import DataConfig
from mobilenetv2.data.named_sets import read_named_set

TESTED = 200
"""Test pictures of each digit."""
WAYS: dict[str, dict[str, Any]] = {
    "as the recipe has it": {},
    "batches of 128, 30 epochs": {"batch_size": 128, "lr": 0.1, "epochs": 30},
}


def write(data_dir: Path | None, per_class: int, seed: int, target: Path) -> None:
    """A folder with `train/` and `test/`; ``seed`` chooses the pictures to train on."""
    raw = read_named_set(DataConfig(data="mnist", data_dir=data_dir))
    for part, (pictures, labels), count in (
        ("train", raw.train, per_class),
        ("test", raw.test, TESTED),
    ):
        random = np.random.default_rng(seed if part == "train" else 0)
        for digit in range(10):
            (target / part / str(digit)).mkdir(parents=True)
            for place in random.permutation(np.flatnonzero(labels == digit))[:count]:
                picture = Image.fromarray(np.squeeze(np.asarray(pictures[place])))
                picture.save(target / part / str(digit) / f"{place}.png")


def main() -> None:
    """Write, train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="where MNIST lies")
    parser.add_argument("--per-class", type=int, nargs="+", default=[20, 50, 150])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    if arguments.draws < 2:
        parser.error("--draws: two or more show a spread")
    print(headline(), flush=True)
    runs: dict[str, list[dict[str, Any]]] = {}
    for per_class in arguments.per_class:
        for seed in range(arguments.draws):
            with tempfile.TemporaryDirectory() as name:
                pictures = Path(name) / "pictures"
                write(arguments.data_dir, per_class, seed, pictures)
                for place, (way, settings) in enumerate(WAYS.items()):
                    config = mobilenetv2.configure(
                        str(pictures), **settings, seed=seed, out=Path(name) / str(place)
                    )
                    result = mobilenetv2.train(config)
                    runs.setdefault(f"{per_class} of each, {way}", []).append(result)
        for way in WAYS:
            row = f"{per_class} of each, {way}"
            found = [result["test_accuracy"] for result in runs[row]]
            seconds = statistics.median(result["seconds"] for result in runs[row])
            print(
                f"{row}: {statistics.mean(found):.2%} ± {statistics.stdev(found):.2%} of "
                f"{10 * TESTED} test pictures, {seconds:.0f} s",
                flush=True,
            )
    if arguments.json:
        report = {"machine": describe(), "arguments": vars(arguments), "runs": runs}
        arguments.json.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    run_main(main)
