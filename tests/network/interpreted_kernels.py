"""The GPU's kernels against stock PyTorch, without a GPU: Triton interprets them.

    TRITON_INTERPRET=1 python tests/network/interpreted_kernels.py "shortcut" "stride 2"

A program of its own, run by test_gpu.py: Triton decides at import what it does with a kernel.
"""

import copy
import sys
import warnings

import test_fast_ops as fast
import torch
from torch import nn

from mobilenetv2.network import fast_blocks, fast_ops
from mobilenetv2.network.fast_ops import FastOps, install
from mobilenetv2.network.gpu import launches, plans
from mobilenetv2.network.gpu.plans import Plan
from mobilenetv2.network.mobilenetv2 import ConvNormActivation, InvertedResidual, MobileNetV2

TRITON = FastOps("triton", "interpreted")


def compare(module: nn.Module, x: torch.Tensor, single: bool = True) -> None:
    """One step in float64, and one in float32, against the stock one in float64."""
    double, other = copy.deepcopy(module).double(), copy.deepcopy(module)
    reference = copy.deepcopy(double)
    install(double, TRITON)
    install(other, TRITON)
    expected = fast.step(reference, x.double())
    fast.assert_same(fast.step(double, x.double()), expected, 1e-12)
    if single:
        fast.assert_same(fast.step(other, x), expected, 1e-5)


def block(name: str) -> None:
    build, channels = fast.BLOCKS[name]
    for images, height, width in fast.SIZES[:2]:  # an interpreter takes its time
        module = fast.random_norms(build())
        shape = (images, channels, height, width)
        x = fast.away_from_the_kinks(copy.deepcopy(module).double(), shape)
        compare(module, x, single=images == 1)


def small_blocks() -> None:
    for stride in (1, 2):
        module = fast.random_norms(InvertedResidual(8, 12, stride, 6))
        x = fast.away_from_the_kinks(copy.deepcopy(module).double(), (2, 8, 5, 7))
        compare(module, x, single=stride == 2)


def several_tiles_and_segments() -> None:
    """More strips and rows than one program's share, and a map that is cut into segments."""
    for stride in (1, 2):
        module = fast.random_norms(InvertedResidual(8, 8, stride, 3))
        x = fast.away_from_the_kinks(copy.deepcopy(module).double(), (2, 8, 61, 9))
        compare(module, x)


def one_channel_block_after_the_other() -> None:
    """Gradients of input and weight by themselves, as where they are large."""
    plans.backward = lambda *_: None
    block("many channels")


def blocks_of_inputs_and_outputs() -> None:
    plans.forward = lambda *_: Plan({"ROWS": 128, "OUT": 16, "IN": 16}, 2)
    plans.backward = lambda _, out: Plan({"ROWS": 16, "OUT": plans.power(out), "IN": 16}, 2)
    block("many channels")


def stem_kernels() -> None:
    """The first convolution has kernels of its own, where the pictures need no gradient."""
    launched = []
    stem = launches.GpuKernels.stem
    launches.GpuKernels.stem = lambda *a: launched.append(a) or stem(*a)
    for channels, padding, side in ((3, "symmetric", 9), (1, "keras", 10), (3, "symmetric", 40)):
        module = fast.random_norms(ConvNormActivation(channels, 17, 3, 2, padding=padding))
        fast_one, double = copy.deepcopy(module).double(), copy.deepcopy(module).double()
        install(fast_one, TRITON)
        x = fast.away_from_the_kinks(copy.deepcopy(double), (2, channels, side, side)).double()
        results = []
        for network in (fast_one, double):
            out = network(x)
            (out * torch.linspace(-9, 9, out.numel()).sin().view(out.shape)).sum().backward()
            gradients = {name: p.grad for name, p in network.named_parameters()}
            results.append({"out": out.detach(), **gradients, **dict(network.named_buffers())})
        fast.assert_same(*results, 1e-12)
    assert len(launched) == 3


def network() -> None:
    """All of it, of which only a part learns; the pictures need no gradient."""
    torch.manual_seed(0)
    module = part_frozen(fast.random_norms(MobileNetV2(5, 3, 0.35, dropout=0.0)).double())
    reference = copy.deepcopy(module)
    install(module, TRITON)
    x = torch.randn(2, 3, 33, 33).double()
    results = []
    for one in (module, reference):
        one(x).sum().backward()
        results.append({n: p.grad for n, p in one.named_parameters()} | dict(one.named_buffers()))
    fast.assert_same(*results, 1e-8)


def part_frozen(module: nn.Module) -> nn.Module:
    for name, parameter in module.named_parameters():
        parameter.requires_grad = int(name.split(".")[1]) > 9 or "classifier" in name
    return module


def what_is_tried_first() -> None:
    """The kernels that show whether Triton works here."""
    waited = []
    torch.cuda.synchronize = waited.append
    kernels = launches.GpuKernels(torch.float32, 1)
    fast_ops._try_out(kernels, torch.device("cpu"), torch.float32)
    assert waited == [torch.device("cpu")]


def nan_comes_through() -> None:
    module = InvertedResidual(8, 8, 1, 2)
    install(module, TRITON)
    x = torch.randn(2, 8, 5, 5)
    x[0, 0, 0, 0] = float("nan")
    assert module(x).isnan().any()


def mean_far_from_zero() -> None:
    """Costs no digits of the statistics."""
    kernels = launches.GpuKernels(torch.float32, 2)
    norm = nn.BatchNorm2d(16, eps=0.0, momentum=1.0)
    y = torch.randn(3000, 16) + 1000
    kernels.statistics(y, norm)
    torch.testing.assert_close(norm.running_var.double(), y.double().var(0), rtol=1e-5, atol=0)
    x, eye = torch.randn(3000, 16), torch.eye(16).view(16, 16, 1, 1)
    kernels.pointwise(x + 1000, None, eye, norm)
    torch.testing.assert_close(
        norm.running_var.double(), (x + 1000).double().var(0), rtol=1e-5, atol=0
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)  # of what lies beyond the last channel
    torch.manual_seed(0)
    # Two programs at a time, so that each has several tiles and their sums are put together.
    fast_blocks._kernels = lambda _, dtype: launches.GpuKernels(dtype, 1)
    for wanted in sys.argv[1:]:
        if wanted in fast.BLOCKS:
            block(wanted)
        else:
            globals()[wanted]()
        print("same:", wanted)
