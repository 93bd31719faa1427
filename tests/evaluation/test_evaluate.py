"""Validation against scikit-learn, and what must not depend on the batch size."""

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from mobilenetv2.classifier import Classifier
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.evaluation.evaluate import evaluate
from mobilenetv2.evaluation.metrics import accuracy_interval, confusion_matrix, per_class


@pytest.fixture
def labelled() -> LabelledPictures:
    torch.manual_seed(3)
    pictures = torch.randint(0, 256, (103, 1, 16, 16), dtype=torch.uint8)
    return LabelledPictures(pictures, torch.randint(0, 3, (103,)))


def test_equal_to_scikit_learn(small_classifier: Classifier, labelled: LabelledPictures) -> None:
    evaluation = evaluate(small_classifier, labelled)
    probabilities = small_classifier.logits(labelled.pictures).double().softmax(1).numpy()
    truth, guesses = labelled.labels.numpy(), probabilities.argmax(1)
    assert evaluation.accuracy == reference.accuracy_score(truth, guesses)
    assert evaluation.loss == pytest.approx(reference.log_loss(truth, probabilities), rel=1e-5)
    assert np.array_equal(evaluation.confusion, reference.confusion_matrix(truth, guesses))
    assert evaluation.per_class.macro_f1 == pytest.approx(
        reference.f1_score(truth, guesses, average="macro", zero_division=0)
    )
    assert evaluation.top5_accuracy == 1  # of three classes


@pytest.mark.parametrize("batch_size", [1, 7, 50, 102, 103, 1000])
def test_any_batch_size_gives_the_same(
    small_classifier: Classifier, labelled: LabelledPictures, batch_size: int
) -> None:
    whole = evaluate(small_classifier, labelled)
    parts = evaluate(small_classifier, labelled, batch_size)
    assert (parts.count, parts.hits, parts.top5_hits) == (whole.count, whole.hits, whole.top5_hits)
    assert np.array_equal(parts.predicted, whole.predicted)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)


def test_the_network_is_not_touched(
    small_classifier: Classifier, labelled: LabelledPictures
) -> None:
    network = small_classifier.network.train()
    network.features[3].eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    evaluate(small_classifier, labelled)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_summary_has_every_class(
    small_classifier: Classifier, labelled: LabelledPictures
) -> None:
    summary = evaluate(small_classifier, labelled).summary(small_classifier.labels)
    assert [row["class"] for row in summary["classes"]] == ["ant", "bee", "Käfer"]
    assert sum(row["pictures"] for row in summary["classes"]) == 103
    low, high = summary["accuracy_interval"]
    assert low <= summary["accuracy"] <= high


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
