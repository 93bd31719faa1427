"""Which blocks suit the kernels for a GPU: every layer of the network, with several plans each.

    python benchmarks/gpu_plans.py --json gpu_plans.json
    python benchmarks/gpu_plans.py --only depthwise_backward --batch 128

For each kernel and layer (224 px, width 1.0) it prints the time of the plan in
``mobilenetv2/network/gpu/plans.py``, the best ones found, and the time in which a copy would move
the same bytes. Candidates are compiled by many processes first, which takes most of the time; then
each is recorded as a CUDA graph and replayed, so that launching is not measured.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import machine
from mobilenetv2.network.gpu import launches, plans
from mobilenetv2.network.gpu.plans import Plan, block_of, power, segment_of
from mobilenetv2.network.kernels import MapShape

DEVICE = torch.device("cuda", 0)
POINTWISE = ("forward", "backward", "backward_input", "backward_weight")
DEPTHWISE = ("depthwise", "depthwise_backward")
STANDARD = {name: getattr(plans, name) for name in POINTWISE + DEPTHWISE}
EXPANSIONS = ((16, 96, 112), (24, 144, 56), (32, 192, 28), (64, 384, 14), (96, 576, 14),
              (160, 960, 7), (320, 1280, 7))  # fmt: skip
PROJECTIONS = ((32, 16, 112), (96, 24, 56), (144, 24, 56), (144, 32, 28), (192, 32, 28),
               (192, 64, 14), (384, 64, 14), (384, 96, 14), (576, 96, 14), (576, 160, 7),
               (960, 160, 7), (960, 320, 7))  # fmt: skip
WITH_DEPTH = ((32, 112, 1), (96, 112, 2), (144, 56, 1), (144, 56, 2), (192, 28, 1), (192, 28, 2),
              (384, 14, 1), (576, 14, 1), (576, 14, 2), (960, 7, 1))  # fmt: skip


class Work(NamedTuple):
    """A kernel's work on a layer: what runs it, and the bytes that it has to move."""

    run: Callable[[], object]
    nbytes: int


def pointwise_work(in_channels: int, out_channels: int, side: int, batch: int) -> dict[str, Work]:
    """All kernels of a 1×1 convolution; a projection sees its input through a norm."""
    kernels = launches.load(torch.bfloat16, DEVICE)
    projects = in_channels > out_channels
    x = torch.randn(batch * side * side, in_channels, device=DEVICE, dtype=torch.bfloat16)
    norm, before = (nn.BatchNorm2d(n).to(DEVICE) for n in (out_channels, in_channels))
    weight = torch.randn(out_channels, in_channels, 1, 1, device=DEVICE) / in_channels**0.5
    x_norm = kernels.statistics(x, before) if projects else None
    y, y_norm = kernels.pointwise(x, x_norm, weight, norm)
    g = torch.randn_like(y)
    gradient = kernels.backward(g, y, y_norm, not projects)

    def backward(wants_x: bool, wants_weight: bool) -> Callable[[], object]:
        return lambda: kernels.pointwise_backward(
            g, y, y_norm, gradient, not projects, x, x_norm, weight, None, wants_x, wants_weight
        )

    return {
        "forward": Work(
            lambda: kernels.pointwise(x, x_norm, weight, norm), x.nbytes + y.nbytes
        ),
        "backward": Work(backward(True, True), 2 * (x.nbytes + y.nbytes)),
        "backward_input": Work(
            backward(True, False), (1 + projects) * x.nbytes + 2 * y.nbytes
        ),
        "backward_weight": Work(backward(False, True), x.nbytes + 2 * y.nbytes),
    }  # fmt: skip


def depthwise_work(channels: int, side: int, stride: int, batch: int) -> dict[str, Work]:
    """Both kernels of a depthwise convolution; only the first block's has no norm before it."""
    kernels = launches.load(torch.bfloat16, DEVICE)
    shape = MapShape(batch, side, side, channels, stride, False)
    x = torch.randn(batch * side * side, channels, device=DEVICE, dtype=torch.bfloat16)
    norm = nn.BatchNorm2d(channels).to(DEVICE)
    weight = torch.randn(channels, 1, 3, 3, device=DEVICE)
    x_norm = None if channels == 32 else kernels.statistics(x, norm)
    y, y_norm = kernels.depthwise(x, x_norm, weight, shape, norm)
    g = torch.randn_like(y)
    gradient = kernels.backward(g, y, y_norm, True)
    return {
        "depthwise": Work(
            lambda: kernels.depthwise(x, x_norm, weight, shape, norm), x.nbytes + y.nbytes
        ),
        "depthwise_backward": Work(
            lambda: kernels.depthwise_backward(g, y, y_norm, gradient, x, x_norm, weight, shape),
            2 * (x.nbytes + y.nbytes),
        ),
    }  # fmt: skip


def candidates(kernel: str, layer: tuple[int, int, int]) -> Iterator[Plan]:
    """Plans that may suit; the programs are those of each processor."""
    channels, out, side = layer
    if kernel in DEPTHWISE:
        stride = layer[2]
        side = layer[1] if kernel == "depthwise_backward" else -(-layer[1] // stride)
        for size in (64, 32):
            block = block_of(channels, size)
            for numbers, stages, registers in (
                (512, 3, None), (512, 1, None), (512, 2, 168), (256, 3, 128), (256, 1, None),
            ):  # fmt: skip
                for rows in {segment_of(side, 28), segment_of(side, 14)}:
                    blocks = {"STRIPS": numbers // block, "segment": rows, "CHANNELS": block}
                    yield Plan(blocks, 0, 4, stages, registers)
        return
    whole_in, whole_out = power(channels), power(out)
    for rows in (32, 64, 128):
        for warps, registers in ((4, None), (8, None), (8, 128), (4, 168)):
            if kernel == "forward" and registers is None:
                for of_out in {min(whole_out, size) for size in (32, 64, 128)}:
                    for of_in in {min(whole_in, size) for size in (64, 128, 256)}:
                        if rows * of_out <= 2048 * warps and rows * of_in <= 16384 and rows > 32:
                            yield Plan({"ROWS": rows, "OUT": of_out, "IN": of_in}, 0, warps)
            elif kernel == "backward" and whole_in * whole_out <= 16384:
                for of_in in {min(whole_in, size) for size in (32, 64, 128, whole_in)}:
                    largest = max(rows * of_in, rows * whole_out, whole_out * of_in)
                    if largest <= 2048 * warps and (channels > out or of_in == whole_in):
                        blocks = {"ROWS": rows, "OUT": whole_out, "IN": of_in}
                        yield Plan(blocks, 0, warps, 3, registers)
            elif kernel == "backward_input" and rows > 32 and whole_in * whole_out > 8192:
                for of_in in {min(whole_in, size) for size in (64, 128)}:
                    for of_out in (32, 64):
                        if rows * of_in <= 1024 * warps:
                            blocks = {"ROWS": rows, "IN": of_in, "OUT": of_out}
                            yield Plan(blocks, 0, warps, 3, registers)
            elif kernel == "backward_weight" and whole_in * whole_out > 8192:
                for of_in in {min(whole_in, size) for size in (64, 128)}:
                    for of_out in (64, 128):
                        if of_out * of_in <= 2048 * warps:
                            blocks = {"ROWS": rows, "IN": of_in, "OUT": of_out}
                            yield Plan(blocks, 0, warps, 3, registers)


def use(kernel: str | None = None, plan: Plan | None = None) -> None:
    """Let a kernel be launched by a plan, and all others by their own; the own ones if None."""
    for name, standard in STANDARD.items():
        setattr(plans, name, standard)
    if kernel is None:
        return
    if kernel in ("backward_input", "backward_weight"):
        plans.backward = lambda *_: None  # else one kernel does both where it can
    if plan is not None:
        setattr(plans, kernel, lambda *_: plan)


def compile_part(kernel: str, part: list[tuple[Any, Plan]]) -> None:
    """Fills Triton's cache; a plan that cannot be compiled is found again when it is measured."""
    for layer, plan in part:
        build = depthwise_work if kernel in DEPTHWISE else pointwise_work
        try:
            use()
            work = build(*layer, 1)[kernel]
            use(kernel, plan._replace(programs=1))
            work.run()
        except Exception:
            continue


def compile_all(kernel: str, wanted: list[tuple[Any, Plan]]) -> None:
    """In as many processes as there are cores."""
    count = max(1, (os.cpu_count() or 2) - 1)
    context = multiprocessing.get_context("spawn")
    parts = [wanted[start::count] for start in range(min(count, len(wanted)))]
    workers = [context.Process(target=compile_part, args=(kernel, part)) for part in parts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def microseconds(run: Callable[[], object]) -> float:
    """Of one run; the median of several replays of three."""
    run()
    torch.cuda.synchronize()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):  # torch.cuda.graph would collect garbage every time
        graph.capture_begin()
        for _ in range(3):
            run()
        graph.capture_end()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 3 * 1e3)
    return statistics.median(times)


def copy_speed() -> float:
    """Bytes that a copy reads and writes in a microsecond."""
    source = torch.ones(1 << 28, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / microseconds(lambda: target.copy_(source))


def main() -> None:
    """Measures what the flags ask for, prints it, and writes it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=STANDARD, action="append", help="default: all kernels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "this needs an NVIDIA GPU\n")
    print(machine.headline())
    speed = copy_speed()
    found: list[dict[str, Any]] = []
    for kernel in arguments.only or STANDARD:
        sort = DEPTHWISE if kernel in DEPTHWISE else POINTWISE
        chosen = WITH_DEPTH if sort is DEPTHWISE else EXPANSIONS + PROJECTIONS
        wanted = [(layer, plan) for layer in chosen for plan in candidates(kernel, layer)]
        started = time.perf_counter()
        compile_all(kernel, wanted)
        seconds = time.perf_counter() - started
        print(f"\n{kernel}: {len(wanted)} plans compiled in {seconds:.0f} s; microseconds")
        for layer in chosen:
            results = measure_layer(kernel, layer, arguments.batch)
            if not results["plans"]:
                continue
            found.append({"kernel": kernel, "layer": layer, **results})
            bound = results["nbytes"] / speed
            best = "; ".join(
                f"{took:.0f} {tuple(block.values())} p{programs} w{warps} s{stages} r{registers}"
                for took, (block, programs, warps, stages, registers) in results["plans"][:3]
            )
            print(f"{layer!s:16} copy {bound:4.0f}  now {results['now']:5.0f}  best {best}")
        if arguments.json:
            report = {"machine": machine.describe(), "bytes_per_microsecond": speed, "found": found}
            arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


def measure_layer(kernel: str, layer: tuple[int, int, int], batch: int) -> dict[str, Any]:
    """The present plan's time, and all candidates', the best first."""
    build = depthwise_work if kernel in DEPTHWISE else pointwise_work
    use()
    work = build(*layer, batch)[kernel]
    use(kernel)
    now = microseconds(work.run)
    results = []
    for plan in candidates(kernel, layer):
        for programs in (2, 4, 8):
            use(kernel, plan._replace(programs=programs))
            try:
                results.append((microseconds(work.run), plan._replace(programs=programs)))
            except Exception as error:  # too many registers, too much shared memory
                print(f"{layer}: {plan}: {str(error).splitlines()[0]}")
                break
    use()
    return {"now": now, "nbytes": work.nbytes, "plans": sorted(results, key=lambda one: one[0])}


if __name__ == "__main__":
    machine.run_main(main)
