"""The range test: what it suggests follows from the losses, and it says when nothing does."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import AugmentConfig, MachineConfig, TrainConfig
from mobilenetv2.data.batches import Batches, LabelledPictures
from mobilenetv2.errors import ConfigError, WorkFailed
from mobilenetv2.training import find_lr as find_lr_module
from mobilenetv2.training.device import Device, choose_device
from mobilenetv2.training.find_lr import HIGHEST, LOWEST, STEPS, Climb, find_lr, suggest
from mobilenetv2.training.train import run_range_test

CPU = choose_device(MachineConfig(device="cpu", precision="fp32", fast_ops="off"))
LRS = list(np.geomspace(LOWEST, HIGHEST, STEPS))


@given(st.integers(20, STEPS - 1), st.floats(0.1, 0.9))
def test_a_quarter_of_where_the_loss_is_lowest(lowest: int, depth: float) -> None:
    """A valley of any depth at any rate."""
    place = np.abs(np.arange(STEPS) - lowest) / STEPS
    losses = list(2.3 - 2.3 * depth * np.clip(1 - 3 * place, 0, None))
    test = suggest(Climb(LRS, losses, losses))
    assert test.suggestion == pytest.approx(LRS[lowest] / 4, rel=0.34)  # one digit
    assert f"{min(losses):.3f}" in test.reason
    assert f"{LRS[lowest]:.2g}" in test.reason


@given(st.floats(0.0, 2.0))
def test_luck_in_the_first_batches_hides_nothing(first: float) -> None:
    falling = list(np.linspace(2.3, 1.0, 80))
    seen = [first, *falling[1:]]
    assert suggest(Climb(LRS[:80], seen, seen)).suggestion > 0


@pytest.mark.parametrize("count", [0, 1, 5, 10, 11, 60])
def test_a_loss_that_only_rises_suggests_nothing(count: int) -> None:
    rising = list(np.linspace(1, 9, count))
    with pytest.raises(WorkFailed, match="did not fall at any learning rate"):
        suggest(Climb(LRS[:count], rising, rising))


def noisy(steps: int, deviation: float, fall: float, seed: int) -> Climb:
    """Losses around 2.3, from the middle on lower by a share, smoothed as the test does."""
    random = np.random.default_rng(seed)
    losses = 2.3 * (1 - fall * (np.arange(steps) >= steps // 2))
    losses = list(losses + random.normal(0, deviation, steps))
    smoothed, average = [], 0.0
    for step, loss in enumerate(losses):
        average = 0.9 * average + 0.1 * loss
        smoothed.append(average / (1 - 0.9 ** (step + 1)))
    return Climb(list(np.geomspace(LOWEST, HIGHEST, steps)), losses, smoothed)


@pytest.mark.parametrize("steps", [120, 480])
@pytest.mark.parametrize("deviation", [0.1, 0.4])
def test_luck_suggests_nothing(steps: int, deviation: float) -> None:
    """Batches of 64 and of 4, as much as they vary; a real fall is seen through it."""
    lucky = 0
    for seed in range(100):
        assert suggest(noisy(steps, deviation, 0.7, seed)).suggestion > 1e-3
        with contextlib.suppress(WorkFailed):
            suggest(noisy(steps, deviation, 0.0, seed))
            lucky += 1
    assert lucky <= 5


def test_each_climb_is_prepared_once_before_its_first_step(
    quick_settings: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def prepare(_: Device, network: torch.nn.Module, pictures: torch.Tensor) -> None:
        assert network.training
        told.append(f"prepare {len(pictures)}")

    own = find_lr_module.batch_loss

    def loss(*given: Any) -> Any:
        told.append("step")
        if len(told) == 5:
            raise WorkFailed("enough was seen")
        return own(*given)

    monkeypatch.setattr(Device, "compile_ahead", prepare)
    monkeypatch.setattr(find_lr_module, "batch_loss", loss)
    with pytest.raises(WorkFailed, match="enough was seen"):
        run_range_test(quick_settings(tmp_path / "run", batch_size=4))
    assert told == ["prepare 4", *4 * ["step"]]


def test_a_batch_that_cannot_fit_is_refused_as_in_training(
    quick_settings: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(_: object) -> None:
        raise ConfigError("--batch-size 4096: 7 fits")

    monkeypatch.setattr("mobilenetv2.training.train.check_memory", too_much)
    with pytest.raises(ConfigError, match="7 fits"):
        run_range_test(quick_settings(tmp_path / "run"))


def test_what_is_not_deterministic_is_refused_if_asked(
    quick_settings: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def test(*_: object) -> None:
        asked.append(torch.are_deterministic_algorithms_enabled())

    monkeypatch.setattr("mobilenetv2.training.train.find_lr_of", test)
    for deterministic in (True, False):
        run_range_test(quick_settings(tmp_path / "run", deterministic=deterministic))
    assert asked == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_large_fall_that_may_be_luck_ends_no_search(
    small_classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    climbs = iter([noisy(120, 0.8, 0.0, 0), noisy(240, 0.1, 0.6, 0)])
    monkeypatch.setattr("mobilenetv2.training.find_lr._climb", lambda *_: next(climbs))
    pictures = LabelledPictures(torch.zeros(100, 1, 16, 16, dtype=torch.uint8), torch.zeros(100))
    batches = Batches(pictures, (16, 16), 10, AugmentConfig(), 0)
    test = find_lr(small_classifier, batches, TrainConfig(epochs=100), CPU)
    assert len(test.lrs) == 240


@pytest.mark.parametrize(
    ("falls", "epochs", "climbs"),
    [
        ([0.3], 200, [120]),
        ([0.05, 0.3], 100, [120, 240]),
        ([0.01, 0.05, 0.3], 200, [120, 240, 480]),
        ([0.01, 0.05, 0.06], 200, [120, 240, 480]),  # no more than that
        ([0.05, 0.3], 72, [120, 240]),
        ([0.05], 71, [120]),  # 120 + 240 steps would be more than half of 710
        ([0.05], 1, [120]),
    ],
)
def test_where_the_loss_hardly_falls_the_next_climb_is_longer(
    small_classifier: Classifier,
    monkeypatch: pytest.MonkeyPatch,
    falls: list[float],
    epochs: int,
    climbs: list[int],
) -> None:
    steps_of = []
    before = [parameter.clone() for parameter in small_classifier.network.parameters()]
    random_state = torch.get_rng_state()

    def climb(*arguments: Any) -> Climb:
        trial, steps = arguments[0], arguments[-1]
        assert all(map(torch.equal, trial.network.parameters(), before))  # each time afresh
        assert torch.equal(torch.get_rng_state(), random_state)
        with torch.no_grad():
            for parameter in trial.network.parameters():
                parameter.fill_(torch.rand(()))
        steps_of.append(steps)
        fall = falls[len(steps_of) - 1]
        losses = [2.0] * (steps // 2) + [2.0 * (1 - fall)] * (steps // 2)
        return Climb(list(np.geomspace(LOWEST, HIGHEST, steps)), losses, losses)

    monkeypatch.setattr("mobilenetv2.training.find_lr._climb", climb)
    pictures = LabelledPictures(torch.zeros(100, 1, 16, 16, dtype=torch.uint8), torch.zeros(100))
    batches = Batches(pictures, (16, 16), 10, AugmentConfig(), 0)
    test = find_lr(small_classifier, batches, TrainConfig(epochs=epochs), CPU)
    assert steps_of == climbs
    assert all(map(torch.equal, small_classifier.network.parameters(), before))
    assert len(test.lrs) == climbs[-1]
    assert ("so this is a guess" in test.reason) == (falls[-1] < 0.1)


def test_pictures_without_a_difference_cannot_be_learned(
    small_classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilenetv2.training.find_lr.STEPS", 40)
    pictures = torch.full((24, 1, 16, 16), 128, dtype=torch.uint8)
    batches = Batches(
        LabelledPictures(pictures, torch.arange(24) % 3), (16, 16), 12, AugmentConfig(), 0
    )
    state = torch.get_rng_state()
    with pytest.raises(WorkFailed, match="check the labels and the pictures"):
        find_lr(small_classifier, batches, TrainConfig(epochs=1), CPU)
    assert torch.equal(torch.get_rng_state(), state)
