"""The figures of a proof, against counting by hand and against simulation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobilenetv2.classifier import Classifier
from mobilenetv2.shipping.proof import (
    Threshold,
    compare,
    first_divergence,
    layer_outputs,
    paired_interval,
)


def test_every_picture_is_counted() -> None:
    reference = np.array([[2, 1, 0], [0, 3, 1], [1, 0, 5], [4, 0, 0]], np.float32)
    logits = reference.copy()
    logits[1] = [3.5, 3, 1]  # another label, and wrong
    logits[3] = [0, 4.5, 0]  # another label, and right
    compared = compare(reference, logits, np.array([0, 1, 0, 1]))
    assert compared.pictures == 4
    assert compared.agreement == 0.5
    assert (compared.reference_hits, compared.hits) == (2, 2)
    assert (compared.lost, compared.gained) == (1, 1)
    assert compared.drop == 0
    assert compared.largest_difference == 4.5
    low, high = compared.drop_interval
    assert low < 0 < high


def test_thresholds_are_met_or_named() -> None:
    reference = np.eye(4, dtype=np.float32)
    close = compare(reference, reference + 5e-5, np.arange(4))
    assert close.failures(Threshold()) == []
    far = compare(reference, reference + 2e-4, np.arange(4))
    assert ["logits differ" in words for words in far.failures(Threshold())] == [True]
    broken = compare(reference, reference * np.nan, np.arange(4))
    for threshold in (Threshold(), Threshold(None, 0.0, None)):  # in float32, and in others
        assert broken.failures(threshold)[0] == "there are logits that are not finite"
    infinite = compare(reference, reference + np.array([[np.inf], [0], [0], [0]]), np.arange(4))
    assert infinite.failures(Threshold(None, 0.0, None))
    wrong = compare(reference, reference[[1, 0, 2, 3]], np.arange(4))
    found = wrong.failures(Threshold(None, 0.98, 0.005))
    assert len(found) == 2
    assert "50.00%" in found[0]
    assert "drops by 50.00%" in found[1]


def test_the_paired_interval_covers_the_truth() -> None:
    """How often the interval holds the true difference, over a thousand simulated proofs."""
    random = np.random.default_rng(0)
    for lost, gained, count in ((0.02, 0.01, 500), (0.005, 0.005, 1000), (0.1, 0.02, 150)):
        draws = random.multinomial(count, [lost, gained, 1 - lost - gained], 1000)
        held = [
            low <= lost - gained <= high
            for low, high in (paired_interval(a, b, count) for a, b, _ in draws)
        ]
        assert 0.93 <= np.mean(held) <= 0.995


@given(st.integers(1, 500), st.data())
def test_the_paired_interval_is_an_interval(count: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, count))
    gained = data.draw(st.integers(0, count - lost))
    low, high = paired_interval(lost, gained, count)
    assert -1 <= low < high <= 1
    mirrored = paired_interval(gained, lost, count)
    assert mirrored == pytest.approx((-high, -low))


def test_the_first_layer_that_diverges(small_classifier: Classifier) -> None:
    pictures = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    reference = layer_outputs(small_classifier, pictures)
    assert next(iter(reference)) == "features.0.0"
    assert list(reference)[-1] == "classifier.1"
    assert first_divergence(reference, reference, 1e-6) is None
    changed = {name: output.copy() for name, output in reference.items()}
    changed["features.5.conv.2"][0, 0] += 1 + np.abs(reference["features.5.conv.2"]).max()
    changed["features.9.conv.2"] *= 3
    assert first_divergence(reference, changed, 1e-3) == "features.5.conv.2"
    changed["features.5.conv.2"][0, 0] = np.nan
    assert first_divergence(reference, changed, 1e-3) == "features.5.conv.2"
    del changed["features.5.conv.2"]
    assert first_divergence(reference, changed, 1e-3) == "features.9.conv.2"
