"""Time to an accuracy on MNIST: the plain first version against this program, in one run.

The first version trains as it did: Adam at 0.001, batches of 64, pixels from 0 to 1, PyTorch's
defaults; after its first evaluation it stays in eval mode. The two take turns, an epoch of the
first version and then a whole run of ours with another seed, so that a noisy machine treats both
alike. The clock counts training (data and augmentation included), not evaluation.

    python benchmarks/first_version.py --data-dir ~/mnist --json first_version.json
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import mobilenetv2
from machine import describe, headline
from mobilenetv2.data.named_sets import read_named_set

# One pass is enough. Small batches give it many steps, and what helps longer runs (averaging,
# dropout, turning and zooming) would only slow this one down.
SPRINT = {
    "epochs": 1,
    "batch_size": 96,
    "lr": 0.12,
    "warmup_epochs": 0.2,
    "strides": (2, 1, 2, 2, 2, 1, 1, 1),
    "weight_decay": 5e-4,
    "norm_momentum": 0.1,
    "val_fraction": 0.02,
    "dropout": 0.0,
    "ema": 0.0,
    "shift": 0.04,
    "rotate": 0.0,
    "zoom": 0.0,
    "shear": 0.0,
}
EPOCHS = 5


def main() -> None:
    """Run both sides and print the ratio."""
    arguments = parse()
    print(headline())
    folder = Path(tempfile.mkdtemp())
    plain, sprints = PlainFirstVersion(arguments.data_dir), []
    for seed in range(arguments.epochs):
        accuracy = plain.train_epoch()
        print(f"first version, epoch {seed + 1}: {plain.seconds:7.1f} s  test {accuracy:.2%}")
        sprint = train_ours(arguments.data_dir, seed, folder / str(seed))
        sprints.append(sprint)
        print(f"ours, seed {seed}:           {sprint[0]:7.1f} s  test {sprint[1]:.2%}")
        if accuracy >= arguments.target:
            break
    report(arguments, plain, sprints)


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="where MNIST lies")
    parser.add_argument("--target", type=float, default=0.987, help="test accuracy to reach")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the first version, at most")
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser.parse_args()


class PlainFirstVersion:
    """The first version's network and loop."""

    def __init__(self, data_dir: Path | None) -> None:
        raw = read_named_set(mobilenetv2.DataConfig(data="mnist", data_dir=data_dir))
        self.train, self.test = (
            torch.utils.data.TensorDataset(
                torch.from_numpy(pictures.copy()).unsqueeze(1).float() / 255,
                torch.from_numpy(labels),
            )
            for pictures, labels in (raw.train, raw.test)
        )
        torch.manual_seed(0)
        self.network = mobilenetv2.FirstVersion()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.001)
        self.seconds = 0.0
        self.accuracies: list[float] = []

    def train_epoch(self) -> float:
        """One pass over the 60,000 training pictures; the test accuracy after it."""
        started = time.perf_counter()
        loader = torch.utils.data.DataLoader(self.train, batch_size=64, shuffle=True)
        for pictures, labels in loader:
            loss = F.cross_entropy(self.network(pictures), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.seconds += time.perf_counter() - started
        self.network.eval()  # and it never went back
        with torch.no_grad():
            hits = sum(
                int((self.network(pictures).argmax(1) == labels).sum())
                for pictures, labels in torch.utils.data.DataLoader(self.test, batch_size=500)
            )
        self.accuracies.append(hits / len(self.test))
        return self.accuracies[-1]


def train_ours(data_dir: Path | None, seed: int, out: Path) -> tuple[float, float]:
    """Seconds of training and test accuracy of a short run."""
    config = mobilenetv2.configure("mnist", data_dir=data_dir, seed=seed, out=out, **SPRINT)
    result = mobilenetv2.train(config)
    return result["training_seconds"], result["test_accuracy"]


def report(
    arguments: argparse.Namespace, plain: PlainFirstVersion, sprints: list[tuple[float, float]]
) -> None:
    """Print the ratio of the times, and write the figures."""
    reached = plain.accuracies[-1] >= arguments.target
    ours = statistics.median(seconds for seconds, _ in sprints)
    accuracy = statistics.mean(accuracy for _, accuracy in sprints)
    print(
        f"first version {'reached' if reached else 'did not reach'} {arguments.target:.2%} in "
        f"{plain.seconds:.0f} s; ours has {accuracy:.2%} (mean of {len(sprints)} seeds) after "
        f"{ours:.1f} s: {'' if reached else 'more than '}{plain.seconds / ours:.1f} times sooner"
    )
    if accuracy < arguments.target:
        print("ours did not reach the target, so the ratio does not count")
    if arguments.json:
        figures = {
            "machine": describe(),
            "target": arguments.target,
            "first_version": {"seconds": plain.seconds, "accuracies": plain.accuracies},
            "ours": [{"seconds": seconds, "accuracy": value} for seconds, value in sprints],
            "ratio": plain.seconds / ours,
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
