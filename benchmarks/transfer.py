"""Transfer on a folder of photos: accuracy over seeds, and time beside plain prediction passes.

Whole commands are timed, from the start of Python to its end, in turns: `train --tune head`, our
own `predict` of the same photos into a CSV, and the way that everybody writes first (Pillow,
torchvision's transforms, the same network in eager mode, see predict.py), and, if ``--keras`` names
a Python that has TensorFlow, the usual Keras recipe (keras_transfer.py). Then `train --tune auto`.

    python benchmarks/transfer.py photos/ --weights weights.h5 --width 0.35 --seeds 5 --keras python
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe, headline, run_main
from mobilenetv2.data.folders import scan_folder
from mobilenetv2.data.known_folders import forget

PLAIN = """
import sys
from pathlib import Path
import mobilenetv2
from mobilenetv2.data.picture_tree import list_pictures
from predict import plain
paths = list_pictures([Path(sys.argv[2])])
plain(mobilenetv2.load(sys.argv[1]), paths, Path(sys.argv[3]), workers=0)
"""


def seconds(*command: object, python: str = sys.executable) -> float:
    """The wall time of a Python process."""
    started = time.perf_counter()
    subprocess.run(
        [python, *map(str, command)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if python != sys.executable else None,
        cwd=Path(__file__).parent,
    )
    return time.perf_counter() - started


def train(arguments: argparse.Namespace, tune: str, seed: int, out: Path) -> dict[str, Any]:
    """`result.json` of one run, with the time of the whole command."""
    options = ["--weights", arguments.weights, "--tune", tune, "--seed", seed, "--out", out]
    if arguments.width:
        options += ["--width", arguments.width]
    forget(scan_folder(Path(arguments.photos)))  # each run examines the folder, as the first does
    command = seconds("-m", "mobilenetv2", "train", arguments.photos, *options)
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result | {"command_seconds": command}


def keras(arguments: argparse.Namespace, seed: int) -> float:
    """The wall time of the Keras recipe on the same photos."""
    options = ["--weights", arguments.weights, "--width", arguments.width or 1.0, "--seed", seed]
    program = Path(__file__).with_name("keras_transfer.py")
    return seconds(program, arguments.photos, *options, python=arguments.keras)


def report(name: str, results: list[dict[str, Any]]) -> None:
    """Accuracy and time of the runs of one kind."""
    accuracies = [result["val_accuracy"] for result in results]
    times = [result["command_seconds"] for result in results]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    print(
        f"--tune {name}: {statistics.mean(accuracies):.2%} ± {spread:.2%} of the validation "
        f"pictures (mean of {len(results)} seeds), {statistics.median(times):.1f} s (median), "
        f"{max(times):.1f} s (slowest)",
        flush=True,
    )


def main() -> None:
    """Run, and print accuracies, times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=lambda path: Path(path).resolve())
    parser.add_argument("--weights", default="imagenet", help="a name or a file")
    parser.add_argument("--width", type=float)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tune", nargs="+", default=["head", "auto"])
    parser.add_argument("--keras", metavar="PYTHON", help="a Python that has TensorFlow")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    if Path(arguments.weights).is_file():
        arguments.weights = Path(arguments.weights).resolve()
    if arguments.keras:
        arguments.keras = shutil.which(arguments.keras) or arguments.keras
        arguments.keras = str(Path(arguments.keras).absolute())  # commands run in this folder
    print(headline(), flush=True)
    times: dict[str, list[float]] = {"predict": [], "plain": []}
    if arguments.keras:
        times["Keras"] = []
    runs: dict[str, list[dict[str, Any]]] = {tune: [] for tune in arguments.tune}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for tune, results in runs.items():
            for seed in range(arguments.seeds):
                run = folder / f"{tune}-{seed}"
                results.append(train(arguments, tune, seed, run))
                if tune != "head":
                    continue
                table = folder / f"{seed}.csv"
                predict = ("-m", "mobilenetv2", "predict", run, arguments.photos, "--csv", table)
                times["predict"].append(seconds(*predict))
                plain = seconds("-c", PLAIN, run, arguments.photos, folder / "plain.csv")
                times["plain"].append(plain)
                if arguments.keras:
                    times["Keras"].append(keras(arguments, seed))
            report(tune, results)
    if "head" in runs:
        head = statistics.median(result["command_seconds"] for result in runs["head"])
        for side, values in times.items():
            whole = statistics.median(values)
            print(f"--tune head takes {head / whole:.2f} times as long as {side} ({whole:.1f} s)")
    if arguments.json:
        figures = {"machine": describe(), "passes": times, "runs": runs}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
