import copy
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mobilenetv2.data.augment import Batch
from mobilenetv2.data.batches import Batches
from mobilenetv2.errors import WorkFailed
from mobilenetv2.network.fast_ops import choose, install
from mobilenetv2.network.mobilenetv2 import MobileNetV2, stride_plan
from mobilenetv2.training import gradients
from mobilenetv2.training.device import Device, choose_device
from mobilenetv2.training.gradients import Gradients, RecordedGradients
from mobilenetv2.training.parallel import StepLoss
from mobilenetv2.training.train import train

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")


def batch(pictures: int, mixed: bool = False, device: str = "cpu") -> Batch:
    labels = torch.randint(3, (pictures,), device=device)
    x = torch.randn(pictures, 4, device=device)
    return Batch(x, labels, labels.flip(0), 0.3) if mixed else Batch(x, labels)


def loss_of(network: nn.Module):
    def loss(batch: Batch) -> StepLoss:
        logits = network(batch.pictures)
        value = nn.functional.cross_entropy(logits, batch.labels)
        if batch.other_labels is not None:
            other = nn.functional.cross_entropy(logits, batch.other_labels)
            value = batch.weight * value + (1 - batch.weight) * other
        hits = (logits.argmax(1) == batch.labels).sum()
        return StepLoss(value, value.detach(), hits, len(batch.labels))

    return loss


class Recording:
    """Stands for a CUDA graph: its gradients live in tensors of its own."""

    made = 0

    def __init__(self, parameters, loss_of, batch, pool):
        type(self).made += 1
        self._parameters, self._loss_of = parameters, loss_of
        self._gradients = [torch.zeros_like(p) for p in parameters]

    def pool(self):
        return None

    def claim(self, parameters):
        for parameter, gradient in zip(parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def replay(self, batch):
        loss = self._loss_of(batch)
        new = torch.autograd.grad(loss.for_backward, self._parameters)
        for old, gradient in zip(self._gradients, new, strict=True):
            old.copy_(gradient)
        return loss


def grads(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in network.parameters()]


def same(some, others) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_gradients_take_the_place_of_the_last_ones():
    network = nn.Linear(4, 3)
    one = batch(5)
    leave = Gradients(network, loss_of(network))
    leave.of(batch(7))
    leave.of(one)
    twin = copy.deepcopy(network)
    twin.zero_grad()
    loss_of(twin)(one).for_backward.backward()
    assert same(grads(network), grads(twin))


def test_a_loss_in_use_does_not_hold_the_step(monkeypatch):
    monkeypatch.setattr(gradients, "_Recording", Recording)
    network, graphs = nn.Linear(4, 3), []

    def loss(batch: Batch) -> StepLoss:
        step = loss_of(network)(batch)
        graphs.append(weakref.ref(step.for_backward))
        return step

    in_use = Gradients(network, loss).of(batch(8))
    assert in_use.mean > 0
    assert graphs[0]() is None


def test_a_shape_runs_once_and_is_recorded_then(monkeypatch):
    monkeypatch.setattr(gradients, "_Recording", Recording)
    Recording.made = 0
    network = nn.Linear(4, 3)
    twin = copy.deepcopy(network)
    recorded, plain = RecordedGradients(network, loss_of(network)), Gradients(twin, loss_of(twin))
    made = []
    # Full batches and the last one of an epoch by turns, so that the recordings take turns too.
    for size in (8, 8, 8, 5, 8, 5, 5, 8):
        one = batch(size)
        assert torch.equal(recorded.of(one).mean, plain.of(one).mean)
        assert same(grads(network), grads(twin))
        made.append(Recording.made)
    assert made == [0, 1, 1, 1, 1, 2, 2, 2]


def test_each_shape_is_prepared_once_before_its_first_step(monkeypatch):
    monkeypatch.setattr(gradients, "_Recording", Recording)
    network, told = nn.Linear(4, 3), []

    def loss(batch: Batch) -> StepLoss:
        told.append(f"step of {len(batch.labels)}")
        return loss_of(network)(batch)

    def prepare(of: nn.Module, pictures: torch.Tensor) -> None:
        assert of is network
        told.append(f"prepare {len(pictures)}")

    recorded = RecordedGradients(network, loss, prepare)
    for size in (8, 8, 5, 8, 5):
        recorded.of(batch(size))
    steps = [f"step of {size}" for size in (8, 8, 5, 8, 5)]
    assert told == ["prepare 8", *steps[:2], "prepare 5", *steps[2:]]


def test_no_more_shapes_are_recorded_than_a_run_has(monkeypatch):
    monkeypatch.setattr(gradients, "_Recording", Recording)
    Recording.made = 0
    network = nn.Linear(4, 3)
    recorded = RecordedGradients(network, loss_of(network))
    for size in range(2, 10):
        recorded.of(batch(size))
        recorded.of(batch(size))
    assert Recording.made == gradients.MOST_GRAPHS


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when")],
    ids=repr,
)
def test_where_memory_is_too_little_for_another_recording_steps_run(monkeypatch, error):
    class Small(Recording):
        def __init__(self, parameters, loss_of, batch, pool):
            if len(batch.labels) == 5:
                raise error
            assert pool is None
            super().__init__(parameters, loss_of, batch, pool)

    monkeypatch.setattr(gradients, "_Recording", Small)
    network = nn.Linear(4, 3)
    twin = copy.deepcopy(network)
    recorded, plain = RecordedGradients(network, loss_of(network)), Gradients(twin, loss_of(twin))
    for size in (8, 8, 5, 8, 5, 8, 8, 5, 8):
        one = batch(size)
        assert torch.equal(recorded.of(one).mean, plain.of(one).mean)
        assert same(grads(network), grads(twin))


def test_too_little_memory_for_a_step_is_not_hidden():
    def loss(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        RecordedGradients(nn.Linear(4, 3), loss).of(batch(8))


def test_a_step_that_cannot_be_recorded_is_told(monkeypatch):
    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(gradients, "_Recording", refuse)
    network = nn.Linear(4, 3)
    recorded = RecordedGradients(network, loss_of(network))
    recorded.of(batch(8))
    with pytest.raises(WorkFailed, match=r"--no-cuda-graphs .*stream is capturing\)$"):
        recorded.of(batch(8))


@on_a_gpu
@pytest.mark.parametrize("mixed", [False, True])
def test_a_recorded_step_gives_the_bits_of_one_that_runs(mixed):
    torch.manual_seed(0)
    network = MobileNetV2(3, 1, 0.35, stride_plan(28, 28), dropout=0.0).cuda()
    network.to(memory_format=torch.channels_last)
    install(network, choose(torch.device("cuda", 0), "triton", torch.bfloat16))
    twin = copy.deepcopy(network)

    def losses(of):
        plain = loss_of(of)

        def loss(batch: Batch) -> StepLoss:
            with torch.autocast("cuda", torch.bfloat16):
                return plain(batch)

        return loss

    recorded = RecordedGradients(network, losses(network))
    plain = Gradients(twin, losses(twin))
    for size in (16, 16, 16, 9, 16, 9, 9, 16):
        one = batch(size, mixed, "cuda")._replace(pictures=torch.randn(size, 1, 28, 28).cuda())
        got, expected = recorded.of(one), plain.of(one)
        assert torch.equal(got.mean, expected.mean)
        assert same(grads(network), grads(twin))
    assert same(network.buffers(), twin.buffers())


def test_a_run_with_recorded_steps_is_the_same_run(quick_settings, tmp_path, monkeypatch):
    """The loop around them, with clipping, mixing and an average, and a smaller last batch."""
    settings = {
        "clip_norm": 0.5, "mixup": 0.3, "ema": 0.9, "batch_size": 4, "epochs": 3, "device": "cpu",
    }  # fmt: skip
    plain = train(quick_settings(tmp_path / "plain", **settings))

    def recorded(*arguments):
        return replace(choose_device(*arguments), recorded=True)

    monkeypatch.setattr("mobilenetv2.training.start.choose_device", recorded)
    monkeypatch.setattr(gradients, "_Recording", Recording)
    monkeypatch.setattr(Batches, "_at_once", lambda _: 3)
    prepared = []
    monkeypatch.setattr(
        Device, "compile_ahead", lambda _, network, pictures: prepared.append(len(pictures))
    )
    Recording.made = 0
    other = train(quick_settings(tmp_path / "recorded", **settings))
    assert Recording.made == 2
    assert prepared[0] == 4
    assert len(prepared) == len(set(prepared)) == 2
    assert other["cuda_graphs"] is True
    assert plain["cuda_graphs"] is False
    weights = [load_file(tmp_path / run / "model.safetensors") for run in ("plain", "recorded")]
    assert weights[0].keys() == weights[1].keys()
    assert same(weights[0].values(), weights[1].values())
