"""One pass over all weights: PyTorch's numbers and PyTorch's state."""

import copy
import io

import pytest
import torch
from torch import nn

from mobilenetv2.config import OptimizerConfig
from mobilenetv2.network.cpp_sgd import CppSgd
from mobilenetv2.network.fast_ops import choose, sgd_of
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.training.optimizers import build_optimizer
from mobilenetv2.training.sgd import CompiledSGD


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def compiled(dtype, compiler) -> CppSgd:
    chosen = choose(torch.device("cpu"), "cpp", dtype)
    assert chosen.kind == "cpp", chosen.reason
    found = sgd_of(chosen, dtype)
    assert found is not None
    return found


def networks(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    one = MobileNetV2(3, width=0.1).to(dtype).to(memory_format=torch.channels_last)
    return one, copy.deepcopy(one)


def give_gradients(*networks: nn.Module, seed: int, leave_out: int = 0) -> None:
    torch.manual_seed(seed)
    for index, parameters in enumerate(zip(*(n.parameters() for n in networks), strict=True)):
        gradient = torch.randn_like(parameters[0])
        for parameter in parameters:
            parameter.grad = None if leave_out and index % leave_out == 0 else gradient.clone()


class Pair:
    """The same network twice: the compiled SGD steps one of them, PyTorch's the other."""

    def __init__(self, dtype, compiled, config=None, layer_decay=1.0) -> None:
        self.ours, self.theirs = networks(dtype)
        config = config or OptimizerConfig()
        self.compiled = build_optimizer(self.ours, config, 0.1, layer_decay, compiled)
        self.stock = build_optimizer(self.theirs, config, 0.1, layer_decay)
        self.optimizers = self.compiled, self.stock
        assert isinstance(self.compiled, CompiledSGD)

    def step(self, seed: int, leave_out: int = 0) -> None:
        give_gradients(self.ours, self.theirs, seed=seed, leave_out=leave_out)
        self.step_with_gradients()

    def step_with_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
        assert_same(self.ours, self.theirs)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        tolerance = 1e-6 if ours.dtype is torch.float32 else 1e-14
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_as_pytorch(dtype, compiled, threads, momentum, nesterov, layer_decay):
    torch.set_num_threads(threads)  # a fixture of all tests sets it back
    config = OptimizerConfig(momentum=momentum, nesterov=nesterov, weight_decay=0.01)
    pair = Pair(dtype, compiled, config, layer_decay)
    for seed in range(4):
        for optimizer in pair.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
        pair.step(seed)


def test_weights_without_a_gradient_stay_and_others_may_follow(dtype, compiled):
    pair = Pair(dtype, compiled)
    for seed, leave_out in enumerate((0, 3, 2, 0, 1)):
        pair.step(seed, leave_out)


def test_the_state_goes_both_ways(dtype, compiled):
    """Through a file too, and in another layout than that of the weights."""
    pair = Pair(dtype, compiled)
    pair.step(1)
    for seed in range(2, 5):
        file = io.BytesIO()
        torch.save(pair.stock.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        for state in saved["state"].values():
            state["momentum_buffer"] = state["momentum_buffer"].contiguous()
        of_ours = copy.deepcopy(pair.compiled.state_dict())
        pair.compiled.load_state_dict(saved)
        pair.stock.load_state_dict(of_ours)
        pair.step(seed)


def test_what_is_remembered_may_be_forgotten(dtype, compiled):
    pair = Pair(dtype, compiled)
    for seed in range(3):
        pair.step(seed)
        for optimizer in pair.optimizers:
            optimizer.state.clear()
        pair.step(seed + 9)
        assert len(pair.compiled.state) == len(pair.stock.state) > 0


def test_what_the_pass_does_not_cover_pytorch_does(dtype, compiled):
    others = torch.float32 if dtype is torch.float64 else torch.float64
    pair = Pair(others, compiled)
    for seed in range(3):
        pair.step(seed)
        assert all(map(torch.equal, pair.ours.parameters(), pair.theirs.parameters()))


def test_weights_may_get_another_dtype(dtype, compiled):
    """From one that the pass does not cover to its own: what is remembered follows."""
    others = torch.float32 if dtype is torch.float64 else torch.float64
    layer = nn.Linear(3, 2)
    optimizer = CompiledSGD([{"params": list(layer.parameters())}], 0.1, 0.9, False, compiled)
    for of_weights, moved in ((others, 1.0), (dtype, 1.9)):
        layer.to(of_weights)
        for parameter in layer.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = layer.bias.detach().clone()
        optimizer.step()
        torch.testing.assert_close(layer.bias, before - 0.1 * moved)


def test_a_closure_is_called(dtype, compiled):
    ours, _ = networks(dtype)
    optimizer = build_optimizer(ours, OptimizerConfig(), 0.1, compiled=compiled)
    before = ours.classifier[1].bias.detach().clone()

    def closure() -> float:
        give_gradients(ours, seed=1)
        return 0.5

    assert optimizer.step(closure) == 0.5
    assert not torch.equal(ours.classifier[1].bias, before)


def test_a_gradient_may_lie_otherwise_than_its_weight(dtype, compiled):
    pair = Pair(dtype, compiled)
    for seed in range(3):
        give_gradients(pair.ours, pair.theirs, seed=seed)
        weight = pair.ours.features[0][0].weight
        weight.grad = weight.grad.transpose(2, 3).contiguous().transpose(2, 3)
        pair.step_with_gradients()


def test_weights_may_be_laid_out_anew(dtype, compiled):
    pair = Pair(dtype, compiled)
    pair.stock.param_groups[0]["fused"] = False  # PyTorch's fused step would mix the layouts up
    for seed, layout in enumerate((torch.contiguous_format, torch.channels_last) * 2):
        for network in (pair.ours, pair.theirs):
            network.to(memory_format=layout)
        pair.step(seed)


def test_a_weight_may_shrink(dtype, compiled):
    layer = nn.Linear(64, 64).to(dtype)
    optimizer = CompiledSGD([{"params": list(layer.parameters())}], 0.1, 0.0, False, compiled)
    for rows in (64, 2):
        layer.weight.data = layer.weight.data[:rows].clone()
        layer.weight.grad, layer.bias.grad = torch.ones_like(layer.weight), None
        before = layer.weight.detach().clone()
        optimizer.step()
        torch.testing.assert_close(layer.weight, before - 0.1)


def test_options_of_a_group_may_change(dtype, compiled):
    """Also to what the pass does not cover."""
    pair = Pair(dtype, compiled, OptimizerConfig(momentum=0.0, nesterov=False))
    changes = [
        {}, {"momentum": 0.9}, {"nesterov": True}, {"maximize": True}, {"maximize": False},
        {"nesterov": False, "dampening": 0.5}, {"momentum": 0.0},
    ]  # fmt: skip
    for seed, change in enumerate(changes):
        for optimizer in pair.optimizers:
            for group in optimizer.param_groups:
                group.update(change)
        pair.step(seed)


def test_a_momentum_of_another_shape_is_refused(dtype, compiled):
    ours, _ = networks(dtype)
    optimizer = build_optimizer(ours, OptimizerConfig(), 0.1, compiled=compiled)
    give_gradients(ours, seed=1)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][3]["momentum_buffer"] = torch.zeros(3, dtype=dtype)
    with pytest.raises(ValueError, match=r"a momentum of shape \(3,\)"):
        optimizer.load_state_dict(saved)


def test_a_copy_goes_on(dtype, compiled):
    ours, _ = networks(dtype)
    optimizer = build_optimizer(ours, OptimizerConfig(), 0.1, compiled=compiled)
    give_gradients(ours, seed=1)
    optimizer.step()
    twin, twin_optimizer = copy.deepcopy((ours, optimizer))
    give_gradients(ours, twin, seed=2)
    optimizer.step()
    twin_optimizer.step()
    assert_same(ours, twin)


def test_a_scaled_gradient(compiled, dtype):
    layer = nn.Linear(3, 2).to(dtype)
    optimizer = CompiledSGD([{"params": list(layer.parameters())}], 0.1, 0.9, True, compiled)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = layer.bias.detach().clone()
    scaler.scale(layer(torch.randn(4, 3, dtype=dtype)).sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(layer.bias, before - 0.1 * 1.9 * 4)


def test_autograd_knows_that_weights_changed(compiled, dtype):
    layer = nn.Linear(3, 2).to(dtype)
    optimizer = CompiledSGD([{"params": list(layer.parameters())}], 0.1, 0.9, True, compiled)
    x = torch.randn(4, 3, dtype=dtype, requires_grad=True)
    layer(x).sum().backward()
    out = layer(x).square().sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()
