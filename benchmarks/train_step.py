"""Training steps per second: ours against every mode of stock PyTorch, in one interleaved run.

    python benchmarks/train_step.py --json train_step.json
    python benchmarks/train_step.py --setting 28 --compile
    python benchmarks/train_step.py --device cuda --setting 224-256 --setting 224-512 --compile

Keras is measured too where TensorFlow is installed (``pip install tensorflow-cpu``).

A step is forward, cross-entropy, backward and SGD with Nesterov momentum on one batch of random
pictures. Each mode runs in a process of its own (so that its peak memory is its own), in rounds
that visit all modes before any is visited again; the figure is the median over the steps of all
rounds. Stock PyTorch runs as it comes; ours runs as the training loop does: with the fast
operations, the prepared allocator and its own optimizer, and on a GPU recorded as a CUDA graph;
there stock PyTorch is measured recorded too. A GPU is waited for after every ten steps: training
does not wait after each.

Two bounds are printed beside the figures. Memory: a convolution's output has to be written and read
once forward, and backward it is read twice while its gradient is written and read once: six times
its bytes, at the speed of a large copy. Arithmetic: three times the forward pass's multiply-adds,
at the speed of a large matrix product. Small pictures live in the cache and may pass the first.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import machine
from mobilenetv2.config import OptimizerConfig
from mobilenetv2.data.augment import Batch
from mobilenetv2.network.fast_ops import FastOps, choose, install, prepare_allocator, sgd_of
from mobilenetv2.network.mobilenetv2 import MobileNetV2, stride_plan
from mobilenetv2.training.device import Device
from mobilenetv2.training.gradients import Gradients, RecordedGradients
from mobilenetv2.training.optimizers import build_optimizer
from mobilenetv2.training.parallel import StepLoss

CLASSES = 10
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained on; in fine-tuning the norms keep their statistics."""

    side: int
    batch: int
    width: float
    channels: int
    fine_tuning: bool = False
    strides: tuple[int, ...] | None = None
    """Of the stem and the stages; None: the plan for the size."""

    def __str__(self) -> str:
        more = ", fine-tuning" if self.fine_tuning else ""
        if self.strides:
            more += f", strides {'·'.join(map(str, self.strides))}"
        return f"{self.side} px, batch {self.batch}, width {self.width:g}{more}"

    def network(self) -> MobileNetV2:
        """The network for these pictures, on the CPU."""
        torch.manual_seed(0)
        strides = self.strides or stride_plan(self.side, self.side)
        network = MobileNetV2(CLASSES, self.channels, self.width, strides).train()
        if self.fine_tuning:
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return network


@dataclasses.dataclass(frozen=True)
class Mode:
    """One way to run a training step; ``fast`` is what the fast operations are asked for."""

    precision: str
    layout: str = "channels_last"
    compiled: bool = False
    fast: str = "off"
    keras: bool = False
    recorded: bool = False
    """As a CUDA graph, and replayed."""

    def __str__(self) -> str:
        if self.keras:
            return f"Keras, {self.precision}"
        if self.fast != "off":
            return f"ours ({self.fast}), {self.precision}"
        kind = "recorded" if self.recorded else "compile" if self.compiled else "eager"
        return f"{kind}, {self.layout}, {self.precision}"


SETTINGS = {
    "224": Setting(side=224, batch=32, width=1.0, channels=3),
    "28": Setting(side=28, batch=128, width=1.0, channels=1),
    "28-fine": Setting(side=28, batch=128, width=1.0, channels=1, strides=(1, 1, 1, 2, 2, 1, 2, 1)),
    "28-half": Setting(side=28, batch=128, width=0.5, channels=1),
    "224-tune": Setting(side=224, batch=32, width=1.0, channels=3, fine_tuning=True),
    "224-256": Setting(side=224, batch=256, width=1.0, channels=3),
    "224-512": Setting(side=224, batch=512, width=1.0, channels=3),
    "224-1024": Setting(side=224, batch=1024, width=1.0, channels=3),
}
DEFAULT_SETTINGS = ("224", "28", "28-fine", "28-half", "224-tune")
DEFAULT = Mode("fp32", "NCHW")


def modes(setting: Setting, device: str, with_compile: bool, precisions: list[str]) -> list[Mode]:
    """Stock PyTorch's modes, Keras' if it can do the setting, then ours."""
    on_cpu = device == "cpu"
    keras = on_cpu and find_spec("tensorflow") and setting.side >= 32 and not setting.fine_tuning
    stock = [
        Mode(precision, layout, compiled)
        for compiled in ((False, True) if with_compile else (False,))
        for layout in ("NCHW", "channels_last")
        for precision in precisions
    ]
    others = [Mode(precision, "NHWC", keras=True) for precision in precisions if keras]
    ours = [Mode(precision, fast=fast) for fast in ("torch", "cpp") for precision in precisions]
    if on_cpu:
        return stock + others + ours
    recorded = [
        dataclasses.replace(mode, recorded=True)
        for mode in stock
        if mode.layout == "channels_last" and not mode.compiled
    ]
    ours = [Mode("bf16", fast="triton", recorded=True)] if "bf16" in precisions else []
    return stock + recorded + ours


# ---------------------------------------------------------------- in a process of its own


def measure(setting: Setting, mode: Mode, device: str, seconds: float) -> dict[str, Any]:
    """Runs one mode: seconds of each step, of the first one, and the peak memory in MB."""
    if mode.keras:
        step, reason = keras_step(setting, mode)
    else:
        step, reason = torch_step(setting, mode, torch.device(device))
    at_once = 1 if device == "cpu" else 10

    def timed(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait_for(device)
        return (time.perf_counter() - start) / steps

    first = timed(1)
    for _ in range(2):
        timed(1)
    times: list[float] = []
    while len(times) < 3 or sum(times) * at_once < seconds:
        times.append(timed(at_once))
    return {"steps": times, "first": first, "peak_mb": peak_mb(device), "reason": reason}


def wait_for(device: str) -> None:
    """Until a GPU has done what it was asked for."""
    if device != "cpu":
        torch.cuda.synchronize()


def peak_mb(device: str) -> float:
    """The most memory that this process took: of a GPU what PyTorch reserved."""
    if device != "cpu":
        return torch.cuda.max_memory_reserved() / (1 << 20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if platform.system() == "Darwin" else 1 << 10)


def torch_step(
    setting: Setting, mode: Mode, device: torch.device
) -> tuple[Callable[[], None], str]:
    """A step in PyTorch, and what says why it runs as it does."""
    ours = mode.fast != "off"
    fast_ops = FastOps("off", "stock")
    if ours:
        prepare_allocator()
    network = setting.network().to(device)
    shape = setting.batch, setting.channels, setting.side, setting.side
    pictures = torch.randn(shape, device=device)
    labels = torch.randint(CLASSES, shape[:1], device=device)
    if mode.layout == "channels_last":
        network = network.to(memory_format=torch.channels_last)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
    sgd = OptimizerConfig(momentum=0.9, nesterov=True, weight_decay=0.0)
    if ours:
        fast_ops = choose(device, mode.fast, DTYPES[mode.precision])
        install(network, fast_ops)
        compiled = sgd_of(fast_ops, DTYPES[mode.precision])
        optimizer = build_optimizer(network, sgd, lr=0.01, compiled=compiled)
    else:
        optimizer = torch.optim.SGD(network.parameters(), 0.01, sgd.momentum, nesterov=True)
    run: Callable[..., torch.Tensor] = torch.compile(network) if mode.compiled else network

    def loss_of(batch: Batch) -> StepLoss:
        with torch.autocast(device.type, torch.bfloat16, enabled=mode.precision == "bf16"):
            logits = run(batch.pictures)
        loss = F.cross_entropy(logits.float(), batch.labels)
        return StepLoss(loss, loss.detach(), loss.detach(), setting.batch)

    kind = RecordedGradients if mode.recorded else Gradients
    where = Device(device, mode.precision, fast_ops, mode.compiled, mode.recorded)
    gradients = kind(network, loss_of, where.compile_ahead)

    def step() -> None:
        gradients.of(Batch(pictures, labels))
        optimizer.step()

    return step, fast_ops.reason


def keras_step(setting: Setting, mode: Mode) -> tuple[Callable[[], None], str]:
    """The same in Keras, on TensorFlow."""
    os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
    import keras  # its backend is chosen at import

    if mode.precision == "bf16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    shape = (setting.side, setting.side, setting.channels)
    network = keras.applications.MobileNetV2(
        shape, setting.width, weights=None, classes=CLASSES, classifier_activation=None
    )
    network.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    pictures = torch.randn(setting.batch, *shape).numpy()
    labels = torch.randint(CLASSES, (setting.batch,)).numpy()
    return lambda: network.train_on_batch(pictures, labels), "keras"


def peaks(precisions: list[str], device: str) -> dict[str, float]:
    """What the machine can do: bytes per second of a copy, operations per second of a product."""

    def best(work: Any, times: int) -> float:
        work()
        wait_for(device)
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            work()
            wait_for(device)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    side = 2048 if device == "cpu" else 8192
    source = torch.ones(1 << (26 if device == "cpu" else 30), device=device)
    target = torch.empty_like(source)
    results = {"copy": 2 * source.nbytes / best(lambda: target.copy_(source), 5)}
    for name in precisions:
        matrix = torch.randn(side, side, device=device).to(DTYPES[name])
        results[name] = 2 * side**3 / best(lambda m=matrix: m @ m, 5)  # type: ignore[misc]
    return results


# ------------------------------------------------------------------------ in the first one


def in_process(name: str, **arguments: Any) -> Any:
    """Runs this file's ``measure`` or ``peaks`` in a fresh process."""
    command = [sys.executable, __file__, "--run", json.dumps([name, arguments])]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_here(name: str, arguments: dict[str, Any]) -> None:
    """The other end of :func:`in_process`."""
    if name == "peaks":
        print(json.dumps(peaks(**arguments)))
    else:
        setting, mode = Setting(**arguments["setting"]), Mode(**arguments["mode"])
        print(json.dumps(measure(setting, mode, arguments["device"], arguments["seconds"])))


def convolutions(setting: Setting) -> list[tuple[nn.Conv2d, torch.Tensor, torch.Tensor]]:
    """All of the network, in order, with what goes in and comes out for one picture."""
    found: list[tuple[nn.Conv2d, torch.Tensor, torch.Tensor]] = []

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        found.append((module, inputs[0], output))

    network = setting.network().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.inference_mode():
        network(torch.zeros(1, setting.channels, setting.side, setting.side))
    return found


def work_per_picture(setting: Setting) -> tuple[int, int]:
    """Numbers that the convolutions put out, and multiply-adds, for one picture forward."""
    outputs = multiply_adds = 0
    for conv, _, output in convolutions(setting):
        outputs += output.numel()
        multiply_adds += output.numel() * conv.weight[0].numel()
    return outputs, multiply_adds


def benchmark(
    setting: Setting,
    device: str,
    rounds: int,
    seconds: float,
    compiled: bool,
    precisions: list[str],
) -> dict[str, Any]:
    """All modes on one setting; prints the table as it stands at the end."""
    ways = modes(setting, device, compiled, precisions)
    runs: dict[Mode, list[dict[str, Any]]] = {mode: [] for mode in ways}
    all_peaks: list[dict[str, float]] = []
    for _ in range(rounds):
        all_peaks.append(in_process("peaks", precisions=precisions, device=device))
        for mode in ways:
            arguments = {"setting": dataclasses.asdict(setting), "mode": dataclasses.asdict(mode)}
            runs[mode].append(in_process("measure", **arguments, device=device, seconds=seconds))

    outputs, multiply_adds = work_per_picture(setting)
    peak = {name: max(p[name] for p in all_peaks) for name in all_peaks[0]}
    bound = {
        name: {
            "memory": peak["copy"] / (6 * outputs * DTYPES[name].itemsize),
            "arithmetic": peak[name] / (6 * multiply_adds),
        }
        for name in precisions
    }
    rows = []
    for mode, results in runs.items():
        steps = [seconds for result in results for seconds in result["steps"]]
        rate = setting.batch / statistics.median(steps)
        rows.append(
            {
                "mode": str(mode),
                **dataclasses.asdict(mode),
                "pictures_per_second": rate,
                "first_step_seconds": statistics.median(r["first"] for r in results),
                "peak_mb": max(r["peak_mb"] for r in results),
                "share_of_memory_bound": rate / bound[mode.precision]["memory"],
                "share_of_arithmetic_bound": rate / bound[mode.precision]["arithmetic"],
                "reason": results[0]["reason"],
                "steps": steps,
            }
        )
    best_stock = max(r["pictures_per_second"] for r in rows if r["fast"] == "off")
    default = next(r["pictures_per_second"] for r in rows if r["mode"] == str(DEFAULT))
    for row in rows:
        row["times_default"] = row["pictures_per_second"] / default
        row["times_best_stock"] = row["pictures_per_second"] / best_stock

    print(f"\n{setting} (medians of {rounds} rounds; memory bound: copy at", end=" ")
    products = ", ".join(f"{peak[name] / 1e9:.0f} in {name}" for name in precisions)
    print(f"{peak['copy'] / 1e9:.1f} GB/s; arithmetic bound: product at GFLOP/s {products})")
    print(f"{'mode':30}{'pictures/s':>11}{'× default':>10}{'× best':>8}{'peak MB':>9}", end="")
    print(f"{'memory':>8}{'arithm.':>8}{'1st step':>9}")
    for r in rows:
        print(
            f"{r['mode']:30}{r['pictures_per_second']:11.1f}{r['times_default']:10.2f}"
            f"{r['times_best_stock']:8.2f}{r['peak_mb']:9.0f}{r['share_of_memory_bound']:8.0%}"
            f"{r['share_of_arithmetic_bound']:8.0%}{r['first_step_seconds']:8.1f}s"
        )
    return {
        "setting": dataclasses.asdict(setting),
        "rounds": rounds,
        "peaks": peak,
        "bounds": bound,
        "rows": rows,
    }


def main() -> None:
    """Measures what the flags ask for, prints it, and writes it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--setting", choices=SETTINGS, action="append", help="default: all for a CPU"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="visits to each mode")
    parser.add_argument("--seconds", type=float, default=3.0, help="of steps in each visit")
    parser.add_argument(
        "--fp32",
        action="store_true",
        help="leave bf16 out: some CPUs take minutes for a step in it",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile's modes as well")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_here(*json.loads(arguments.run))
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "this needs an NVIDIA GPU\n")
    results: dict[str, Any] = {"machine": machine.describe(), "settings": []}
    print(machine.headline())
    stored = DTYPES["fp32" if arguments.device == "cpu" else "bf16"]
    print(choose(torch.device(arguments.device), "auto", stored).reason)
    for name in arguments.setting or DEFAULT_SETTINGS:
        results["settings"].append(
            benchmark(
                SETTINGS[name],
                arguments.device,
                arguments.rounds,
                arguments.seconds,
                arguments.compile,
                ["fp32"] if arguments.fp32 else [*DTYPES],
            )
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    machine.run_main(main)
