"""Counts and probabilities against scikit-learn and the literature."""

import numpy as np
import pytest
from sklearn import metrics as reference

from mobilenetv2.evaluation.metrics import accuracy_interval, confusion_matrix, per_class


def test_per_class_equals_scikit_learn() -> None:
    random = np.random.default_rng(0)
    for classes in (2, 5, 9):
        truth, guesses = random.integers(0, classes, (2, 200))
        truth[truth == 1] = 0  # one class never occurs
        ours = per_class(confusion_matrix(truth, guesses, classes))
        precision, recall, f1, _ = reference.precision_recall_fscore_support(
            truth, guesses, labels=range(classes), zero_division=0
        )
        np.testing.assert_allclose(ours.precision, precision)
        np.testing.assert_allclose(ours.recall, recall)
        np.testing.assert_allclose(ours.f1, f1)

        macro = reference.f1_score(truth, guesses, average="macro", zero_division=0)
        assert ours.macro_f1 == pytest.approx(macro)


def test_classes_that_never_occur_do_not_lower_the_mean() -> None:
    truth, guesses = np.array([0, 0, 2]), np.array([0, 2, 2])
    ours = per_class(confusion_matrix(truth, guesses, 9))
    assert ours.macro_f1 == pytest.approx(reference.f1_score(truth, guesses, average="macro"))
    assert per_class(np.zeros((3, 3), int)).macro_f1 == 0


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", Table I, method 3
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_the_literature(
    hits: int, count: int, low: float, high: float
) -> None:
    assert accuracy_interval(hits, count) == pytest.approx((low, high), abs=1e-4)


def test_nothing_counted_says_nothing() -> None:
    assert accuracy_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("count", [1, 7, 1000, 60_000])
def test_the_interval_holds_the_accuracy_and_mirrors(count: int) -> None:
    for hits in {0, 1, count // 3, count}:
        low, high = accuracy_interval(hits, count)
        assert 0 <= low <= hits / count + 1e-12
        assert hits / count - 1e-12 <= high <= 1
        assert accuracy_interval(count - hits, count) == pytest.approx((1 - high, 1 - low))


def test_the_interval_covers_what_it_promises() -> None:
    """Wilson's interval holds the truth in about 95 of 100 samples, for likely and rare hits."""
    random = np.random.default_rng(0)
    for share in (0.5, 0.9, 0.987):
        samples = random.binomial(500, share, 4000)
        bounds = np.array([accuracy_interval(int(hits), 500) for hits in samples])
        covered = ((bounds[:, 0] <= share) & (share <= bounds[:, 1])).mean()
        assert 0.925 < covered < 0.975
