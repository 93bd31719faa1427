"""The loop: what learns, what is measured, what is kept."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import mobilenetv2
from mobilenetv2.config import TrainConfig
from mobilenetv2.data.augment import Batch
from mobilenetv2.data.sources import load_data
from mobilenetv2.errors import NonFiniteLoss, WorkFailed
from mobilenetv2.evaluation.evaluate import Evaluation, evaluate
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.training import finish, parallel
from mobilenetv2.training import loop as module
from mobilenetv2.training.checkpoints import Checkpoint
from mobilenetv2.training.loop import Training
from mobilenetv2.training.loss import batch_loss
from mobilenetv2.training.run_folder import RunFolder
from mobilenetv2.training.schedules import schedule_factor
from mobilenetv2.training.start import start

Quick = Callable[..., TrainConfig]
Prepare = Callable[[TrainConfig], Training]


def out_of(config: TrainConfig) -> Path:
    assert config.out is not None
    return config.out


def events(config: TrainConfig, kind: str) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = (out_of(config) / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    return [event for event in found if event["event"] == kind]


@pytest.fixture
def prepared() -> Iterator[Prepare]:
    """Makes what the loop needs, and gives its run folder up afterwards."""
    with ExitStack() as folders:

        def prepare(config: TrainConfig) -> Training:
            folder = folders.enter_context(RunFolder.create(config))
            return Training(start(config), folder, Console(quiet=True))

        yield prepare


def test_learning_in_train_mode_and_the_test_set_once_at_the_end(
    quick: Quick, picture_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both halves of the field's oldest mistake: the wrong mode, and peeking at the test set."""
    for split, count in (("train", 8), ("val", 3), ("test", 5)):
        folder = picture_folder(name=f"set/{split}", count=count, size=(8, 8), mode="L")
    log: list[str] = []

    def spy(owner: Any, name: str, word: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def called(classifier: Any, *arguments: Any, **options: Any) -> Any:
            log.append(word(classifier, *arguments))
            return original(classifier, *arguments, **options)

        monkeypatch.setattr(owner, name, called)

    def step(classifier: Any, *_: Any) -> str:
        modes = {part.training for part in classifier.network.modules()}
        return f"step {modes}"

    sizes = {16: "train", 6: "val", 10: "test"}
    spy(parallel, "batch_loss", step)
    for owner in (module, finish):
        spy(owner, "evaluate", lambda _, pictures: sizes[len(pictures)])
    mobilenetv2.train(quick(batch_size=8, data=str(folder.parent)))
    epoch = ["step {True}", "step {True}", "train", "val"]
    assert log == [*epoch, *epoch, "train", "val", "test"]


def test_train_accuracy_is_measured_like_validation_accuracy(quick: Quick) -> None:
    config = quick(dropout=0.5, ema=0.5, mixup=1.0)
    mobilenetv2.train(config)
    last = events(config, "epoch")[-1]
    classifier = mobilenetv2.load(out_of(config) / "last.pth.tar")
    data = load_data(config.data, classifier.preprocessing)
    for name, pictures in (("train", data.train), ("val", data.val)):
        measured = evaluate(classifier, pictures)
        assert last[f"{name}_accuracy"] == measured.accuracy
        assert last[f"{name}_loss"] == pytest.approx(measured.loss, rel=1e-6)


@pytest.mark.parametrize(("keep", "kept"), [("best", 4), ("last", 5)])
def test_the_best_or_the_last_epoch_is_what_is_delivered(
    quick: Quick, monkeypatch: pytest.MonkeyPatch, keep: str, kept: int
) -> None:
    """Of equally good ones the later one; as it was asked for, the last one however bad."""
    hits = iter([0, 2, 1, 2, 1])

    def scripted(classifier: Any, pictures: Any, **_: Any) -> Evaluation:
        measured = evaluate(classifier, pictures)
        is_val = len(pictures) == len(data.val)
        return replace(measured, hits=next(hits)) if is_val else measured

    config = quick(epochs=5, ema=0.3, keep=keep)
    data = load_data(config.data)
    monkeypatch.setattr(module, "evaluate", scripted)
    result = mobilenetv2.train(config)
    assert result["best_epoch"] == kept
    best, last = (Checkpoint.load(out_of(config) / f"{name}.pth.tar") for name in ("best", "last"))
    assert (best.epoch, last.epoch) == (kept, 5)
    assert best.averaged is not None
    delivered = mobilenetv2.load(out_of(config) / "model.safetensors")
    weights = delivered.network.state_dict()
    assert all(torch.equal(weights[name], best.averaged[name]) for name in weights)
    measured = evaluate(delivered, load_data(config.data, delivered.preprocessing).val)
    assert (result["val_accuracy"], result["val_loss"]) == (measured.accuracy, measured.loss)


def test_the_average_by_hand(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    average: dict[str, Tensor] = {}
    original = Training._train_step

    def step(self: Training, batch: Any) -> Any:
        outcome = original(self, batch)
        for name, now in self.network.state_dict().items():
            if name in average and now.is_floating_point():
                steps = self.history.steps
                decay = min(0.7, steps / (9 + steps))  # the ramp of short runs
                average[name] = decay * average[name] + (1 - decay) * now
            else:
                average[name] = now.clone()
        return outcome

    monkeypatch.setattr(Training, "_train_step", step)
    config = quick(ema=0.7)
    mobilenetv2.train(config)
    stored = Checkpoint.load(out_of(config) / "last.pth.tar").averaged
    assert stored is not None
    for name, expected in average.items():
        if expected.is_floating_point():
            torch.testing.assert_close(stored[name], expected, rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_step(quick: Quick, prepared: Prepare) -> None:
    config = quick(
        clip_norm=0.25, lr=2.0, momentum=0, nesterov=False, weight_decay=0, batch_size=1000
    )
    training = prepared(config)
    before = [parameter.detach().clone() for parameter in training.network.parameters()]
    training._train_step(next(training.batches.epoch(0)))
    moved = torch.cat(
        [
            (now.detach() - then).flatten()
            for now, then in zip(training.network.parameters(), before, strict=True)
        ]
    )
    assert moved.norm().item() == pytest.approx(2.0 * 0.25, rel=1e-3)


@pytest.mark.parametrize(
    "optimizer",
    ["sgd", *(pytest.param(one, marks=pytest.mark.slow) for one in ("adam", "adamw", "rmsprop"))],
)
def test_every_optimizer_under_every_schedule(
    quick: Quick, optimizer: str, prepared: Prepare
) -> None:
    for schedule in ("cosine", "exponential", "multistep", "constant"):
        config = quick(schedule, optimizer=optimizer, schedule=schedule, lr=0.01, warmup_epochs=0.7)
        training = prepared(config)
        training.network.train()
        outcomes = [training._train_step(batch) for batch in training.batches.epoch(0)]
        factor = schedule_factor(config.schedule, 2, 3)
        assert [o.lr for o in outcomes] == pytest.approx([0.01 * factor(k) for k in range(3)])
        assert all(p.isfinite().all() for p in training.network.parameters())


def test_a_last_batch_of_one_and_a_batch_larger_than_the_set(quick: Quick) -> None:
    pictures = len(load_data(quick().data).train)
    assert mobilenetv2.train(quick("one", batch_size=pictures - 1))["steps"] == 4
    with Path(out_of(quick("log")).parent / "log.txt").open("w+") as log:
        mobilenetv2.train(quick("all", batch_size=pictures + 1, epochs=1), Console(file=log))
        log.seek(0)
        assert f"the batch of {pictures + 1} is larger than the set" in log.read()


@pytest.mark.parametrize(
    "value",
    [math.inf, *(pytest.param(value, marks=pytest.mark.slow) for value in (math.nan, -math.inf))],
)
def test_a_bad_loss_keeps_the_last_good_checkpoint(
    quick: Quick, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    config = quick()
    calls = 0
    original = parallel.batch_loss

    def spoiled(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        loss, hits = original(*arguments)
        return (loss * value if calls == 5 else loss), hits

    monkeypatch.setattr(parallel, "batch_loss", spoiled)
    with pytest.raises(NonFiniteLoss, match=r"step 5 \(epoch 2, learning rate 0\.0") as failed:
        mobilenetv2.train(config)
    assert failed.value.exit_code == 1
    assert [event["step"] for event in events(config, "step")] == [1, 2, 3, 4]
    for name in ("last.pth.tar", "best.pth.tar"):
        stored = Checkpoint.load(out_of(config) / name)
        assert stored.epoch == 1
        assert all(w.isfinite().all() for w in stored.weights.values() if w.is_floating_point())
    assert not (out_of(config) / "result.json").exists()
    assert mobilenetv2.load(out_of(config)).labels == ("dark", "light")
    assert mobilenetv2.resume(out_of(config))["steps"] == 6  # what spoiled it is gone
    assert [event["step"] for event in events(config, "step")] == [1, 2, 3, 4, 5, 6]


def test_a_network_that_broke_behind_finite_losses_is_not_saved(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick()
    original = Training._train_step

    def step(self: Training, batch: Any) -> Any:
        outcome = original(self, batch)
        if self.history.steps == 6:
            with torch.no_grad():
                self.network.classifier[1].weight.fill_(math.nan)  # type: ignore[operator,index,union-attr]
        return outcome

    monkeypatch.setattr(Training, "_train_step", step)
    with pytest.raises(NonFiniteLoss, match="validation loss is nan at step 6"):
        mobilenetv2.train(config)
    assert Checkpoint.load(out_of(config) / "last.pth.tar").epoch == 1


@pytest.mark.parametrize("balance", ["none", "loss", "sampling"])
def test_balance_reaches_the_steps(
    quick: Callable[..., TrainConfig],
    picture_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    balance: str,
) -> None:
    folder = picture_folder(count=20)
    for number in range(5, 20):
        (folder / "dark" / f"{number}.png").unlink()
    weights, labels = [], []

    def spied(*arguments: Any) -> Any:
        weights.append(arguments[4])
        labels.append(arguments[1].labels)
        return batch_loss(*arguments)

    monkeypatch.setattr("mobilenetv2.training.parallel.batch_loss", spied)
    result = mobilenetv2.train(quick(data=str(folder), balance=balance, epochs=1))
    assert [row["class"] for row in result["classes"]] == ["dark", "light"]
    dark, light = torch.bincount(torch.cat(labels)).tolist()
    assert dark + light == 25 - result["classes"][0]["pictures"] - result["classes"][1]["pictures"]
    assert abs(dark - light) <= 1 if balance == "sampling" else light > 2 * dark
    if balance == "loss":
        assert float(weights[0][0]) * dark == pytest.approx(float(weights[0][1]) * light)
    else:
        assert weights[0] is None


def test_the_average_keeps_pretrained_weights(
    quick: Quick, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After T steps, decay to the power of T of the weights with their solved head is left."""
    torch.manual_seed(1)
    torch.save(MobileNetV2(num_classes=1000, width=0.05).state_dict(), tmp_path / "trunk.pth")
    passed: list[dict[str, Tensor]] = []
    for name in ("_solve_head", "_train_step"):
        original = getattr(Training, name)

        def noted(self: Training, *arguments: Any, original: Any = original) -> Any:
            outcome = original(self, *arguments)
            state = (getattr(self, "begun", None) or arguments[0]).classifier.network.state_dict()
            passed.append({key: now.clone() for key, now in state.items()})
            return outcome

        monkeypatch.setattr(Training, name, noted)
    config = quick(
        ema=0.8, weights=str(tmp_path / "trunk.pth"), tune="all", image_size=32, lr=0.01,
        layer_decay=1.0,
    )  # fmt: skip
    mobilenetv2.train(config)
    stored = Checkpoint.load(out_of(config) / "last.pth.tar").averaged
    assert stored is not None
    steps = len(passed) - 1
    assert steps == 6
    shares = [0.8**steps] + [0.2 * 0.8 ** (steps - step) for step in range(1, steps + 1)]
    for name in ("classifier.1.weight", "features.18.0.weight", "features.0.0.weight"):
        parts = [share * weights[name] for share, weights in zip(shares, passed, strict=True)]
        torch.testing.assert_close(stored[name], torch.stack(parts).sum(0))
        assert not torch.equal(passed[0][name], passed[-1][name])


def test_the_batch_that_is_shown_is_the_first_to_be_trained_on(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, trained = [], []
    train_step = Training._train_step

    def first_batch(batch: Batch, labels: Any) -> None:
        shown.append((batch, labels))

    def step(self: Training, batch: Batch) -> Any:
        trained.append(batch)
        return train_step(self, batch)

    monkeypatch.setattr("mobilenetv2.evaluation.plots.first_batch", first_batch)
    monkeypatch.setattr("mobilenetv2.evaluation.plots.save", lambda *_: None)
    monkeypatch.setattr(Training, "_train_step", step)
    config = quick("shown", rotate=20, mixup=1.0)
    mobilenetv2.train(config)
    ((batch, labels),) = shown
    assert torch.equal(batch.pictures, trained[0].pictures)
    assert torch.equal(batch.labels, trained[0].labels)
    assert batch.weight == trained[0].weight
    assert labels == mobilenetv2.load(out_of(config)).labels


def test_a_first_save_that_fails_leaves_nothing_behind(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the folder would be taken for one with other files in it."""

    def full(*_: Any) -> None:
        raise WorkFailed("No space left on device")

    config = quick("full")
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_archive", full)
        with pytest.raises(WorkFailed, match="No space"):
            mobilenetv2.train(config)
    assert not out_of(config).exists()
    mobilenetv2.train(config)
    assert (out_of(config) / "result.json").exists()
