"""What a network that only gets a new head sees in pictures: computed once, by what is fastest."""

from collections.abc import Callable

import torch
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.evaluation.evaluate import Evaluation, evaluate, evaluate_logits, measuring_batch
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.runtimes.engine import AGREEING, DIFFERENCE, Engine, noise, with_runtime
from mobilenetv2.runtimes.memory import own_serves
from mobilenetv2.training.start import Start


class FrozenFeatures:
    """The features of sets of pictures, each looked at once.

    Args:
        classifier: whose backbone stays as it is.
        runtime: cpp for the compiled kernels, or torch.
    """

    def __init__(self, classifier: Classifier, runtime: str = "torch") -> None:
        self._classifier = classifier
        self._runtime = runtime
        self._backbone: dict[str, Tensor] | None = None  # that was looked with
        self._kept: list[tuple[LabelledPictures, Tensor]] = []

    def of(self, pictures: LabelledPictures) -> Tensor:
        """Features of prepared pictures: float32 N×F."""
        for known, features in self._kept:
            if known is pictures:
                return features
        if self._backbone is None:
            self._backbone = _backbone(self._classifier)
        features = pooled_features(with_runtime(self._classifier, self._runtime), pictures)
        self._kept.append((pictures, features))
        return features

    def evaluate(self, classifier: Classifier, pictures: LabelledPictures) -> Evaluation:
        """As :func:`evaluate`, bit for bit; no second look where ``classifier`` sees the same.

        It runs in the same runtime.
        """
        if not self._sees_the_same(classifier):
            return evaluate(classifier, pictures)
        assert isinstance(classifier.network, MobileNetV2)
        classify: Callable[[Tensor], Tensor] = classifier.network.classifier[1]
        if isinstance(classifier.engine, Engine) and classifier.engine.gives_features:
            classify = classifier.engine.classify
        batches = self.of(pictures).to(classifier.device).split(measuring_batch(pictures))
        with torch.inference_mode():
            logits = torch.cat([classify(few) for few in batches])
        return evaluate_logits(logits, pictures.labels)

    def _sees_the_same(self, classifier: Classifier) -> bool:
        mine, its = self._backbone or _backbone(self._classifier), _backbone(classifier)
        return classifier.preprocessing == self._classifier.preprocessing and all(
            torch.equal(mine[name].cpu(), its[name].cpu()) for name in mine
        )


def pooled_features(classifier: Classifier, pictures: LabelledPictures) -> Tensor:
    """The network's features of prepared pictures: float32 N×F, on the CPU."""
    batches = pictures.pictures.split(measuring_batch(pictures))
    if isinstance(classifier.engine, Engine) and classifier.engine.gives_features:
        return torch.cat(list(map(classifier.engine.features, batches)))
    network = classifier.for_inference().network
    assert isinstance(network, MobileNetV2)
    parts = []
    with torch.inference_mode():
        for batch in batches:
            inputs = classifier.normalize(batch.to(classifier.device))
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            parts.append(network.pooled_features(inputs).float().cpu())
    return torch.cat(parts).clone()  # outside of inference mode, so that gradients may pass


def why_pytorch_looks(begun: Start) -> str | None:
    """As :meth:`Device.why_pytorch_measures`, for a run that only gets a new head.

    No step trains it, so the compiled kernels are taken where they repay it.
    """
    if begun.config.machine.fast_ops not in ("auto", "cpp"):
        return ""
    data = begun.data
    pictures = len(data.train) + len(data.val) + (0 if data.test is None else len(data.test))
    serves = own_serves(begun.classifier, pictures) and _features_agree(begun.classifier)
    return None if serves else ""


def _features_agree(classifier: Classifier) -> bool:
    """Whether the kernels see in noise what PyTorch does: a fresh head's logits hide much."""
    pictures = LabelledPictures(noise(classifier), torch.zeros(AGREEING, dtype=torch.int64))
    expected = pooled_features(classifier, pictures)
    found = pooled_features(with_runtime(classifier, "cpp"), pictures)
    return bool((found - expected).abs().max() <= DIFFERENCE * expected.abs().max())


def _backbone(classifier: Classifier) -> dict[str, Tensor]:
    """A copy of the weights and statistics that decide the features."""
    state = classifier.network.state_dict()
    return {name: state[name].clone() for name in state if name.startswith("features.")}
