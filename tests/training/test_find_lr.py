"""The range test: what it suggests follows from the losses, and it says when nothing does."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import AugmentConfig, MachineConfig, TrainConfig
from mobilenetv2.data.batches import Batches, LabelledPictures
from mobilenetv2.errors import WorkFailed
from mobilenetv2.training.device import choose_device
from mobilenetv2.training.find_lr import HIGHEST, LOWEST, STEPS, find_lr, suggest

LRS = list(np.geomspace(LOWEST, HIGHEST, STEPS))


@given(st.integers(20, STEPS - 1), st.floats(0.1, 0.9))
def test_a_quarter_of_where_the_loss_is_lowest(lowest: int, depth: float) -> None:
    """A valley of any depth at any rate."""
    place = np.abs(np.arange(STEPS) - lowest) / STEPS
    losses = list(2.3 - 2.3 * depth * np.clip(1 - 3 * place, 0, None))
    test = suggest(LRS, losses, losses)
    assert test.suggestion == pytest.approx(LRS[lowest] / 4, rel=0.34)  # one digit
    assert f"{min(losses):.3f}" in test.reason
    assert f"{LRS[lowest]:.2g}" in test.reason


@given(st.floats(0.0, 2.0))
def test_luck_in_the_first_batches_hides_nothing(first: float) -> None:
    falling = list(np.linspace(2.3, 1.0, 80))
    assert suggest(LRS[:80], [first, *falling[1:]], [first, *falling[1:]]).suggestion > 0


@pytest.mark.parametrize("count", [0, 1, 5, 10, 11, 60])
def test_a_loss_that_only_rises_suggests_nothing(count: int) -> None:
    rising = list(np.linspace(1, 9, count))
    with pytest.raises(WorkFailed, match="did not fall at any learning rate"):
        suggest(LRS[:count], rising, rising)


def test_pictures_without_a_difference_cannot_be_learned(small_classifier: Classifier) -> None:
    pictures = torch.full((24, 1, 16, 16), 128, dtype=torch.uint8)
    batches = Batches(
        LabelledPictures(pictures, torch.arange(24) % 3), (16, 16), 12, AugmentConfig(), 0
    )
    state = torch.get_rng_state()
    device = choose_device(MachineConfig(device="cpu", precision="fp32", fast_ops="off"))
    with pytest.raises(WorkFailed, match="check the labels and the pictures"):
        find_lr(small_classifier, batches, TrainConfig(), device)
    assert torch.equal(torch.get_rng_state(), state)
