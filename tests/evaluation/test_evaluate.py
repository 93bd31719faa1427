"""Validation against scikit-learn, and what must not depend on the batch size."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import NetworkConfig, Preprocessing
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.errors import DataError
from mobilenetv2.evaluation.evaluate import evaluate


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


def test_top_five_of_many_classes_equals_scikit_learn() -> None:
    torch.manual_seed(1)
    preprocessing = Preprocessing(
        colour="rgb", height=16, width=16, resize=16, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    labels = [f"class {number}" for number in range(12)]
    classifier = Classifier.create(NetworkConfig(width=0.1), preprocessing, labels)
    torch.nn.init.normal_(classifier.network.classifier[1].weight)
    pictures = torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8)
    truth = torch.randint(0, 12, (200,))
    evaluation = evaluate(classifier, LabelledPictures(pictures, truth))
    logits = classifier.logits(pictures).numpy()
    for k, ours in ((1, evaluation.accuracy), (5, evaluation.top5_accuracy)):
        theirs = reference.top_k_accuracy_score(truth.numpy(), logits, k=k, labels=range(12))
        assert ours == theirs
    assert 0.2 < evaluation.top5_accuracy < 0.8
    assert evaluation.confidence == pytest.approx(
        torch.from_numpy(logits).softmax(1).max(1).values.numpy(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("side", "expected"), [(8, [500, 500, 24]), (64, [500, 500, 24]), (224, [40] * 25 + [24])]
)
def test_photos_come_in_smaller_batches(
    small_classifier: Classifier, monkeypatch: pytest.MonkeyPatch, side: int, expected: list[int]
) -> None:
    seen: list[int] = []

    def logits(_: Classifier, pictures: torch.Tensor) -> torch.Tensor:
        seen.append(len(pictures))
        return torch.zeros(len(pictures), 3)

    monkeypatch.setattr(Classifier, "logits", logits)
    pictures = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1024, 1, side, side)
    size = {"height": side, "width": side, "resize": side}
    wanted = small_classifier.preprocessing.model_copy(update=size)
    classifier = dataclasses.replace(small_classifier, preprocessing=wanted)
    evaluate(classifier, LabelledPictures(pictures, torch.zeros(1024, dtype=torch.long)))
    assert seen == expected


@pytest.mark.parametrize("margin", [(0, 4), (2, 0), (3, 5)])
def test_a_margin_is_not_measured(
    small_classifier: Classifier, labelled: LabelledPictures, margin: tuple[int, int]
) -> None:
    """As training pictures have it."""
    (top, left), edge = margin, torch.full((103, 1, 16 + 2 * margin[0], 16 + 2 * margin[1]), 255)
    edge = edge.to(torch.uint8)
    edge[:, :, top : top + 16, left : left + 16] = labelled.pictures
    found = evaluate(small_classifier, LabelledPictures(edge, labelled.labels))
    assert found.loss == evaluate(small_classifier, labelled).loss


def test_nothing_cannot_be_measured(
    small_classifier: Classifier, labelled: LabelledPictures
) -> None:
    with pytest.raises(DataError, match="no pictures"):
        evaluate(small_classifier, labelled.select(torch.zeros(0, dtype=torch.long)))
