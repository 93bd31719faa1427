"""How much of a transfer's accuracy is the recipe, and how much the luck of the division.

Puts the photos of `train/` and `val/` together and divides them anew, several times, into parts of
the same sizes (near duplicates stay on one side); trains on each, in each way; and prints means,
spread, and what each way gains over the first, picture by picture of the same divisions. The best
epoch was chosen on the pictures that it is measured on, the last one was not.

    python benchmarks/transfer_divisions.py photos/ --weights weights.h5 --width 0.35
    python benchmarks/transfer_divisions.py photos/ --ways "tune: head" "{tune: all, lr: 0.001}"
"""

import argparse
import json
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
from mobilenetv2.settings import merge, nest, parse_settings

WAYS = ["tune: head", "tune: auto"]


def divide(photos: Path, seed: int, target: Path) -> None:
    """Links to all usable photos, in parts of each class as large as the given ones."""
    examination = examine_once(scan_folder(photos))
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
            for picture in group:
                where = "-".join(picture.path.relative_to(photos).parts)
                (target / split / name / where).symlink_to(picture.path)


def train(
    arguments: argparse.Namespace, photos: Path, way: dict[str, Any], out: Path
) -> dict[str, float]:
    """Accuracies of one run: of the best epoch and of the last, and its seconds."""
    start = nest({"weights": arguments.weights, "width": arguments.width, "out": out})
    result = mobilenetv2.train(mobilenetv2.configure(str(photos), **merge(start, way)))
    events = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    last = [event["val_accuracy"] for event in events if event["event"] == "epoch"][-1]
    return {"best": result["val_accuracy"], "last": last, "seconds": result["seconds"]}


def line(name: str, runs: list[dict[str, float]], first: list[dict[str, float]]) -> str:
    """A row of the table."""
    cells = []
    for epoch in ("best", "last"):
        found = [run[epoch] for run in runs]
        gains = [run[epoch] - other[epoch] for run, other in zip(runs, first, strict=True)]
        cells += [_spread(found), f"{statistics.mean(gains):+.2%} ± {_error(gains):.2%}"]
    seconds = statistics.median(run["seconds"] for run in runs)
    return f"| {name} | {' | '.join(cells)} | {seconds:.0f} |"


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2%} ± {deviation:.2%}"


def _error(values: list[float]) -> float:
    """The standard error of a mean."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


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
    ways = {way: parse_settings(way, f"--ways {way!r}") for way in arguments.ways}
    print(headline(), flush=True)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for seed in range(arguments.divisions):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            divide(arguments.photos, seed, folder / "photos")
            for place, (way, settings) in enumerate(ways.items()):
                runs[way].append(
                    train(arguments, folder / "photos", settings, folder / f"run-{place}")
                )
                best, last = (runs[way][-1][epoch] for epoch in ("best", "last"))
                print(f"division {seed}, {way}: {best:.2%}, last {last:.2%}", flush=True)
    head = "| | best epoch | gain over the first | last epoch | gain over the first | seconds |"
    print(
        f"\nmean ± standard deviation over {arguments.divisions} divisions, gains ± standard error"
    )
    print("\n".join([head, "|---" * 6 + "|"]))
    for way, found in runs.items():
        print(line(way, found, next(iter(runs.values()))))
    if arguments.json:
        report = {"machine": describe(), "arguments": vars(arguments), "runs": runs}
        arguments.json.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    run_main(main)
