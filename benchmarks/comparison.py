"""Several settings trained side by side, seed by seed: what ablations and searches share."""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mobilenetv2
from machine import describe, headline

Rows = Mapping[str, Mapping[str, Any]]


def parser(description: str, *, data: str, epochs: int) -> argparse.ArgumentParser:
    """The arguments of a comparison, with these defaults."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--data", default=data)
    made.add_argument("--data-dir", type=Path, help="where a named set lies")
    made.add_argument("--epochs", type=int, default=epochs, help="of every row")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--json", type=Path, help="write the figures there")
    return made


def compare(rows: Rows, arguments: argparse.Namespace) -> None:
    """Train every row with every seed, and print the table.

    One seed of all rows comes before the next seed, so that a noisy machine treats rows alike.
    """
    print(headline(), flush=True)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in rows}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for number, (name, settings) in enumerate(rows.items()):
                config = mobilenetv2.configure(
                    arguments.data,
                    data_dir=arguments.data_dir,
                    out=Path(folder) / f"{number}-{seed}",
                    seed=seed,
                    **{**settings, "epochs": arguments.epochs},
                )
                results[name].append(mobilenetv2.train(config))
                print(f"seed {seed}: {line(name, results[name][-1:])}", flush=True)
    print("\n" + table(results))
    if arguments.json:
        report = {"machine": describe(), "arguments": vars(arguments), "rows": results}
        arguments.json.write_text(json.dumps(report, indent=2, default=str) + "\n")


def table(results: Mapping[str, list[dict[str, Any]]]) -> str:
    """Means and deviations over the seeds, as Markdown."""
    head = ["| | test accuracy | training, seconds |", "|---|---|---|"]
    return "\n".join(head + [line(name, runs) for name, runs in results.items()])


def line(name: str, runs: list[dict[str, Any]]) -> str:
    """A row of the table."""
    accuracies = [run["test_accuracy"] for run in runs]
    spread = f" ± {statistics.stdev(accuracies):.2%}" if len(runs) > 1 else ""
    seconds = statistics.mean(run["training_seconds"] for run in runs)
    return f"| {name} | {statistics.mean(accuracies):.2%}{spread} | {seconds:.1f} |"
