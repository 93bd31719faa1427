"""What a checkpoint costs: its time beside a training step's, and its share of a run.

python benchmarks/checkpoint_cost.py
python benchmarks/checkpoint_cost.py --width 0.35 --every 1min
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

import mobilenetv2
from machine import headline, run_main, seconds
from mobilenetv2.intervals import Interval
from mobilenetv2.training.checkpoints import Checkpoint
from mobilenetv2.training.loop import Training
from mobilenetv2.training.run_folder import RunFolder
from mobilenetv2.training.start import start

SAVES, LOADS = 20, 5


def main() -> None:
    """Take some steps, save many times, and print both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--every", default="10min", help="minutes between checkpoints")
    options = parser.parse_args()
    minutes = Interval.parse(options.every).number
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings = {"width": options.width, "ema": 0.999, "epochs": 2}
        config = mobilenetv2.configure("digits", out=out, **settings)
        run = RunFolder.create(config)
        training = Training(start(config), run)
        training.network.train()
        batches = iter(training.batches.epoch(0))
        steps = [
            seconds(lambda: training._train_step(next(batches)))
            for _ in range(training.batches.steps_per_epoch)
        ]
        saves = [seconds(training._save) for _ in range(SAVES)]
        loads = [seconds(lambda: Checkpoint.load(run.last)) for _ in range(LOADS)]
        size = run.last.stat().st_size
        run.close()
    save = median(saves)
    print(f"width {options.width:g}, weights, momentum and average: {size / 1e6:.1f} MB")
    print(f"training step: {median(steps) * 1000:.0f} ms")
    print(f"checkpoint: {save * 1000:.0f} ms (slowest {max(saves) * 1000:.0f} ms)")
    print(f"read and checked again: {median(loads) * 1000:.0f} ms")
    print(f"one each {options.every}: {save / (60 * minutes):.3%} of the time; {headline()}")


if __name__ == "__main__":
    run_main(main)
