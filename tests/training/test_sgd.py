"""One pass over all weights: PyTorch's numbers and PyTorch's state."""

import copy
import io

import pytest
import torch
from torch import nn

from mobilenetv2.config import OptimizerConfig
from mobilenetv2.network.cpp_updates import CppUpdates
from mobilenetv2.network.fast_ops import choose, updates_of
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.training.optimizers import build_optimizer
from mobilenetv2.training.sgd import CompiledSGD


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def updates(dtype) -> CppUpdates:
    chosen = choose(torch.device("cpu"), "cpp", dtype)
    if chosen.kind != "cpp":
        pytest.skip(chosen.reason)
    found = updates_of(chosen, dtype)
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


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        tolerance = 1e-6 if ours.dtype is torch.float32 else 1e-14
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_as_pytorch(dtype, updates, threads, momentum, nesterov, layer_decay):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    config = OptimizerConfig(momentum=momentum, nesterov=nesterov, weight_decay=0.01)
    ours, theirs = networks(dtype)
    compiled = build_optimizer(ours, config, 0.1, layer_decay, updates)
    stock = build_optimizer(theirs, config, 0.1, layer_decay)
    assert isinstance(compiled, CompiledSGD)
    for seed in range(4):
        give_gradients(ours, theirs, seed=seed)
        for optimizer in (compiled, stock):
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
            optimizer.step()
        assert_same(ours, theirs)
    torch.set_num_threads(before)


def test_weights_without_a_gradient_stay_and_others_may_follow(dtype, updates):
    ours, theirs = networks(dtype)
    compiled = build_optimizer(ours, OptimizerConfig(), 0.1, updates=updates)
    stock = build_optimizer(theirs, OptimizerConfig(), 0.1)
    for seed, leave_out in enumerate((0, 3, 2, 0, 1)):
        give_gradients(ours, theirs, seed=seed, leave_out=leave_out)
        compiled.step()
        stock.step()
        assert_same(ours, theirs)


def test_the_state_goes_both_ways(dtype, updates):
    """Through a file too, and in another layout than that of the weights."""
    ours, theirs = networks(dtype)
    compiled = build_optimizer(ours, OptimizerConfig(), 0.1, updates=updates)
    stock = build_optimizer(theirs, OptimizerConfig(), 0.1)
    give_gradients(ours, theirs, seed=1)
    compiled.step()
    stock.step()
    for seed in range(2, 5):
        file = io.BytesIO()
        torch.save(stock.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        for state in saved["state"].values():
            state["momentum_buffer"] = state["momentum_buffer"].contiguous()
        ours_saved = copy.deepcopy(compiled.state_dict())
        compiled.load_state_dict(saved)
        stock.load_state_dict(ours_saved)
        give_gradients(ours, theirs, seed=seed)
        compiled.step()
        stock.step()
        assert_same(ours, theirs)


def test_what_the_pass_does_not_cover_pytorch_does(dtype, updates):
    others = torch.float32 if dtype is torch.float64 else torch.float64
    ours, theirs = networks(others)
    compiled = build_optimizer(ours, OptimizerConfig(), 0.1, updates=updates)
    stock = build_optimizer(theirs, OptimizerConfig(), 0.1)
    for seed in range(3):
        give_gradients(ours, theirs, seed=seed)
        compiled.step()
        stock.step()
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_a_closure_is_called(dtype, updates):
    ours, _ = networks(dtype)
    optimizer = build_optimizer(ours, OptimizerConfig(), 0.1, updates=updates)
    before = ours.classifier[1].bias.detach().clone()

    def closure() -> float:
        give_gradients(ours, seed=1)
        return 0.5

    assert optimizer.step(closure) == 0.5
    assert not torch.equal(ours.classifier[1].bias, before)


def test_a_gradient_may_lie_otherwise_than_its_weight(dtype, updates):
    ours, theirs = networks(dtype)
    compiled = build_optimizer(ours, OptimizerConfig(), 0.1, updates=updates)
    stock = build_optimizer(theirs, OptimizerConfig(), 0.1)
    for seed in range(3):
        give_gradients(ours, theirs, seed=seed)
        weight = ours.features[0][0].weight
        weight.grad = weight.grad.transpose(2, 3).contiguous().transpose(2, 3)
        compiled.step()
        stock.step()
        assert_same(ours, theirs)


def test_weights_may_be_laid_out_anew(dtype, updates):
    ours, theirs = networks(dtype)
    compiled = build_optimizer(ours, OptimizerConfig(), 0.1, updates=updates)
    stock = build_optimizer(theirs, OptimizerConfig(), 0.1)
    stock.param_groups[0]["fused"] = False  # PyTorch's fused step would mix the layouts up
    for seed, layout in enumerate((torch.contiguous_format, torch.channels_last) * 2):
        for network in (ours, theirs):
            network.to(memory_format=layout)
        give_gradients(ours, theirs, seed=seed)
        compiled.step()
        stock.step()
        assert_same(ours, theirs)


def test_a_weight_may_shrink(dtype, updates):
    layer = nn.Linear(64, 64).to(dtype)
    optimizer = CompiledSGD([{"params": list(layer.parameters())}], 0.1, 0.0, False, updates)
    for rows in (64, 2):
        layer.weight.data = layer.weight.data[:rows].clone()
        layer.weight.grad, layer.bias.grad = torch.ones_like(layer.weight), None
        before = layer.weight.detach().clone()
        optimizer.step()
        torch.testing.assert_close(layer.weight, before - 0.1)


def test_options_of_a_group_may_change(dtype, updates):
    """Also to what the pass does not cover."""
    ours, theirs = networks(dtype)
    config = OptimizerConfig(momentum=0.0, nesterov=False)
    compiled = build_optimizer(ours, config, 0.1, updates=updates)
    stock = build_optimizer(theirs, config, 0.1)
    changes = ({}, {"momentum": 0.9}, {"nesterov": True}, {"maximize": True}, {"maximize": False})
    for seed, change in enumerate(
        (*changes, {"nesterov": False, "dampening": 0.5}, {"momentum": 0.0})
    ):
        for optimizer in (compiled, stock):
            for group in optimizer.param_groups:
                group.update(change)
        give_gradients(ours, theirs, seed=seed)
        compiled.step()
        stock.step()
        assert_same(ours, theirs)


def test_a_momentum_of_another_shape_is_refused(dtype, updates):
    ours, _ = networks(dtype)
    optimizer = build_optimizer(ours, OptimizerConfig(), 0.1, updates=updates)
    give_gradients(ours, seed=1)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][3]["momentum_buffer"] = torch.zeros(3, dtype=dtype)
    with pytest.raises(ValueError, match=r"a momentum of shape \(3,\)"):
        optimizer.load_state_dict(saved)


def test_a_copy_goes_on(dtype, updates):
    ours, _ = networks(dtype)
    optimizer = build_optimizer(ours, OptimizerConfig(), 0.1, updates=updates)
    give_gradients(ours, seed=1)
    optimizer.step()
    twin, twin_optimizer = copy.deepcopy((ours, optimizer))
    give_gradients(ours, twin, seed=2)
    optimizer.step()
    twin_optimizer.step()
    assert_same(ours, twin)


def test_a_scaled_gradient(updates, dtype):
    layer = nn.Linear(3, 2).to(dtype)
    optimizer = CompiledSGD([{"params": list(layer.parameters())}], 0.1, 0.9, True, updates)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = layer.bias.detach().clone()
    scaler.scale(layer(torch.randn(4, 3, dtype=dtype)).sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(layer.bias, before - 0.1 * 1.9 * 4)


def test_autograd_knows_that_weights_changed(updates, dtype):
    layer = nn.Linear(3, 2).to(dtype)
    optimizer = CompiledSGD([{"params": list(layer.parameters())}], 0.1, 0.9, True, updates)
    x = torch.randn(4, 3, dtype=dtype, requires_grad=True)
    layer(x).sum().backward()
    out = layer(x).square().sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()
