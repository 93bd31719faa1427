"""A new head in one go: the frozen network's features, computed once, and a convex problem on them.

A linear classifier on frozen features is solved, not trained (Kornblith et al. 2019, "Do Better
ImageNet Models Transfer Better?", do the same). Fine-tuning starts from that head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenetv2.classifier import Classifier
from mobilenetv2.data.balance import class_weights
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.training.frozen_features import FrozenFeatures
from mobilenetv2.training.logistic import Heads, solve
from mobilenetv2.training.start import Start

STRENGTHS = tuple(10 ** (exponent / 2) for exponent in range(-10, 1))
"""Inverse regularisation strengths that cross-validation chooses from, the strictest first."""

FOLDS = 4
MOST_REPEATS = 5  # of the cross-validation, each with other folds
MOST_FOR_CHOICE = 2000  # pictures: more would make the choice slower but hardly different


def fit_first_head(begun: Start, pictures: LabelledPictures, frozen: FrozenFeatures) -> str:
    """Solve the head that pretrained weights start with, on training pictures (in place).

    Args:
        begun: its classifier's head is overwritten.
        pictures: as evaluation sees them.
        frozen: what the classifier sees in them.

    Returns:
        As :func:`fit_head`.
    """
    balanced = begun.config.balance != "none"
    return fit_head(begun.classifier, frozen.of(pictures), pictures.labels, balanced)


def fit_head(
    classifier: Classifier, features: Tensor, labels: Tensor, balanced: bool = False
) -> str:
    """Solve for the head on frozen features (in place): multinomial logistic regression.

    The regularisation is chosen by cross-validation on these pictures alone: the strictest that is
    as good as the best.

    Args:
        classifier: its head is overwritten.
        features: float32 N×F.
        labels: int64 N.
        balanced: let every class count the same, however many pictures it has.

    Returns:
        What was chosen, and the cross-validated accuracy, in words.
    """
    features, labels = features.double(), labels.cpu()
    mean, std = features.mean(0), features.std(0, correction=0) + 1e-6
    scaled, basis = _rotated((features - mean) / std)
    classes = len(classifier.labels)
    counts_for = class_weights(labels, classes) if balanced else torch.ones(classes)
    strength, accuracy = _choose_strength(scaled, labels, counts_for)
    counts = counts_for.double()[labels][None]
    heads = solve(scaled, labels, counts, strength, Heads.zero(1, classes, scaled.shape[1]))
    weight, bias = heads.weights[0] @ basis.T / std, heads.biases[0]
    assert isinstance(classifier.network, MobileNetV2)
    linear = classifier.network.classifier[1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias - weight @ mean)
    if accuracy is None:
        return f"head: solved with C={strength:.2g}; too few pictures to choose it"
    return f"head: solved with C={strength:.2g}, {accuracy:.1%} in {FOLDS}-fold cross-validation"


def _rotated(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features N×F in the span of the pictures, and that basis F×min(N, F).

    An L2 penalty sees nothing else, so this is exact, and small where pictures are few.
    """
    basis = torch.linalg.qr(features.T).Q
    return features @ basis, basis


def _choose_strength(
    features: Tensor, labels: Tensor, class_weight: Tensor
) -> tuple[float, float | None]:
    """The strictest strength that is as good as the best, and its cross-validated accuracy.

    As good is a loss within one standard error of the lowest (Breiman et al. 1984, "Classification
    and Regression Trees", section 3.4.3): few pictures cannot tell such strengths apart.
    """
    classes = len(class_weight)
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    chosen = chosen[:MOST_FOR_CHOICE]
    features, labels = features[chosen], labels[chosen]
    folds = min(FOLDS, int(torch.bincount(labels, minlength=classes).min()))
    if folds < 2:
        return STRENGTHS[len(STRENGTHS) // 2], None
    turns = _turns(labels, classes, folds)
    repeats = len(turns)
    weight = class_weight.double()[labels]
    fitted = turns[:, None] != torch.arange(folds)[:, None]  # in each repeat, without each fold
    heads = Heads.zero(repeats * folds, classes, features.shape[1])
    truth = labels.expand(repeats, -1)
    losses, accuracies = [], []
    for strength in STRENGTHS:
        heads = solve(features, labels, (fitted * weight).flatten(0, 1), strength, heads)
        every_fold = heads.logits(features).unflatten(0, (repeats, folds))
        logits = every_fold[torch.arange(repeats)[:, None], turns, torch.arange(len(labels))]
        every = F.cross_entropy(logits.transpose(1, 2), truth, reduction="none").mean(0)
        losses.append(every * weight / weight.mean())
        accuracies.append(float((logits.argmax(2) == truth).double().mean()))
        if len(losses) > 1 and losses[-1].mean() > losses[-2].mean():
            break  # laxer ones only overfit more
    means = torch.stack([loss.mean() for loss in losses])
    lowest = int(means.argmin())
    error = float(losses[lowest].std()) / len(labels) ** 0.5
    strictest = int((means <= means[lowest] + error).nonzero()[0])
    return STRENGTHS[strictest], accuracies[strictest]


def _turns(labels: Tensor, classes: int, folds: int) -> Tensor:
    """The fold of each picture, stratified; divided anew as often as few pictures need it: R×N."""
    turns = []
    for repeat in range(max(1, min(MOST_REPEATS, MOST_FOR_CHOICE // len(labels)))):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(repeat))
        # In a random order, a class's pictures can take turns.
        shuffled = labels[order]
        turn = F.one_hot(shuffled, classes).cumsum(0)[torch.arange(len(order)), shuffled] % folds
        turns.append(torch.empty_like(turn).index_put_((order,), turn))
    return torch.stack(turns)
