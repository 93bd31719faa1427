"""What the moving average costs a training step on the CPU: ours and PyTorch's, in turns.

python benchmarks/moving_average.py
python benchmarks/moving_average.py --data cifar10 --data-dir data
"""

import argparse
import tempfile
from itertools import chain, count, islice
from pathlib import Path
from statistics import median

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mobilenetv2
from machine import headline, run_main, seconds
from mobilenetv2.training.loop import Training
from mobilenetv2.training.run_folder import RunFolder
from mobilenetv2.training.start import start

DECAY, WARM_UP, STEPS = 0.99, 5, 60


def main() -> None:
    """Take some steps of the recipe, update both averages after each, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"step": [], "ours": [], "AveragedModel": []}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings = {"data_dir": options.data_dir, "ema": DECAY, "device": "cpu", "out": out}
        config = mobilenetv2.configure(options.data, **settings)
        run = RunFolder.create(config)
        training = Training(start(config), run)
        average, network = training.average, training.network
        assert average is not None
        training.average = None  # its part is timed alone
        ours = average.update
        theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
        network.train()
        batches = chain.from_iterable(training.batches.epoch(epoch) for epoch in count())
        for batch in islice(batches, WARM_UP + STEPS):
            times["step"].append(seconds(lambda batch=batch: training._train_step(batch)))
            times["ours"].append(seconds(ours))
            times["AveragedModel"].append(seconds(lambda: theirs.update_parameters(network)))
        run.close()
    step, *both = (median(one[WARM_UP:]) for one in times.values())
    size = f"width {config.network.width:g}, batch {config.batch_size}"
    print(f"{options.data}, {size}: {headline()}")
    print(f"training step without it: {1000 * step:.1f} ms")
    for name, taken in zip(["ours", "AveragedModel"], both, strict=True):
        print(f"{name}: {1000 * taken:.2f} ms, {taken / step:.1%} of the step")
    print(f"ratio: {both[1] / both[0]:.1f}")


if __name__ == "__main__":
    run_main(main)
