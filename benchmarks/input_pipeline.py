"""Files to training batches: ours against torchvision's usual way, in one interleaved run.

    python benchmarks/input_pipeline.py photos/train
    python benchmarks/input_pipeline.py photos/train --rounds 5 --json input_pipeline.json

Both sides bring the pictures of a folder (`CLASS/…`) to normalised float32 batches N×3×224×224 with
a random resized crop and a mirror image. Torchvision decodes every file anew in each epoch, in
worker processes. Ours examines and decodes each file once, keeps it small as uint8, and changes
whole batches; so the first epoch, which contains all that, is told apart from the later ones.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import mobilenetv2
from machine import describe, headline, run_main
from mobilenetv2.config import AugmentConfig
from mobilenetv2.cores import available_cores
from mobilenetv2.data.batches import Batches
from mobilenetv2.data.sources import load_data

SIDE = 224
SMALLEST_CROP = 0.35


def main() -> None:
    """Take turns, and print pictures per second and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="CLASS/… with pictures that can all be read")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="of torchvision's side"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    print(headline())
    rates: dict[str, list[float]] = {"torchvision": [], "ours, first": [], "ours, later": []}
    for _ in range(arguments.rounds):
        rates["torchvision"].append(torchvision_epoch(arguments))
        first, later = our_epochs(arguments)
        rates["ours, first"].append(first)
        rates["ours, later"].append(later)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        ratio = rate / medians["torchvision"]
        print(f"{name:12} {rate:9.1f} pictures/s  {ratio:6.2f} × torchvision")
    if arguments.json:
        report = {"machine": describe(), "rates": rates, "medians": medians}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def torchvision_epoch(arguments: argparse.Namespace) -> float:
    """Pictures per second of an epoch of torchvision's data set and loader."""
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(SIDE, scale=(SMALLEST_CROP, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    pictures = ImageFolder(str(arguments.folder), transform)
    loader = torch.utils.data.DataLoader(
        pictures, arguments.batch_size, shuffle=True, num_workers=arguments.workers
    )
    return timed(lambda: sum(len(labels) for _, labels in loader))


def our_epochs(arguments: argparse.Namespace) -> tuple[float, float]:
    """Pictures per second of the first epoch, reading included, and of the second."""
    made: list[tuple[mobilenetv2.Classifier, Batches]] = []

    def read() -> int:
        data = load_data(mobilenetv2.DataConfig(data=str(arguments.folder), image_size=SIDE))
        size = (data.preprocessing.height, data.preprocessing.width)
        augment = AugmentConfig(crop=SMALLEST_CROP, flip=True)
        network = mobilenetv2.NetworkConfig(width=0.1)
        classifier = mobilenetv2.Classifier.create(network, data.preprocessing, data.classes)
        made.append((classifier, Batches(data.train, size, arguments.batch_size, augment, 0)))
        return epoch() + len(data.val)

    def epoch() -> int:
        classifier, batches = made[-1]
        count = 0
        for batch in batches.epoch(0):
            count += len(classifier.normalize(batch.pictures))
        return count

    return timed(read), timed(epoch)


def timed(work: Callable[[], int]) -> float:
    """Pictures per second of ``work``, which says how many it did."""
    started = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    run_main(main)
