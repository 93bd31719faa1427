"""Balance against scikit-learn, and against counting."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from mobilenetv2.config import AugmentConfig
from mobilenetv2.data.balance import balanced_order, class_weights
from mobilenetv2.data.batches import Batches, LabelledPictures


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60))
@settings(deadline=None)
def test_weights_are_those_of_scikit_learn(labels: list[int]) -> None:
    present = sorted(set(labels))
    places = torch.tensor([present.index(label) for label in labels])
    ours = class_weights(places, len(present))
    expected = compute_class_weight("balanced", classes=np.arange(len(present)), y=places.numpy())
    assert ours.tolist() == pytest.approx(list(expected), rel=1e-6)


def test_an_absent_class_has_no_weight() -> None:
    assert class_weights(torch.tensor([0, 2, 2]), 4).tolist()[1::2] == [0, 0]


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), epoch=st.integers(0, 3))
@settings(deadline=None)
def test_every_class_comes_equally_often(labels: list[int], epoch: int) -> None:
    truth = torch.tensor(labels)
    order = balanced_order(truth, 0, epoch)
    assert len(order) == len(order.unique()) == len(labels)
    counts = torch.bincount(truth[order % len(labels)])
    counts = counts[counts > 0]
    assert counts.max() - counts.min() <= 1
    assert len(counts) == min(len(set(labels)), len(labels))
    # Within a class, no picture is drawn twice more often than another.
    times = torch.bincount(order % len(labels), minlength=len(labels))
    for label in set(labels):
        of_class = times[truth == label]
        assert of_class.max() - of_class.min() <= 1


def test_epochs_differ_and_are_remembered() -> None:
    labels = torch.tensor([0] * 30 + [1] * 3)
    first, second = balanced_order(labels, 0, 0), balanced_order(labels, 0, 1)
    assert not torch.equal(first, second)
    assert torch.equal(first, balanced_order(labels, 0, 0))
    large = [order[labels[order % 33] == 0] % 33 for order in (first, second)]
    assert set(large[0].tolist()) != set(large[1].tolist())


def test_a_picture_that_comes_again_is_changed_anew() -> None:
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0] * 11 + [1])
    batches = Batches(
        LabelledPictures(pictures, labels), (8, 8), 4, AugmentConfig(shift=0.4), 0, balanced=True
    )
    seen = [
        picture
        for batch in batches.epoch(0)
        for picture, label in zip(batch.pictures, batch.labels, strict=True)
        if label == 1
    ]
    assert len(seen) == 6
    assert len({picture.numpy().tobytes() for picture in seen}) > 3
    again = [batch.labels for batch in batches.epoch(0, first_step=1)]
    for one, other in zip(list(batches.epoch(0))[1:], again, strict=True):
        assert torch.equal(one.labels, other)
