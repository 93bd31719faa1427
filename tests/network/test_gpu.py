"""The kernels for an NVIDIA GPU: interpreted and compiled without one, run where there is one."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from test_fast_ops import BLOCKS, random_norms, step

from mobilenetv2.network import fast_blocks, fast_ops
from mobilenetv2.network.fast_ops import choose, install
from mobilenetv2.network.gpu.plans import Plan
from mobilenetv2.network.mobilenetv2 import MobileNetV2, stride_plan
from mobilenetv2.training import device
from mobilenetv2.training.device import Device

CUDA = torch.device("cuda", 0)
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")


def interpreted(*names: str) -> None:
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7"):
        pytest.skip("the interpreter of an older Triton fails with NumPy 2.4")
    program = Path(__file__).with_name("interpreted_kernels.py")
    done = subprocess.run(
        [sys.executable, program, *names],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"same: {name}" for name in names]


def test_the_kernels_equal_pytorch():
    interpreted("small_blocks")


@pytest.mark.slow
def test_the_kernels_at_their_limits():
    interpreted("nan_comes_through", "mean_far_from_zero", "what_is_tried_first")


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_equals_the_stock_one(block):
    interpreted(block)


@pytest.mark.slow
def test_whatever_the_blocks_of_a_kernel():
    interpreted(
        "several_tiles_and_segments", "blocks_of_inputs_and_outputs",
        "one_channel_block_after_the_other",
    )  # fmt: skip


@pytest.mark.slow
def test_the_network_equals_the_stock_one():
    interpreted("network", "stem_kernels")


# ------------------------------------------------------------------ compiled, without a GPU


class Launches:
    """Stands for a kernel: notes what it would be compiled for."""

    def __init__(self, kernel, seen: dict) -> None:
        self._kernel, self._seen = kernel, seen
        self.arg_names = kernel.arg_names

    def warmup(self, *arguments, grid, **constants) -> None:
        tensors = {torch.dtype: lambda dtype: torch.empty(1, dtype=dtype)}
        self[grid](*(tensors.get(type(one), lambda x: x)(one) for one in arguments), **constants)

    def __getitem__(self, _grid):
        def launch(*arguments, num_warps=4, num_stages=3, maxnreg=None, **constants):
            names = self._kernel.arg_names
            types = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}
            signature, values, sixteens = {}, {}, []
            for name, value in [*zip(names, arguments, strict=False), *constants.items()]:
                # As Triton does: what 16 divides is compiled for that, and so is a one.
                if isinstance(value, torch.Tensor):
                    signature[name] = types[value.dtype]
                    sixteens.append(name)
                elif value is None or names.index(name) in self._kernel.constexprs:
                    signature[name], values[name] = "constexpr", value
                elif (parameter := self._kernel.params[names.index(name)]).do_not_specialize:
                    signature[name] = "i32"
                elif value == 1:
                    signature[name], values[name] = "constexpr", value
                else:
                    signature[name] = "fp32" if isinstance(value, float) else "i32"
                    if value % 16 == 0 and not parameter.do_not_specialize_on_alignment:
                        sixteens.append(name)
            options = {"num_warps": num_warps, "num_stages": num_stages}
            options |= {"maxnreg": maxnreg} if maxnreg else {}
            key = repr((self._kernel.__name__, signature, values, sixteens, options))
            self._seen[key] = (self._kernel, signature, values, sixteens, options)

        return launch


# Compute capability: bytes of shared memory that a program may have, and rounds of loads. (An A100,
# 80, has more than an 86 and its instructions.)
CARDS = {90: (232448, 3), 86: (101376, 2)}


def stand_ins(monkeypatch, stages: int) -> dict:
    """Let kernels only be noted, with what each is compiled for: here, as they come."""
    triton = pytest.importorskip("triton")
    from mobilenetv2.network.gpu import (
        compile_worker,
        compiling,
        depthwise,
        depthwise_backward,
        finish,
        launches,
        norms,
        pointwise,
        stem,
    )

    monkeypatch.setattr(compiling, "available_cores", lambda: 2)  # stand-ins know no processes
    compile_worker.digests()  # of the kernels, before others stand in their place
    seen: dict = {}
    for module in (depthwise, depthwise_backward, finish, norms, pointwise, stem):
        for name, kernel in vars(module).copy().items():
            if isinstance(kernel, triton.JITFunction) and kernel.__module__ == module.__name__:
                monkeypatch.setattr(module, name, Launches(kernel, seen))
    kernels = launches.GpuKernels(torch.bfloat16, 132, stages)
    monkeypatch.setattr(fast_blocks, "_kernels", lambda *_: kernels)
    return seen


def step_of(network, images: int, channels: int, side: int) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.zeros(images, channels, side, side)).float().sum().backward()


def launched(monkeypatch, stages: int, networks) -> list:
    """All kernels that training steps of some networks launch, and what each is compiled for."""
    seen = stand_ins(monkeypatch, stages)
    for width, side, channels in networks:
        network = MobileNetV2(10, channels, width, stride_plan(side, side))
        install(network, fast_ops.FastOps("triton", ""))
        step_of(network, 2, channels, side)
    monkeypatch.undo()
    return list(seen.values())


def compiled(card: int, kernel, signature, values, sixteens, options):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    places = {(kernel.arg_names.index(name),): value for name, value in values.items()}
    hints = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in sixteens}
    source = ASTSource(kernel, signature, places, hints)
    return triton.compile(source, GPUTarget("cuda", card, 32), options)


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS)
def test_every_kernel_compiles_and_fits(card, monkeypatch):
    memory, stages = CARDS[card]
    wanted = launched(monkeypatch, stages, [(1.0, 224, 3)])
    assert len(wanted) > 40
    for kernel, *rest in wanted:
        found = compiled(card, kernel, *rest)
        assert found.metadata.shared <= memory, (kernel.__name__, *rest)
        # Maps of 24 channels too are read by sixteen bytes, not number by number.
        assert not re.search(r"ld\.global\S*\.[bu]16\s", found.asm["ptx"]), (kernel.__name__, *rest)


@pytest.mark.parametrize(("images", "frozen"), [(16, 0), (5, 0), (16, 3)])
def test_what_a_step_launches_is_what_is_compiled_before(images, frozen, monkeypatch):
    seen = stand_ins(monkeypatch, 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    network = MobileNetV2(10, 1, 0.5, (2, 1, 2, 2, 2, 1, 2, 1))
    network.features[:frozen].requires_grad_(False)
    install(network, fast_ops.FastOps("triton", ""))
    before = copy.deepcopy(network.state_dict())
    cpu = torch.device("cpu")
    on_a_cpu = Device(cpu, "bf16", fast_ops.FastOps("triton", ""), False, True)
    on_a_cpu.compile_ahead(network, torch.zeros(images, 1, 28, 28, dtype=torch.uint8))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    ahead = set(seen)
    seen.clear()
    step_of(network, images, 1, 28)
    assert len(ahead) > 30
    assert set(seen) == ahead


def test_other_batches_and_maps_need_no_other_kernels(monkeypatch):
    seen = stand_ins(monkeypatch, 3)
    network = MobileNetV2(10, 1, 0.5, (1, 1, 1, 2, 2, 1, 2, 1))
    install(network, fast_ops.FastOps("triton", ""))
    step_of(network, 16, 1, 28)
    before = set(seen)
    for images, side in ((5, 28), (8, 64), (3, 33)):
        step_of(network, images, 1, side)
    assert set(seen) == before


def test_only_a_network_on_these_kernels_is_compiled_ahead(monkeypatch):
    tried = []
    monkeypatch.setattr(device, "rehearse", lambda *given: tried.append(given))
    cpu, pictures = torch.device("cpu"), torch.zeros(4, 1, 28, 28)
    network = MobileNetV2(10, 1, 0.5, stride_plan(28, 28))
    for installed, kind, times in (
        ("off", "triton", 0), ("cpp", "cpp", 0), ("triton", "off", 0), ("triton", "triton", 1),
    ):  # fmt: skip
        install(network, fast_ops.FastOps(installed, ""))
        Device(cpu, "bf16", fast_ops.FastOps(kind, ""), False).compile_ahead(network, pictures)
        assert len(tried) == times


def test_nobody_is_told_of_what_is_only_tried(monkeypatch):
    seen = stand_ins(monkeypatch, 3)
    network = MobileNetV2(10, 1, 0.5, stride_plan(28, 28))
    install(network, fast_ops.FastOps("triton", ""))
    network.features[3].register_forward_hook(lambda *_: pytest.fail("called"))
    with torch.autocast("cpu", torch.bfloat16):
        fast_blocks.rehearse(network, torch.zeros(4, 1, 28, 28))
    assert not seen


class Compiled:
    """Stands for a compiled kernel: bringing it to the GPU takes its ``run``."""

    def __init__(self, error: Exception | None = None) -> None:
        self.brought, self._error = 0, error

    @property
    def run(self) -> None:
        self.brought += 1
        if self._error:
            raise self._error


class Warmed:
    """Stands for a kernel whose compiling ends as it is told."""

    def __init__(self, outcome: Compiled | Exception) -> None:
        self.outcome, self.told, self.launched = outcome, [], 0

    def warmup(self, *arguments, grid, **constants):
        self.told.append((arguments, grid, constants))
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def __getitem__(self, _grid):
        def launch(*_, **__):
            self.launched += 1

        return launch


@pytest.fixture
def launcher(monkeypatch):
    pytest.importorskip("triton")
    from mobilenetv2.network.gpu import compiling
    from mobilenetv2.network.gpu.launcher import Launcher

    monkeypatch.setattr(compiling, "available_cores", lambda: 2)  # stand-ins know no processes
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    return Launcher(132, 3)


def test_a_rehearsal_brings_each_kernel_to_the_gpu_once_and_launches_none(launcher):
    kernel, other = Warmed(Compiled()), Warmed(Compiled(RuntimeError("too many registers")))
    x = torch.zeros(3, dtype=torch.bfloat16)
    plan = Plan({"ROWS": 64}, programs=2, stages=3)
    with launcher.rehearsal():
        for rows in (5, 6, 7):
            launcher.launch(kernel, (rows,), x, None, rows, plan=plan, EVEN=False)
        launcher.launch(other, (1,), x)
        assert not kernel.told  # nothing is compiled before all is known
    options = {"EVEN": False, "ROWS": 64, "num_warps": 4, "num_stages": 3}
    assert kernel.told[0] == ((torch.bfloat16, None, 5), (5,), options)
    assert (len(kernel.told), kernel.outcome.brought, other.outcome.brought) == (3, 1, 1)
    assert kernel.launched == other.launched == 0
    launcher.launch(kernel, (5,), x)
    assert kernel.launched == 1


def test_what_cannot_be_compiled_ahead_ends_no_training(launcher):
    with launcher.rehearsal():
        launcher.launch(Warmed(RuntimeError("can't start new thread")), (1,), 1)
    with pytest.raises(torch.OutOfMemoryError), launcher.rehearsal():
        raise torch.OutOfMemoryError("CUDA out of memory")
    kernel = Warmed(Compiled())
    launcher.launch(kernel, (1,), 1)
    assert kernel.launched == 1


@pytest.mark.slow
def test_loops_hand_on_all_that_changes(monkeypatch):
    """Triton takes a loop to change nothing that two names had in common before it.

    An interpreter does not, so it would not see that.
    """
    carried = {}
    for kernel, signature, values, *rest in launched(monkeypatch, 3, [(0.35, 64, 3)]):
        name, stride = kernel.__name__, values.get("STRIDE")
        if name in ("depthwise_forward", "depthwise_backward") and (name, stride) not in carried:
            if values.get("x_norm", 0) is None or values.get("norm", 0) is None:
                continue
            code = compiled(90, kernel, signature, values, *rest).asm["ttir"]
            loops = re.findall(r"scf\.for .*iter_args\((.*?)\) ->", code)
            carried[name, stride] = max(loop.count(" = ") for loop in loops)
    # Sums of the moments and p, q; sums for the norm and nine taps, and p, q, a, h or o.
    assert carried == {
        ("depthwise_forward", 1): 4 + 4, ("depthwise_forward", 2): 4 + 2,
        ("depthwise_backward", 1): 11 + 10, ("depthwise_backward", 2): 11 + 2,
    }  # fmt: skip


# ----------------------------------------------------------------------------- what is chosen


def test_a_gpu_gets_triton_in_bf16_only():
    assert choose(CUDA, "auto", torch.float32).kind == "off"
    assert "bf16" in choose(CUDA, "auto", torch.float32).reason


def test_other_operations_are_not_for_a_gpu():
    for requested in ("cpp", "torch"):
        assert choose(CUDA, requested, torch.bfloat16).kind == "off"
    assert choose(torch.device("mps"), "auto", torch.bfloat16).kind == "off"
    assert choose(torch.device("cpu"), "triton").kind == "torch"


def test_an_amd_gpu_runs_without(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    chosen = choose(CUDA, "auto", torch.bfloat16)
    assert (chosen.kind, chosen.reason) == (
        "off",
        "fast operations: off, those for a GPU are for NVIDIA's",
    )


def test_where_triton_fails_training_goes_on_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "mobilenetv2.network.gpu.launches", None)
    monkeypatch.delattr("mobilenetv2.network.gpu.launches", raising=False)
    chosen = choose(CUDA, "auto", torch.bfloat16)
    assert chosen.kind == "off"
    assert "because Triton says" in chosen.reason


# ---------------------------------------------------------------------------------- on a GPU


@on_a_gpu
@pytest.mark.parametrize("block", BLOCKS)
def test_bfloat16_is_as_near_to_the_truth_as_stock_autocast(block):
    torch.manual_seed(0)
    build, channels = BLOCKS[block]
    module = random_norms(build()).to(CUDA).to(memory_format=torch.channels_last)
    x = torch.randn(8, channels, 28, 28, device=CUDA).to(memory_format=torch.channels_last)
    truth = step(copy.deepcopy(module).double(), x.double())
    stock = step(copy.deepcopy(module), x, autocast=True)
    install(module, choose(CUDA, "triton", torch.bfloat16))
    ours = step(module, x, autocast=True)
    for name, reference in truth.items():
        scale = reference.double().norm() + 1
        error = (ours[name].double() - reference.double()).norm() / scale
        of_stock = (stock[name].double() - reference.double()).norm() / scale
        assert error <= 2 * of_stock + 0.01, (name, error, of_stock)


@on_a_gpu
def test_the_same_gpu_gives_the_same_bits():
    module = MobileNetV2(10, dropout=0.0).to(CUDA).to(memory_format=torch.channels_last)
    install(module, choose(CUDA, "triton", torch.bfloat16))
    x = torch.randn(16, 3, 96, 96, device=CUDA).to(memory_format=torch.channels_last)
    start = copy.deepcopy(module.state_dict())
    results = []
    for _ in range(2):
        module.load_state_dict(start)
        module.zero_grad()
        results.append(step(module, x, autocast=True))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
