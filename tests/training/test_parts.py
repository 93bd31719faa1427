"""Schedules, optimizers, loss, range test, signals: each against something outside."""

import math
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import (
    AugmentConfig,
    MachineConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from mobilenetv2.data.augment import Batch
from mobilenetv2.data.batches import Batches, LabelledPictures
from mobilenetv2.distributed import Processes
from mobilenetv2.errors import ConfigError, NonFiniteLoss, WorkFailed
from mobilenetv2.network.fast_ops import FastOps
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.training.checkpoint_timer import CheckpointTimer
from mobilenetv2.training.device import choose_device, has_room
from mobilenetv2.training.find_lr import HIGHEST, LOWEST, SETTLED, Climb, find_lr, suggest
from mobilenetv2.training.loss import batch_loss
from mobilenetv2.training.optimizers import build_optimizer
from mobilenetv2.training.reporter import Reporter, StepOutcome
from mobilenetv2.training.schedules import build_schedule, schedule_factor
from mobilenetv2.training.signals import StopRequest, stopped_at_once

CPU = choose_device(MachineConfig(device="cpu", precision="fp32", fast_ops="off"))

# ---------------------------------------------------------------------- schedules


def stepped(scheduler_class: Any, steps: int, **arguments: Any) -> list[float]:
    """The factors of one of PyTorch's own schedulers, stepped after every batch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_class(optimizer, **arguments)
    factors = []
    for _ in range(steps + 1):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize(
    ("config", "scheduler", "arguments"),
    [
        (ScheduleConfig(), lr_scheduler.CosineAnnealingLR, {"T_max": 120}),
        (
            ScheduleConfig(schedule="exponential", gamma=0.9),
            lr_scheduler.ExponentialLR,
            {"gamma": 0.9 ** (1 / 12)},
        ),
        (
            ScheduleConfig(schedule="exponential"),
            lr_scheduler.ExponentialLR,
            {"gamma": 0.98 ** (1 / 12)},
        ),
        (
            ScheduleConfig(schedule="multistep", milestones=(2, 7.5), gamma=0.3),
            lr_scheduler.MultiStepLR,
            {"milestones": [24, 90], "gamma": 0.3},
        ),
        (
            ScheduleConfig(schedule="multistep"),
            lr_scheduler.MultiStepLR,
            {"milestones": [60, 90], "gamma": 0.1},
        ),
        (ScheduleConfig(schedule="constant"), lr_scheduler.ConstantLR, {"factor": 1.0}),
    ],
)
def test_equal_to_pytorch(
    config: ScheduleConfig, scheduler: Any, arguments: dict[str, Any]
) -> None:
    factor = schedule_factor(config, epochs=10, steps_per_epoch=12)
    ours = [factor(step) for step in range(121)]
    np.testing.assert_allclose(ours, stepped(scheduler, 120, **arguments), rtol=1e-9, atol=1e-12)


def test_fifty_thousand_pictures_ten_epochs() -> None:
    pictures = LabelledPictures(
        torch.zeros(50_000, 1, 8, 8, dtype=torch.uint8), torch.zeros(50_000, dtype=torch.long)
    )
    batches = Batches(pictures, (8, 8), 64, AugmentConfig(), 0)
    assert batches.steps_per_epoch == 782
    factor = schedule_factor(ScheduleConfig(), 10, batches.steps_per_epoch)
    assert factor(7_819) > 0
    assert factor(7_820) == 0


@pytest.mark.parametrize("name", ["cosine", "exponential", "multistep", "constant"])
def test_warm_up_climbs_to_the_peak_and_the_schedule_follows(name: Any) -> None:
    factor = schedule_factor(ScheduleConfig(schedule=name, warmup_epochs=1.5), 10, 12)
    climb = [factor(step) for step in range(18)]
    np.testing.assert_allclose(climb, [(step + 1) / 18 for step in range(18)])
    assert factor(18) == pytest.approx(1.0)
    assert all(factor(step) <= 1 for step in range(18, 121))


# --------------------------------------------------------------------- optimizers


def test_no_decay_on_norms_and_biases_and_nothing_forgotten() -> None:
    network = MobileNetV2(5, width=0.1)
    optimizer = build_optimizer(network, OptimizerConfig(weight_decay=0.01), lr=0.1)
    decayed, free = (group["params"] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    kinds = {name: type(module) for name, module in network.named_modules()}
    for parameter in decayed:
        assert names[id(parameter)].endswith("weight")
        assert kinds[names[id(parameter)].rpartition(".")[0]] in (nn.Conv2d, nn.Linear)
    assert len(decayed) + len(free) == len(names)


def test_frozen_parameters_are_left_out_and_rates_fall_with_depth() -> None:
    network = MobileNetV2(5, width=0.1)
    for parameter in network.features[:10].parameters():
        parameter.requires_grad_(False)
    optimizer = build_optimizer(network, OptimizerConfig(), lr=0.1, layer_decay=0.5)
    rates = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert rates[id(network.classifier[1].weight)] == 0.1
    assert rates[id(network.features[18][0].weight)] == 0.05
    assert rates[id(network.features[17].conv[0][0].weight)] == 0.025
    assert id(network.features[9].conv[0][0].weight) not in rates


def test_nesterov_by_hand() -> None:
    """v ← μ v + g + λ w;  w ← w - η (g + λ w + μ v), PyTorch's documented form."""
    network = nn.Linear(3, 2, bias=False)
    config = OptimizerConfig(momentum=0.9, weight_decay=0.1)
    optimizer = build_optimizer(network, config, lr=0.05)
    weight = network.weight.detach().numpy().astype(float).copy()
    velocity = np.zeros_like(weight)
    x = torch.tensor([[1.0, -2.0, 0.5]])
    for _ in range(5):
        optimizer.zero_grad()
        (network(x) ** 2).sum().backward()
        gradient = 2 * (weight @ x.numpy().T) @ x.numpy() + 0.1 * weight
        velocity = 0.9 * velocity + gradient
        weight = weight - 0.05 * (gradient + 0.9 * velocity)
        optimizer.step()
        np.testing.assert_allclose(network.weight.detach().numpy(), weight, rtol=1e-4)


# What tf.compat.v1.train.RMSPropOptimizer (TensorFlow 2.21; decay and momentum are the float32 next
# to 0.9) makes of the weights 3, -2 and 0.05, in float64, on half of their squares times 1, 4 and
# 0.01. The learning rate begins with 0.045 and falls by a fifth after each step.
TENSORFLOW_RMSPROP = {
    1.0: [
        [2.919322072, -1.875042187, 0.049983677],
        [2.790311904, -1.688250073, 0.049955611],
        [2.634040355, -1.472310124, 0.04991941],
        [2.46445429, -1.246375253, 0.049877892],
        [2.290794815, -1.022057506, 0.049833236],
        [2.119120117, -0.806357359, 0.049787108],
    ],
    0.001: [
        [2.899404886, -1.866767161, 0.049976296],
        [2.742342313, -1.669727625, 0.049934984],
        [2.555139206, -1.443364802, 0.049880972],
        [2.35436577, -1.207552065, 0.049818183],
        [2.150624222, -0.974219273, 0.049749733],
        [1.950666738, -0.75049945, 0.049678075],
    ],
}


@pytest.mark.parametrize("epsilon", TENSORFLOW_RMSPROP)
@pytest.mark.parametrize("weight_decay", [0.0, 1.0])
def test_rmsprop_is_tensorflows(epsilon: float, weight_decay: float) -> None:
    """With weight decay the square's part of the gradient comes from the optimizer."""
    curvature = torch.tensor([1.0, 4.0, 0.01], dtype=torch.float64)
    network = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    network.weight.data = torch.tensor([[3.0, -2.0, 0.05]], dtype=torch.float64)
    config = OptimizerConfig(
        optimizer="rmsprop", rmsprop_epsilon=epsilon, weight_decay=weight_decay
    )
    optimizer = build_optimizer(network, config, lr=0.045)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    for expected in TENSORFLOW_RMSPROP[epsilon]:
        optimizer.zero_grad()
        ((curvature - weight_decay) * network.weight**2 / 2).sum().backward()
        optimizer.step()
        schedule.step()
        np.testing.assert_allclose(network.weight.detach().numpy()[0], expected, atol=1e-6)


def test_rmsprop_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    whole, half = nn.Linear(4, 2), nn.Linear(4, 2)
    half.load_state_dict(whole.state_dict())
    pictures = torch.randn(6, 8, 4)
    config = OptimizerConfig(optimizer="rmsprop")

    def step(network: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()

    optimizers = [build_optimizer(network, config, lr=0.1) for network in (whole, half)]
    for batch in pictures[:3]:
        step(whole, optimizers[0], batch)
        step(half, optimizers[1], batch)
    again = build_optimizer(half, config, lr=0.1)
    again.load_state_dict(optimizers[1].state_dict())
    for batch in pictures[3:]:
        step(whole, optimizers[0], batch)
        step(half, again, batch)
    assert torch.equal(whole.weight, half.weight)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_every_optimizer_lowers_the_loss(name: Any) -> None:
    torch.manual_seed(0)
    network = nn.Linear(4, 1)
    optimizer = build_optimizer(network, OptimizerConfig(optimizer=name), lr=0.01)
    schedule = build_schedule(optimizer, ScheduleConfig(), 10, 10)
    x, y = torch.randn(64, 4), torch.randn(64, 1)
    before = F.mse_loss(network(x), y).item()
    for _ in range(100):
        optimizer.zero_grad()
        F.mse_loss(network(x), y).backward()
        optimizer.step()
        schedule.step()
    assert F.mse_loss(network(x), y).item() < before
    assert schedule.get_last_lr() == [0.0, 0.0]


# --------------------------------------------------------------- loss and reporting


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_loss_equals_soft_targets(
    small_classifier: Classifier, smoothing: float, weight: float
) -> None:
    pictures = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8)
    labels, others = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([2, 1, 0, 2, 1, 0])
    batch = Batch(pictures, labels, others if weight < 1 else None, weight)
    small_classifier.network.eval()
    loss, hits = batch_loss(small_classifier, batch, CPU, smoothing)
    logits = small_classifier.logits(pictures)
    targets = weight * F.one_hot(labels, 3) + (1 - weight) * F.one_hot(others, 3)
    targets = targets * (1 - smoothing) + smoothing / 3
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)
    assert int(hits) == int((logits.argmax(1) == labels).sum())
    assert loss.requires_grad


def test_weighted_loss_by_hand(small_classifier: Classifier) -> None:
    """Every picture counts as its class says, whatever else is in its batch."""
    pictures = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8)
    labels, weights = torch.tensor([0, 0, 0, 2, 1]), torch.tensor([0.5, 2.0, 4.0])
    small_classifier.network.eval()
    loss, _ = batch_loss(small_classifier, Batch(pictures, labels), CPU, 0.0, weights)
    each = F.cross_entropy(small_classifier.logits(pictures), labels, reduction="none")
    expected = (0.5 * each[:3].sum() + 4 * each[3] + 2 * each[4]) / 5
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)
    same, _ = batch_loss(small_classifier, Batch(pictures, labels), CPU, 0.1, torch.ones(3))
    plain, _ = batch_loss(small_classifier, Batch(pictures, labels), CPU, 0.1)
    torch.testing.assert_close(same, plain)


class Listener:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def record(self, events: Any) -> None:
        self.events += events

    def close(self) -> None:
        pass


def test_a_loss_that_is_not_a_number_is_named_and_the_good_ones_are_told() -> None:
    listener = Listener()
    reporter = Reporter([listener])
    losses = [1.0, 2.0, math.nan, 4.0]
    for step, loss in enumerate(losses, 1):
        reporter.step(StepOutcome(1, step, 0.1, 8, torch.tensor(loss), torch.tensor(4)))
    with pytest.raises(NonFiniteLoss, match="loss is nan at step 3"):
        reporter.flush()
    assert [event["loss"] for event in listener.events] == [1.0, 2.0]
    assert listener.events[0]["accuracy"] == 0.5


# ---------------------------------------------------------------------- range test


def learnable(count: int = 200) -> Batches:
    torch.manual_seed(0)
    labels = torch.arange(count) % 3
    pictures = torch.randint(0, 30, (count, 1, 16, 16)) + labels.view(-1, 1, 1, 1) * 110
    set_ = LabelledPictures(pictures.byte(), labels)
    return Batches(set_, (16, 16), 32, AugmentConfig(), 0)


def test_the_range_test_suggests_and_changes_nothing(small_classifier: Classifier) -> None:
    torch.manual_seed(0)
    quick = nn.Sequential(  # learns the brightness in a few steps, and knows norms and dropout
        nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Dropout(0.2), nn.Linear(16, 3),
    )  # fmt: skip
    classifier = small_classifier.with_network(quick)
    before = {k: v.clone() for k, v in quick.state_dict().items()}
    batches = learnable()
    state = torch.get_rng_state()
    test = find_lr(classifier, batches, TrainConfig(), CPU)
    assert LOWEST < test.suggestion < HIGHEST
    assert test.lrs == sorted(test.lrs)
    assert len(test.lrs) == len(test.losses) == len(test.smoothed)
    assert torch.equal(torch.get_rng_state(), state)
    after = quick.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    lowest = test.lrs[SETTLED + int(np.argmin(test.smoothed[SETTLED:]))]
    assert test.suggestion == pytest.approx(lowest / 4, rel=0.4)
    assert f"{lowest:.2g}" in test.reason


def test_nothing_is_suggested_where_nothing_falls() -> None:
    lrs = list(np.logspace(-5, 1, 50))
    with pytest.raises(WorkFailed, match="did not fall"):
        suggest(Climb(lrs, [2.3] * 50, [2.3] * 50))
    with pytest.raises(WorkFailed, match="did not fall"):
        suggest(Climb([], [], []))


# --------------------------------------------------------------- device and signals


def test_devices_that_are_not_there_are_named() -> None:
    for name in ("cuda:17", "nonsense"):
        with pytest.raises(ConfigError, match=f"--device {name}: not available"):
            choose_device(MachineConfig(device=name))


def test_bf16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    assert choose_device(MachineConfig(device="cpu", fast_ops="off")).precision == "fp32"
    with pytest.raises(ConfigError, match="does not have it natively"):
        choose_device(MachineConfig(device="cpu", precision="bf16"))
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    assert choose_device(MachineConfig(device="cpu", fast_ops="off")).precision == "bf16"


def test_compiling_is_for_those_who_ask_on_a_cpu() -> None:
    assert not choose_device(MachineConfig(device="cpu")).compiled
    asked = choose_device(MachineConfig(device="cpu", compile="on"))
    assert asked.compiled
    assert asked.fast_ops.kind == "torch"
    assert choose_device(MachineConfig(compile="on", fast_ops="off")).fast_ops.kind == "off"


def test_several_processes_compile_nothing_and_keep_their_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = choose_device(MachineConfig(device="cpu"))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    asked = choose_device(MachineConfig(device="cpu", compile="on"))
    assert not asked.compiled
    assert (asked.fast_ops.kind, asked.precision) == (alone.fast_ops.kind, alone.precision)


def test_a_gpu_is_the_current_one_and_has_its_steps_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Triton and CUDA graphs work on the current GPU, whichever is asked for."""
    current = []
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr("mobilenetv2.training.device.find_device", torch.device)
    monkeypatch.setattr("mobilenetv2.training.device.has_native_bf16", lambda _: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    chosen = FastOps("triton", "works")
    monkeypatch.setattr("mobilenetv2.training.device.fast_ops.choose", lambda *_: chosen)
    device = choose_device(MachineConfig(device="cuda:1"))
    assert current == [gpu]
    assert (device.precision, device.fast_ops.kind) == ("bf16", "triton")
    assert (device.compiled, device.recorded) == (False, True)
    assert choose_device(MachineConfig(device="cuda")).recorded
    assert current == [gpu]  # without a number it is the current one anyhow
    assert not choose_device(MachineConfig(device="cuda:1", cuda_graphs=False)).recorded
    chosen = FastOps("off", "does not work")
    assert choose_device(MachineConfig(device="cuda:1")).recorded
    compiled = choose_device(MachineConfig(device="cuda:1", compile="on"))
    assert (compiled.compiled, compiled.recorded) == (True, False)


# A signal that went astray would end the process of all tests: these are raised in another one.
SIGNALS_IN_A_CHILD = """
import signal, time
from mobilenetv2.errors import Interrupted
from mobilenetv2.training.signals import SIGNALS, StopRequest, stopped_at_once

# A shell starts what runs in the background with SIGINT ignored; here it must act as usual.
signal.signal(signal.SIGINT, signal.default_int_handler)
before = {number: signal.getsignal(number) for number in SIGNALS}

def handlers():
    return {number: signal.getsignal(number) for number in SIGNALS}

def interrupted(context, work):
    try:
        with context as stop:
            work(stop)
    except Interrupted as error:
        return error.exit_code, str(error)
    finally:
        assert handlers() == before

def at_once(stop, early=False):
    if early:
        signal.raise_signal(number)
    with stop.at_once():
        signal.raise_signal(number)
        time.sleep(5)
        raise AssertionError("it got on")

def between_steps(stop):
    stop.check()
    assert all(handlers()[number] != before[number] for number in SIGNALS)
    signal.raise_signal(number)
    assert stop.received == number
    assert handlers() == before  # the second one acts as usual
    stop.check()
    raise AssertionError("it got on")

def too_late(stop):
    with stop.at_once():
        pass
    signal.raise_signal(number)

def in_long_work(_):
    signal.raise_signal(number)
    time.sleep(5)
    raise AssertionError("it got on")

for number in SIGNALS:
    said = 143 if number == signal.SIGTERM else 130, (
        f"stopped by {number.name} before the first step. Go on so"
    )
    assert interrupted(StopRequest("Go on so"), between_steps) == said
    assert interrupted(StopRequest("Go on so"), at_once) == said
    assert interrupted(StopRequest("Go on so"), lambda stop: at_once(stop, early=True)) == said
    assert interrupted(StopRequest("Go on so"), too_late) is None
    assert interrupted(stopped_at_once("Go on so"), in_long_work) == said
    assert interrupted(stopped_at_once("Go on so"), lambda _: None) is None
    print(number.name)
"""


def test_the_first_signal_asks_and_the_second_acts_as_usual() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS_IN_A_CHILD], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"]


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest("Go on so") as stop:
            signal.raise_signal(signal.SIGHUP)
            stop.check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_of_several_processes_each_ends_as_programs_do() -> None:
    with stopped_at_once("Go on so", Processes(0, 2)):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# ---------------------------------------------------------------- checkpoint intervals


def test_checkpoints_by_steps_and_by_a_clock_that_only_goes_on() -> None:
    timer = CheckpointTimer("10steps")
    assert [step for step in range(30) if timer.is_due(step)] == list(range(10, 30))
    timer.saved(12)
    assert [step for step in range(30) if timer.is_due(step)] == list(range(22, 30))
    now = 1000.0
    timer = CheckpointTimer("0.5min", clock=lambda: now)
    assert not timer.is_due(10**9)
    now += 29
    assert not timer.is_due(0)
    now += 1
    assert timer.is_due(0)
    timer.saved(0)
    assert not timer.is_due(0)
    assert not CheckpointTimer("epoch", clock=lambda: 1e9).is_due(10**9)


def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = CheckpointTimer("1min")
    for jump in (1e9, -1e9):
        monkeypatch.setattr(time, "time", lambda: jump)  # noqa: B023
        assert not timer.is_due(1)


@pytest.mark.parametrize("text", ["10min", "2.5min", "1steps", "500steps", "epoch"])
def test_intervals_are_kept_as_written(text: str) -> None:
    assert TrainConfig(checkpoint_every=text).checkpoint_every == text


@pytest.mark.parametrize(
    "text", ["", "10", "min", "0min", "0steps", "1.5steps", "-1min", "10 hours", "1e3steps", "∞min"]
)
def test_odd_intervals_are_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint_every: must be .*got"):
        TrainConfig(checkpoint_every=text)


def test_pictures_lie_on_a_gpu_where_half_of_it_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000))
    gpu = torch.device("cuda:0")
    assert has_room(gpu, 500)
    assert not has_room(gpu, 501)
    assert has_room(torch.device("cpu"), 10**15)


def test_batches_come_to_the_device_from_pictures_that_wait_elsewhere() -> None:
    pictures = LabelledPictures(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.arange(5) % 2)
    batches = Batches(pictures, (8, 8), 2, AugmentConfig(), seed=0, device=torch.device("meta"))
    for batch in batches.epoch(0):
        assert {batch.pictures.device.type, batch.labels.device.type} == {"meta"}
