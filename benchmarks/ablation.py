"""From the first version to the default, one change at a time: accuracy and time of each step.

Every row keeps the changes of the rows above it. Rows are repeated with several seeds, seed by
seed, so that a noisy machine treats all rows alike. The table is Markdown, for the tutorial.

    python benchmarks/ablation.py --json ablation.json
    python benchmarks/ablation.py --data mnist --data-dir ~/mnist --epochs 3
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import mobilenetv2
from machine import describe, headline

FIRST_VERSION: dict[str, Any] = {
    "network": "first-version",
    "width": None,
    "strides": None,
    "optimizer": "adam",
    "lr": 0.001,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "batch_size": 64,
    "label_smoothing": 0.0,
    "ema": 0.0,
    "norm_momentum": 0.1,
    "crop": 1.0,
    "shift": 0.0,
    "rotate": 0.0,
    "zoom": 0.0,
    "shear": 0.0,
    "precision": "fp32",
    "fast_ops": "off",
}
CHANGES = (
    ("the first version: its network, Adam, constant rate", ()),
    ("the paper's network, with a stride plan", ("network", "width", "strides", "norm_momentum")),
    ("compiled operations, bf16 where the CPU has it", ("precision", "fast_ops")),
    ("SGD with Nesterov momentum, weight decay", ("optimizer", "lr", "weight_decay", "batch_size")),
    ("cosine schedule with warm-up, stepped every batch", ("schedule", "warmup_epochs")),
    ("label smoothing", ("label_smoothing",)),
    ("augmentation", ("crop", "shift", "rotate", "zoom", "shear")),
    ("moving average of the weights: the default", ("ema",)),
)


def main() -> None:
    """Run every row with every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", type=Path, help="where a named set lies")
    parser.add_argument("--epochs", type=int, default=15, help="of every row")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    print(headline(), flush=True)
    results: list[list[dict[str, Any]]] = [[] for _ in CHANGES]
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for row, settings in enumerate(rows(arguments.data)):
                config = mobilenetv2.configure(
                    arguments.data,
                    data_dir=arguments.data_dir,
                    out=Path(folder) / f"{row}-{seed}",
                    seed=seed,
                    **settings | {"epochs": arguments.epochs},
                )
                results[row].append(mobilenetv2.train(config))
                print(".", end="", flush=True)
    print("\n\n" + table(results))
    if arguments.json:
        report = {
            "machine": describe(),
            "rows": {name: runs for (name, _), runs in zip(CHANGES, results, strict=True)},
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def rows(data: str) -> list[dict[str, Any]]:
    """The settings of each row: what has changed so far is the recipe's, the rest the first's."""
    settings = dict(FIRST_VERSION)
    found = []
    for _, names in CHANGES:
        for name in names:
            del settings[name]
        found.append(dict(settings))
    assert not settings, f"{data}: never changed: {settings}"
    return found


def table(results: list[list[dict[str, Any]]]) -> str:
    """Means and deviations over the seeds, as Markdown."""
    lines = ["| change | test accuracy | training, seconds |", "|---|---|---|"]
    for (name, _), runs in zip(CHANGES, results, strict=True):
        accuracies = [run["test_accuracy"] for run in runs]
        spread = statistics.stdev(accuracies) if len(runs) > 1 else 0.0
        seconds = statistics.mean(run["training_seconds"] for run in runs)
        mean = statistics.mean(accuracies)
        lines.append(f"| {name} | {mean:.2%} ± {spread:.2%} | {seconds:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
