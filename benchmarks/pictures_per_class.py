"""How many photos a class needs: accuracy with few pictures, pretrained and from nothing.

Draws pictures of each class from `train/`, trains on them, and measures on all of `val/`; several
draws per row, with the spread over them. The table is Markdown, for the documentation. Figures
already in the file that --json names are kept, so that a table can be made in parts.

    python benchmarks/pictures_per_class.py photos/ --weights imagenet --json few.json
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mobilenetv2
from machine import describe, headline, run_main
from mobilenetv2.data.folders import scan_folder

WAYS = {
    "`--tune head`": {"tune": "head"},
    "`--tune auto`": {"tune": "auto"},
    "from nothing": {"weights": "none"},
}


def draw(photos: Path, per_class: int, seed: int, target: Path) -> None:
    """A folder of links to ``per_class`` training pictures of each class, and to ``val/``."""
    found = scan_folder(photos)
    random = np.random.default_rng((seed, per_class))
    for label, name in enumerate(found.classes):
        paths = [file.path for file in found.train if file.label == label]
        if len(paths) < per_class:
            raise SystemExit(f"{name} has {len(paths)} pictures, not {per_class}")
        (target / "train" / name).mkdir(parents=True)
        for place in random.permutation(len(paths))[:per_class]:
            path = paths[place]
            (target / "train" / name / path.name).symlink_to(path)
    (target / "val").symlink_to(photos / "val")


def run(arguments: argparse.Namespace, way: str, per_class: int, seed: int) -> dict[str, Any]:
    """`result.json` of one training."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(arguments.photos, per_class, seed, folder / "photos")
        pretrained = {"weights": arguments.weights, "width": arguments.width}
        settings = {**pretrained, **WAYS[way], "seed": seed, "out": folder / "run"}
        config = mobilenetv2.configure(str(folder / "photos"), **settings)
        return mobilenetv2.train(config)


def table(runs: dict[str, dict[str, Any]], sizes: Sequence[int], ways: Sequence[str]) -> str:
    """Mean ± standard deviation over the draws, as Markdown."""
    lines = [
        f"| pictures per class | {' | '.join(ways)} |",
        "|---|" + "---|" * len(ways),
    ]
    for size in sizes:
        cells = []
        for way in ways:
            found = [value for key, value in runs.items() if key.startswith(f"{way}, {size}, ")]
            accuracies = [value["val_accuracy"] for value in found]
            if not accuracies:
                cells.append("")
                continue
            spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
            seconds = statistics.median(value["seconds"] for value in found)
            mean = statistics.mean(accuracies)
            cells.append(f"{mean:.1%} ± {spread:.1%} ({len(found)} draws, {seconds:.0f} s)")
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=lambda path: Path(path).resolve(), help="train/ and val/")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--width", type=float)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 25, 50, 100])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--json", type=Path, help="read what is known, and add the rest")
    arguments = parser.parse_args()
    print(headline(), flush=True)
    known = arguments.json is not None and arguments.json.exists()
    report = json.loads(arguments.json.read_text()) if known else {"machine": describe()}
    runs: dict[str, dict[str, Any]] = report.setdefault("runs", {})
    for seed in range(arguments.draws):
        for size in arguments.sizes:
            for way in arguments.ways:
                key = f"{way}, {size}, {seed}"
                if key in runs:
                    continue
                runs[key] = run(arguments, way, size, seed)
                print(f"{key}: {runs[key]['val_accuracy']:.1%}", flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print("\n" + table(runs, arguments.sizes, arguments.ways))


if __name__ == "__main__":
    run_main(main)
