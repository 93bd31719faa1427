"""Prediction over a folder, from picture files to a CSV, beside what everybody writes first.

That way: Pillow opens a file, torchvision's transforms resize, crop and normalise it, and the same
network answers in PyTorch's eager mode, in float32, 32 pictures at a time; once decoding in the
same process and once in a DataLoader with a worker per core. Both sides start with the classifier
in memory, take turns, and write every label and probability.

    python benchmarks/predict.py runs/photos photos/ --rounds 5
    python benchmarks/predict.py runs/photos photos/ --runtime cpp cpp-bf16 openvino-bf16
"""

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import mobilenetv2
from machine import describe, headline, run_main
from mobilenetv2.cores import available_cores
from mobilenetv2.data.picture_tree import list_pictures
from mobilenetv2.evaluation.predict_files import predict_files
from mobilenetv2.evaluation.prediction_table import CsvWriter
from mobilenetv2.network.build import build_network
from mobilenetv2.runtimes.engine import with_runtime

BATCH = 32
TOP = 3


class Files(Dataset[tuple[int, torch.Tensor]]):
    """Picture files through torchvision's transforms."""

    def __init__(self, paths: Sequence[Path], classifier: mobilenetv2.Classifier) -> None:
        self.paths = paths
        wanted = classifier.preprocessing
        self.colour = "RGB" if wanted.colour == "rgb" else "L"
        self.transform = transforms.Compose(
            [
                transforms.Resize(wanted.resize),
                transforms.CenterCrop((wanted.height, wanted.width)),
                transforms.ToTensor(),
                transforms.Normalize(wanted.mean, wanted.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, self.transform(Image.open(self.paths[index]).convert(self.colour))


def plain(
    classifier: mobilenetv2.Classifier, paths: Sequence[Path], target: Path, workers: int
) -> None:
    """The way that everybody writes first."""
    channels = classifier.preprocessing.channels
    network = build_network(classifier.config, len(classifier.labels), channels)
    network.load_state_dict(classifier.network.state_dict())
    network.eval()
    files = Files(paths, classifier)
    top = min(TOP, len(classifier.labels))
    with target.open("w", newline="") as file, torch.inference_mode():
        writer = csv.writer(file)
        for indices, pictures in DataLoader(files, BATCH, num_workers=workers):
            best = network(pictures).softmax(1).topk(top)
            for index, values, places in zip(
                indices.tolist(), best.values.tolist(), best.indices.tolist(), strict=True
            ):
                row = [paths[index]]
                for value, place in zip(values, places, strict=True):
                    row += [classifier.labels[place], f"{value:.6f}"]
                writer.writerow(row)


def ours(classifier: mobilenetv2.Classifier, paths: Sequence[Path], target: Path) -> None:
    """What `mobilenetv2 predict --csv` does."""
    writer = CsvWriter(min(TOP, len(classifier.labels)))
    with target.open("w", encoding="utf-8") as file:
        file.write(writer.header)
        for prediction in predict_files(classifier, paths, TOP):
            file.write(writer.line(prediction))


def agreement(a: Path, b: Path) -> float:
    """Share of the files that get the same first label on both sides."""
    labels = zip(first_labels(a), first_labels(b), strict=True)
    return statistics.mean(one == other for one, other in labels)


def first_labels(table: Path) -> list[str]:
    """Of a table of ours, or of one without a header whose second column they are."""
    first, *rows = csv.reader(table.read_text(encoding="utf-8").splitlines())
    if "label_1" in first:
        return [row[first.index("label_1")] for row in rows]
    return [row[1] for row in (first, *rows)]


def main() -> None:
    """Measure in turns, and print pictures per second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a run folder or model file")
    parser.add_argument("pictures", type=Path, nargs="+", help="files or folders, all readable")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtime", nargs="*", default=[], help="ours with these, too")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    print(headline(), flush=True)
    classifier = mobilenetv2.load(arguments.model)
    paths = list_pictures(arguments.pictures)
    cores = available_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides: dict[str, Callable[[Path], None]] = {
            "ours": lambda target: ours(classifier, paths, target),
            "plain, no workers": lambda target: plain(classifier, paths, target, 0),
            f"plain, {cores} workers": lambda target: plain(classifier, paths, target, cores),
        }
        for runtime in arguments.runtime:
            faster = with_runtime(classifier, runtime, cores)
            sides[f"ours, {runtime}"] = partial(ours, faster, paths)
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(arguments.rounds + 1):
            for place, (side, work) in enumerate(sides.items()):
                started = time.perf_counter()
                work(folder / f"{place}.csv")
                rate = len(paths) / (time.perf_counter() - started)
                if number:  # the first round warms up
                    rates[side].append(rate)
                    print(f"  round {number}  {side:<24}{rate:8.1f} pictures/s", flush=True)
        places = range(len(sides))
        same = [agreement(folder / f"{place}.csv", folder / "1.csv") for place in places]
    medians = {side: statistics.median(values) for side, values in rates.items()}
    plainest = max(rate for side, rate in medians.items() if side.startswith("plain"))
    for (side, rate), share in zip(medians.items(), same, strict=True):
        print(
            f"{side:<24}{rate:8.1f} pictures/s, {rate / plainest:.2f} times the best plain way, "
            f"{share:.1%} of {len(paths)} labels as the plain way's"
        )
    if arguments.json:
        report = {"machine": describe(), "pictures": len(paths), "same": same, "rates": rates}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
