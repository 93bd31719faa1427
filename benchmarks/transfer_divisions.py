"""How much of a transfer's accuracy is the recipe, and how much the luck of the division.

Puts the photos of `train/` and `val/` together and divides them anew, several times, into parts of
about the same sizes (near duplicates of a class stay on one side); trains on each, in each way,
with another seed each time; and prints means, deviations, and what each way gains over the first on
the same divisions. The best epoch was chosen on the pictures that it is measured on, the last one
was not. Divisions share photos, so the error of a gain is wider than that of a mean of independent
values (Nadeau and Bengio 2003).

    python benchmarks/transfer_divisions.py photos/ --weights weights.h5 --width 0.35
    python benchmarks/transfer_divisions.py photos/ --ways "tune: head" "{tune: all, lr: 0.001}"
"""

import argparse
import json
import math
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

import mobilenetv2
from machine import describe, headline, run_main
from mobilenetv2.data.examination import PictureReport
from mobilenetv2.data.folders import scan_folder
from mobilenetv2.data.known_folders import examine_once
from mobilenetv2.errors import ConfigError
from mobilenetv2.settings import merge, nest, parse_settings

WAYS = ["tune: head", "tune: auto"]


def divide(photos: Path, seed: int, target: Path) -> None:
    """Links to all usable photos, in parts of each class as large as the given ones."""
    examination = examine_once(scan_folder(photos))
    if "val" not in examination.splits:
        raise ConfigError(f"{photos} has no val/: nothing says how large the parts are to be")
    random = np.random.default_rng(seed)
    for label, name in enumerate(examination.classes):
        groups: dict[str, list[PictureReport]] = defaultdict(list)
        for split in ("train", "val"):
            for picture in examination.usable(split):
                if picture.label == label:
                    groups[picture.group].append(picture)
        wanted = examination.counts("val")[label]
        for split in ("train", "val"):
            (target / split / name).mkdir(parents=True)
        held_out = 0
        for place in random.permutation(len(groups)):
            group = list(groups.values())[place]
            split = "val" if held_out + len(group) <= wanted else "train"
            held_out += len(group) if split == "val" else 0
            for number, picture in enumerate(group):
                link = target / split / name / f"{place}-{number}{picture.path.suffix}"
                link.symlink_to(picture.path)


def train(
    arguments: argparse.Namespace, photos: Path, way: dict[str, Any], seed: int, out: Path
) -> dict[str, float]:
    """Accuracies of one run: of the best epoch and of the last, and its seconds."""
    start: dict[str, Any] = {"weights": arguments.weights, "seed": seed, "out": out}
    if arguments.width:
        start["width"] = arguments.width
    result = mobilenetv2.train(mobilenetv2.configure(str(photos), **merge(nest(start), way)))
    events = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    last = [event["val_accuracy"] for event in events if event["event"] == "epoch"][-1]
    return {"best": result["val_accuracy"], "last": last, "seconds": result["seconds"]}


def sizes(photos: Path) -> tuple[int, int]:
    """Training and validation pictures, as they are given."""
    found = scan_folder(photos)
    return len(found.train), len(found.val or ())


def line(
    name: str, runs: list[dict[str, float]], first: list[dict[str, float]], share: float
) -> str:
    """A row of the table; ``share``: validation pictures for each one to train on."""
    cells = []
    for epoch in ("best", "last"):
        found = [run[epoch] for run in runs]
        gains = [run[epoch] - other[epoch] for run, other in zip(runs, first, strict=True)]
        error = statistics.stdev(gains) * math.sqrt(1 / len(gains) + share)
        spread = f"{statistics.mean(found):.2%} ± {statistics.stdev(found):.2%}"
        cells += [spread, f"{statistics.mean(gains):+.2%} ± {error:.2%}"]
    seconds = statistics.median(run["seconds"] for run in runs)
    return f"| {name} | {' | '.join(cells)} | {seconds:.0f} |"


def main() -> None:
    """Divide, train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=lambda path: Path(path).resolve())
    parser.add_argument("--weights", default="imagenet", help="a name or a file")
    parser.add_argument("--width", type=float)
    parser.add_argument("--divisions", type=int, default=8)
    parser.add_argument("--ways", nargs="+", default=WAYS, help="settings as YAML, one way each")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    if arguments.divisions < 2:
        parser.error("--divisions: two or more show a spread")
    training, validation = sizes(arguments.photos)
    ways = {way: parse_settings(way, f"--ways {way!r}") for way in arguments.ways}
    print(headline(), flush=True)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for seed in range(arguments.divisions):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            divide(arguments.photos, seed, folder / "photos")
            for place, (way, settings) in enumerate(ways.items()):
                runs[way].append(
                    train(arguments, folder / "photos", settings, seed, folder / f"run-{place}")
                )
                best, last = (runs[way][-1][epoch] for epoch in ("best", "last"))
                print(f"division {seed}, {way}: {best:.2%}, last {last:.2%}", flush=True)
    head = "| | best epoch | gain over the first | last epoch | gain over the first | seconds |"
    print(
        f"\nmean ± standard deviation over {arguments.divisions} divisions, gains ± standard error"
    )
    print("\n".join([head, "|---" * 6 + "|"]))
    for way, found in runs.items():
        print(line(way, found, next(iter(runs.values())), validation / training))
    if arguments.json:
        report = {"machine": describe(), "arguments": vars(arguments), "runs": runs}
        arguments.json.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    run_main(main)
