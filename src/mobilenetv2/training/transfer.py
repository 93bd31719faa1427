"""Transfer: how much of a pretrained network learns, and a new head in seconds.

A classifier on frozen features is a convex problem: it is solved, not trained (Kornblith et al.
2019, "Do Better ImageNet Models Transfer Better?", do the same). Fine-tuning starts from that head.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import TransferConfig
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.data.sources import DataSet
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.runtimes.engine import Engine
from mobilenetv2.runtimes.memory import fastest

ENOUGH_PER_CLASS = 20
"""Training pictures of the smallest class from which on fine-tuning is worth its time."""

STRENGTHS = tuple(float(c) for c in np.logspace(-5, -1, 9))
"""Inverse regularisation strengths that cross-validation chooses from."""

FOLDS = 4
MOST_FOR_CHOICE = 2000  # pictures: more would make the choice slower but hardly different


@dataclass(frozen=True)
class Tuning:
    """What learns.

    Attributes:
        pretrained: whether the network starts from pretrained weights. Their batch norms keep
            their statistics, and a new head is fitted before anything else moves.
        frozen_blocks: of ``network.features``, from the first on, that do not learn.
        layer_decay: learning rate of each block as a share of the next one's.
        reason: why, for the user.
    """

    pretrained: bool = False
    frozen_blocks: int = 0
    layer_decay: float = 1.0
    reason: str = ""

    @property
    def head_only(self) -> bool:
        """Whether nothing but the classifier learns."""
        return self.frozen_blocks == BLOCKS


BLOCKS = 19
"""Blocks in ``network.features``: stem, seventeen inverted residuals, head convolution."""


def choose_tuning(config: TransferConfig, data: DataSet) -> Tuning:
    """What ``--tune`` means for these pictures."""
    if config.weights == "none":
        return Tuning()
    counts = torch.bincount(data.train.labels, minlength=len(data.classes))
    least = int(counts.min())
    tune, reason = config.tune, f"tuning: {config.tune}, as asked"
    if tune == "auto":
        tune = "all" if least >= ENOUGH_PER_CLASS else "head"
        reason = (
            f"tuning: {tune}, because the smallest class has {least} training pictures "
            f"({ENOUGH_PER_CLASS} or more are worth fine-tuning)"
        )
    frozen = BLOCKS - tune if isinstance(tune, int) else {"head": BLOCKS, "all": 0}[tune]
    return Tuning(True, frozen, config.layer_decay, reason)


def freeze(network: nn.Module, tuning: Tuning) -> None:
    """Take the parameters that do not learn out of training (in place)."""
    if tuning.pretrained:
        assert isinstance(network, MobileNetV2)
        for block in network.features[: tuning.frozen_blocks]:
            block.requires_grad_(False)


def set_train_mode(network: nn.Module, tuning: Tuning) -> None:
    """Training mode, in which pretrained batch norms keep the statistics that they came with.

    Statistics of a few hundred pictures are worse than those of a million, and small batches make
    them worse still.
    """
    network.train()
    if tuning.pretrained:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def fit_head(classifier: Classifier, pictures: LabelledPictures) -> str:
    """Solve for the head on frozen features (in place): multinomial logistic regression.

    The regularisation is chosen by cross-validation on the training pictures alone.

    Returns:
        What was chosen, and the cross-validated accuracy, in words.
    """
    features = pooled_features(classifier, pictures).double().numpy()
    labels = pictures.labels.cpu().numpy()
    mean, std = features.mean(0), features.std(0) + 1e-6
    scaled = (features - mean) / std
    strength, accuracy = _choose_strength(scaled, labels)
    weight, bias = _solve(scaled, labels, strength)
    assert isinstance(classifier.network, MobileNetV2)
    linear = classifier.network.classifier[1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight / std))
        linear.bias.copy_(torch.from_numpy(bias - weight @ (mean / std)))
    return f"head: solved with C={strength:.2g}, {accuracy:.1%} in {FOLDS}-fold cross-validation"


def pooled_features(
    classifier: Classifier, pictures: LabelledPictures, batch_size: int = 64
) -> Tensor:
    """The frozen network's features of prepared pictures: float32 N×F, on the CPU."""
    engine = fastest(classifier, len(pictures), float32=True).engine
    if isinstance(engine, Engine):
        return engine.features(pictures.pictures, batch_size)
    network = classifier.for_inference().network
    assert isinstance(network, MobileNetV2)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pictures), batch_size):
            batch = pictures.pictures[start : start + batch_size].to(classifier.device)
            inputs = classifier.normalize(batch).contiguous(memory_format=torch.channels_last)
            parts.append(network.pooled_features(inputs).float().cpu())
    return torch.cat(parts).clone()


def _choose_strength(features: Array, labels: Array) -> tuple[float, float]:
    from sklearn.model_selection import StratifiedKFold

    random = np.random.default_rng(0)
    chosen = random.permutation(len(labels))[:MOST_FOR_CHOICE]
    features, labels = features[chosen], labels[chosen]
    folds = min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    if folds < 2:
        return STRENGTHS[len(STRENGTHS) // 2], float("nan")
    losses = np.zeros(len(STRENGTHS))
    hits = np.zeros(len(STRENGTHS))
    for train, held_out in StratifiedKFold(folds).split(features, labels):
        for place, strength in enumerate(STRENGTHS):
            weight, bias = _solve(features[train], labels[train], strength)
            logits = features[held_out] @ weight.T + bias
            shifted = logits - logits.max(1, keepdims=True)
            log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
            truth = labels[held_out]
            losses[place] -= log_probabilities[np.arange(len(truth)), truth].sum()
            hits[place] += (logits.argmax(1) == truth).sum()
    best = int(losses.argmin())
    return STRENGTHS[best], float(hits[best] / len(labels))


def _solve(features: Array, labels: Array, strength: float) -> tuple[Array, Array]:
    """Weights K×F and biases K of the regularised solution."""
    from sklearn.linear_model import LogisticRegression

    # An L2 penalty only sees the span of the pictures: rotating into it is exact, and small.
    basis: Any = None
    if features.shape[0] < features.shape[1]:
        basis = np.linalg.qr(features.T)[0]
        features = features @ basis
    model = LogisticRegression(C=strength, max_iter=500).fit(features, labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # two classes: scikit-learn gives one row for the second against the first
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return (weight if basis is None else weight @ basis.T), bias
