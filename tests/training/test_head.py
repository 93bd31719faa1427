"""The solved head: the solution is scikit-learn's, and features are computed once."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold
from torch import Tensor

import mobilenetv2
from mobilenetv2.classifier import Classifier
from mobilenetv2.config import NetworkConfig
from mobilenetv2.data.balance import class_weights
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.errors import WorkFailed
from mobilenetv2.evaluation.evaluate import evaluate
from mobilenetv2.network import cpp_inference
from mobilenetv2.network.cpp_inference import CppInference
from mobilenetv2.training import frozen_features, head
from mobilenetv2.training.frozen_features import (
    FrozenFeatures,
    pooled_features,
    why_pytorch_looks,
)
from mobilenetv2.training.head import fit_head
from mobilenetv2.training.logistic import Heads, solve
from mobilenetv2.training.start import start


def separable(count: int, features: int, classes: int) -> tuple[Tensor, Tensor]:
    """Noisy clusters, not quite apart."""
    torch.manual_seed(1)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, features)
    return centres[labels] + 1.5 * torch.randn(count, features), labels


def solved(
    x: Tensor, labels: Tensor, strength: float, counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights and biases for three classes."""
    counts = torch.ones(len(labels)).double() if counts is None else counts
    heads = solve(x, labels, counts[None], strength, Heads.zero(1, 3, x.shape[1]))
    return heads.weights[0], heads.biases[0]


@pytest.mark.parametrize(("count", "features"), [(90, 12), (40, 100)])
@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0])
def test_the_solution_is_that_of_scikit_learn(count: int, features: int, strength: float) -> None:
    x, labels = separable(count, features, 3)
    x = x.double()
    weight, bias = solved(x, labels, strength)
    reference = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(x, labels)
    np.testing.assert_allclose(weight, reference.coef_, atol=2e-3 * np.abs(reference.coef_).max())
    ours = (x @ weight.T + bias).softmax(1)
    np.testing.assert_allclose(ours, reference.predict_proba(x), atol=1e-3)


def test_a_balanced_solution_is_that_of_scikit_learn() -> None:
    x, labels = separable(90, 12, 3)
    few = torch.cat([(labels != 0).nonzero().flatten(), (labels == 0).nonzero().flatten()[:4]])
    x, labels = x[few].double(), labels[few]
    weights = class_weights(labels, 3)
    weight, _ = solved(x, labels, 0.1, weights.double()[labels])
    reference = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-8, max_iter=5000)
    reference.fit(x, labels)
    np.testing.assert_allclose(weight, reference.coef_, atol=2e-3 * np.abs(reference.coef_).max())


def test_problems_side_by_side_are_those_one_by_one() -> None:
    x, labels = separable(90, 12, 3)
    x = x.double()
    counts = torch.stack([(torch.arange(90) % 4 != fold).double() for fold in range(4)])
    counts[3] *= 10
    counts[2] *= class_weights(labels, 3).double()[labels]
    heads = solve(x, labels, counts, 0.1, Heads.zero(4, 3, 12))
    for fold, alone in enumerate(counts):
        kept = alone > 0
        weight, bias = solved(x[kept], labels[kept], 0.1, alone[kept])
        torch.testing.assert_close(heads.weights[fold], weight, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(heads.biases[fold], bias, rtol=1e-4, atol=1e-4)
        logits = heads.logits(x)[fold]
        torch.testing.assert_close(logits, x @ weight.T + bias, rtol=1e-3, atol=1e-3)


def test_the_span_of_the_pictures_is_enough() -> None:
    x, labels = separable(30, 80, 3)
    x = x.double()
    rotated, basis = head._rotated(x)
    assert rotated.shape == (30, 30)
    weight, bias = solved(rotated, labels, 0.1)
    whole, whole_bias = solved(x, labels, 0.1)
    torch.testing.assert_close(weight @ basis.T, whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(bias, whole_bias, rtol=1e-3, atol=1e-4)


def test_the_strength_is_the_best_of_cross_validation() -> None:
    """Pure noise wants the strictest, clear clusters a lax one."""
    torch.manual_seed(0)
    noise, labels = torch.randn(80, 30).double(), torch.arange(80) % 2
    strictest, chance = head._choose_strength(noise, labels, torch.ones(2))
    clear = noise + 3 * torch.nn.functional.one_hot(labels, 30)
    lax, accuracy = head._choose_strength(clear, labels, torch.ones(2))
    assert strictest <= 1e-4 < 1e-2 <= lax
    assert chance is not None
    assert chance < 0.65
    assert accuracy is not None
    assert accuracy > 0.9


@pytest.mark.parametrize("balanced", [False, True])
def test_the_strength_is_the_strictest_within_a_standard_error(balanced: bool) -> None:
    """By scikit-learn's folds and solver, which are others, the same place of the grid or next."""
    labels = torch.arange(160) % 2
    x = torch.randn(160, 40, generator=torch.Generator().manual_seed(0)) + 0.2 * labels[:, None]
    keep = (labels == 0) | (torch.arange(160) % (4 if balanced else 2) == 1)
    x, labels = x[keep].double(), labels[keep]
    weights = class_weights(labels, 2) if balanced else torch.ones(2)
    weight = weights.double()[labels].numpy()
    folds = RepeatedStratifiedKFold(n_splits=4, n_repeats=5, random_state=3)
    curve = []
    for strength in head.STRENGTHS:
        loss = np.zeros(len(labels))
        for fitted, out in folds.split(x, labels):
            model = LogisticRegression(C=strength, max_iter=5000)
            model.fit(x[fitted], labels[fitted], weight[fitted])
            truth = model.predict_proba(x[out])[np.arange(len(out)), labels[out]]
            loss[out] -= np.log(truth) / 5
        curve.append(loss * weight / weight.mean())
    means = np.mean(curve, axis=1)
    limit = means.min() + curve[means.argmin()].std() / np.sqrt(len(labels))
    expected = int(np.flatnonzero(means <= limit)[0])
    strength, _ = head._choose_strength(x, labels, weights)
    assert abs(head.STRENGTHS.index(strength) - expected) <= 1
    assert strength < head.STRENGTHS[means.argmin()]


def test_a_class_with_one_picture_is_solved_all_the_same(small_classifier: Classifier) -> None:
    features = torch.randn(5, small_classifier.network.feature_channels)
    words = fit_head(small_classifier, features, torch.tensor([0, 0, 1, 1, 2]))
    assert "too few pictures" in words
    linear = small_classifier.network.classifier[1]
    assert linear(features).argmax(1).tolist() == [0, 0, 1, 1, 2]


@pytest.fixture
def pictures() -> LabelledPictures:
    torch.manual_seed(2)
    labels = torch.arange(60) % 3
    pixels = torch.randint(0, 90, (60, 1, 16, 16)) + 80 * labels.view(-1, 1, 1, 1)
    return LabelledPictures(pixels.byte(), labels)


def test_kept_features_give_the_same_figures(
    small_classifier: Classifier, pictures: LabelledPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def counted(*arguments: object) -> Tensor:
        looks.append(arguments)
        return pooled_features(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(frozen_features, "pooled_features", counted)
    frozen = FrozenFeatures(small_classifier)
    fit_head(small_classifier, frozen.of(pictures), pictures.labels)
    kept, looked = frozen.evaluate(small_classifier, pictures), evaluate(small_classifier, pictures)
    assert len(looks) == 1
    assert kept.hits == looked.hits > 50
    assert kept.loss == looked.loss  # to the last digit
    assert np.array_equal(kept.predicted, looked.predicted)


def test_another_backbone_or_preprocessing_is_looked_at_anew(
    small_classifier: Classifier, pictures: LabelledPictures
) -> None:
    frozen = FrozenFeatures(small_classifier)
    frozen.of(pictures)
    small_classifier.network.features[0][1].running_mean += 0.5
    assert frozen.evaluate(small_classifier, pictures).loss == pytest.approx(
        evaluate(small_classifier, pictures).loss, rel=1e-5
    )
    small_classifier.network.features[0][1].running_mean -= 0.5
    darker = small_classifier.preprocessing.model_copy(update={"mean": (0.9,)})
    other = mobilenetv2.Classifier(
        small_classifier.network, small_classifier.config, darker, small_classifier.labels
    )
    assert frozen.evaluate(other, pictures).loss == pytest.approx(
        evaluate(other, pictures).loss, rel=1e-5
    )


@pytest.fixture
def weights_file(tmp_path: Path, small_classifier: Classifier) -> Path:
    """Pretrained weights, as good as random."""
    config = NetworkConfig(width=0.1)
    colour = small_classifier.preprocessing.model_copy(
        update={"colour": "rgb", "mean": (0.5,) * 3, "std": (0.25,) * 3}
    )
    Classifier.create(config, colour, ("a", "b")).save(tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize("measured_by", ["cpp", "torch"])
def test_the_whole_way(
    measured_by: str,
    weights_file: Path,
    picture_folder: Callable[..., Path],
    tmp_path: Path,
    compiler: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What result.json says is what the delivered file does, and only the head has moved."""
    monkeypatch.setattr(cpp_inference, "is_built", lambda: measured_by == "cpp")
    classify, calls = CppInference.classify, []
    monkeypatch.setattr(
        CppInference, "classify", lambda *given: calls.append(1) or classify(*given)
    )
    folder = picture_folder(size=(100, 120), count=9)
    config = mobilenetv2.configure(
        str(folder), weights=str(weights_file), tune="head", image_size=64, out=tmp_path / "run"
    )
    result = mobilenetv2.train(config)
    assert result["steps"] == 0
    assert result["measured_by"] == measured_by
    assert bool(calls) == (measured_by == "cpp")
    delivered = mobilenetv2.load(tmp_path / "run")
    data = mobilenetv2.load_data(config.data, delivered.preprocessing)
    measured = evaluate(mobilenetv2.with_runtime(delivered, measured_by), data.val)
    assert result["val_accuracy"] == measured.accuracy
    assert result["val_loss"] == measured.loss  # to the last digit
    before = Classifier.load(weights_file).network.features.state_dict()
    after = delivered.network.features.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("built", "fast_ops", "expected"),
    [(True, "auto", None), (False, "auto", ""), (True, "torch", ""), (True, "off", "")],
)
def test_compiled_kernels_look_where_they_are_at_hand_and_wanted(
    built: bool,
    fast_ops: str,
    expected: str | None,
    weights_file: Path,
    picture_folder: Callable[..., Path],
    compiler: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpp_inference, "is_built", lambda: built)
    folder = picture_folder(size=(100, 120), count=6)
    config = mobilenetv2.configure(
        str(folder), weights=str(weights_file), tune="head", image_size=64, fast_ops=fast_ops
    )
    begun = start(config)
    assert why_pytorch_looks(begun) == expected
    with monkeypatch.context() as patch:
        patch.setattr("mobilenetv2.runtimes.memory.agrees", lambda *_: False)
        assert why_pytorch_looks(begun) == ""
    features = CppInference.features
    monkeypatch.setattr(CppInference, "features", lambda *given: 1.01 * features(*given))
    assert why_pytorch_looks(begun) == ""


def test_too_little_memory_for_features_is_told(
    small_classifier: Classifier,
    pictures: LabelledPictures,
    compiler: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(*_: object) -> None:
        raise MemoryError(cpp_inference.NO_MEMORY)

    monkeypatch.setattr(CppInference, "features", short)
    with pytest.raises(WorkFailed, match="--fast-ops torch"):
        FrozenFeatures(small_classifier, "cpp").of(pictures)


def test_nothing_is_compiled_for_a_head(
    weights_file: Path,
    picture_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would take longer than the training, and be of no use."""

    def refuse(*_: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr("mobilenetv2.network.cpp_kernels.load", refuse)
    folder = picture_folder(size=(100, 120), count=6)
    config = mobilenetv2.configure(
        str(folder), weights=str(weights_file), image_size=64, out=tmp_path / "run"
    )
    begun = start(config)
    assert begun.device.fast_ops.kind == "torch"
    assert "without steps" in begun.device.fast_ops.reason
    off = config.machine.model_copy(update={"fast_ops": "off"})
    assert start(config.model_copy(update={"machine": off})).device.fast_ops.kind == "off"


@pytest.mark.slow
def test_a_head_needs_no_compiler(
    weights_file: Path, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Importing PyTorch's takes longer than the solving; many parts of PyTorch do so by the way."""
    folder = picture_folder(size=(100, 120), count=6)
    code = (
        "import sys; from mobilenetv2.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print('torch._dynamo' in sys.modules, 'sympy' in sys.modules)"
    )
    arguments = ["train", str(folder), "--weights", str(weights_file), "--tune", "head"]
    arguments += ["--image-size", "64", "--out", str(tmp_path / "run"), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    result, imported = done.stdout.splitlines()
    assert imported == "False False"
    assert "validation accuracy " in result
    assert "epoch" not in result
