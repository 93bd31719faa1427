"""How long the compiled kernels take on each layer of a training step, beside a copy.

    python benchmarks/cpu_kernels.py --setting 28-fine
    mkdir before && git archive HEAD~1 src/mobilenetv2/network | tar x -C before
    python benchmarks/cpu_kernels.py --other before/src/mobilenetv2/network/fast_ops.cpp

With ``--other`` the kernels of another source, whose functions take the same arguments, take turns
with ours, call by call, so that a noisy machine treats both alike. The bytes are those of the
feature maps that a kernel has to read and write; a kernel that takes as long as a copy of them
waits for nothing but memory.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from machine import headline, run_main
from mobilenetv2.network import native
from mobilenetv2.network.cpp_kernels import SOURCE, CppKernels
from mobilenetv2.network.fast_ops import prepare_allocator
from mobilenetv2.network.kernels import MapShape, stored_as
from train_step import DTYPES, SETTINGS, Setting, convolutions, peaks

FEWEST = 5


class Layer(NamedTuple):
    """A convolution of the network; ``side`` is that of what comes in."""

    in_channels: int
    out_channels: int
    is_depthwise: bool
    stride: int
    side: int

    def __str__(self) -> str:
        if self.is_depthwise:
            return f"3×3 {self.in_channels}, {self.side} px, stride {self.stride}"
        return f"1×1 {self.in_channels} → {self.out_channels}, {self.side} px"


class Work(NamedTuple):
    """What a kernel does on a layer, for each set of kernels, and the bytes that it has to move."""

    calls: Sequence[Callable[[], object]]
    nbytes: int


def layers_of(setting: Setting) -> Counter[Layer]:
    """The layers that have kernels, and how often each shape comes."""
    return Counter(
        Layer(conv.in_channels, conv.out_channels, conv.groups > 1, conv.stride[0], x.shape[2])
        for conv, x, _ in convolutions(setting)
        if conv.groups > 1 or conv.kernel_size == (1, 1)
    )


def works(
    layer: Layer, batch: int, dtype: torch.dtype, kinds: list[CppKernels]
) -> Iterator[tuple[str, Work]]:
    """Forward and backward of a layer, whose input comes through a norm but where it expands."""
    first = kinds[0]
    x = torch.randn(batch * layer.side**2, layer.in_channels).to(dtype)
    before, after = nn.BatchNorm2d(layer.in_channels), nn.BatchNorm2d(layer.out_channels)
    expands = layer.out_channels > layer.in_channels
    x_norm = None if expands else first.statistics(x, before)
    if layer.is_depthwise:
        shape = MapShape(batch, layer.side, layer.side, layer.in_channels, layer.stride, False)
        weight = torch.randn(layer.in_channels, 1, 3, 3) / 3
        y, y_norm = first.depthwise(x, x_norm, weight, shape, after)
    else:
        weight = torch.randn(layer.out_channels, layer.in_channels, 1, 1) / layer.in_channels**0.5
        y, y_norm = first.pointwise(x, x_norm, weight, after)
    g = torch.randn_like(y)
    gradient = first.backward(g, y, y_norm, False)
    nbytes = x.nbytes + y.nbytes
    forward: Sequence[Callable[[], object]]
    backward: Sequence[Callable[[], object]]
    if layer.is_depthwise:
        forward = [partial(k.depthwise, x, x_norm, weight, shape, after) for k in kinds]
        backward = [
            partial(k.depthwise_backward, g, y, y_norm, gradient, x, x_norm, weight, shape)
            for k in kinds
        ]
    else:
        forward = [partial(k.pointwise, x, x_norm, weight, after) for k in kinds]
        backward = [
            partial(
                k.pointwise_backward, g, y, y_norm, gradient, False, x, x_norm, weight, None, True,
                True,
            )
            for k in kinds
        ]  # fmt: skip
    yield "forward", Work(forward, nbytes)
    yield "backward", Work(backward, 2 * nbytes)


def by_turns(calls: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """The median milliseconds of each."""
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    end = time.perf_counter() + seconds
    while len(taken[0]) < FEWEST or time.perf_counter() < end:
        for call, times in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
    return [statistics.median(times) for times in taken]


def main() -> None:
    """Print a row for each kernel and layer, and the sums of a step."""
    arguments = parse()
    prepare_allocator()
    dtype = DTYPES[arguments.precision]
    sources = [SOURCE, *([arguments.other] if arguments.other else [])]
    try:
        kinds = [
            CppKernels(str(native.build(source, stored_as(dtype))), dtype) for source in sources
        ]
    except (native.BuildError, AttributeError) as error:
        sys.exit(f"cpu_kernels.py: {error}")  # such as a function that another source does not have
    setting = SETTINGS[arguments.setting]
    copy = peaks([], "cpu")["copy"]
    print(headline())
    print(
        f"{setting}, {arguments.precision}; milliseconds of a step; copy at {copy / 1e9:.1f} GB/s"
    )
    columns = ["ours", *(["other", "ours / other"] if arguments.other else []), "copy"]
    print(f"{'':44}{''.join(f'{name:>14}' for name in columns)}")
    sums: dict[str, list[float]] = {}
    for layer, times in layers_of(setting).items():
        for name, work in works(layer, setting.batch, dtype, kinds):
            taken = [times * ms for ms in by_turns(work.calls, arguments.seconds)]
            row = [*taken, 1000 * times * work.nbytes / copy]
            print_row(f"{name:9} {layer} × {times}", row)
            kind = f"{name} {'3×3' if layer.is_depthwise else '1×1'}"
            sums[kind] = [a + b for a, b in zip(sums.get(kind, [0.0] * len(row)), row, strict=True)]
    for kind, row in sums.items():
        print_row(f"all {kind}", row)


def print_row(name: str, row: list[float]) -> None:
    """Times, the ratio of the two if there are two, and the copy's time."""
    *taken, copy = row
    ratio = [f"{taken[0] / taken[1]:14.2f}"] if len(taken) > 1 else []
    print(f"{name:44}{''.join([*(f'{ms:14.2f}' for ms in taken), *ratio, f'{copy:14.2f}'])}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [name for name, setting in SETTINGS.items() if not setting.fine_tuning]
    parser.add_argument("--setting", choices=names, default="28-fine")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--other", type=Path, help="a fast_ops.cpp to compare with")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each kernel and layer")
    arguments = parser.parse_args()
    if arguments.other and not arguments.other.is_file():
        parser.error(f"--other: there is no file {arguments.other}")
    return arguments


if __name__ == "__main__":
    run_main(main)
