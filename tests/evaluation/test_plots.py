"""The figures: readable at every length, and true to what they show."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.evaluation import plots
from mobilenetv2.evaluation.evaluate import Evaluation
from mobilenetv2.evaluation.metrics import confusion_matrix


def events(steps: int, epochs: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "event": "step", "epoch": 1, "step": step + 1,
            "loss": 3 * math.exp(-3 * step / max(steps, 1)) + 0.2,
            "accuracy": 1 - math.exp(-3 * step / max(steps, 1)), "lr": 0.1,
        }
        for step in range(steps)
    ]  # fmt: skip
    for epoch in range(1, epochs + 1):
        found.append(
            {"event": "epoch", "epoch": epoch, "step": steps * epoch // epochs,
             "val_loss": 1 / epoch, "val_accuracy": 1 - 1 / (epoch + 1)}
        )  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("steps", "epochs"), [(0, 0), (0, 1), (1, 1), (5, 1), (700, 7), (100_000, 30)]
)
def test_curves_of_any_length(tmp_path: Path, steps: int, epochs: int) -> None:
    figure = plots.curves(events(steps, epochs))
    plots.save(figure, tmp_path / "curves.png")
    assert 10_000 < (tmp_path / "curves.png").stat().st_size < 400_000
    loss = figure.axes[0]
    drawn = sum(len(line.get_xdata()) for line in loss.lines)
    assert drawn < 2 * plots.MAX_POINTS + 100
    if steps and epochs:
        best = events(steps, epochs)[-1]["val_accuracy"]
        assert f"{best:.2%}" in loss.get_title(loc="left")


def test_smoothing_is_the_mean_of_the_neighbours() -> None:
    values = np.random.default_rng(0).normal(size=50)
    smoothed = plots.smooth(values, 7)
    for place in range(50):
        window = values[max(0, place - 3) : place + 4]
        assert smoothed[place] == pytest.approx(window.mean())


def evaluation(truth: list[int], guesses: list[int], classes: int) -> Evaluation:
    hits = sum(a == b for a, b in zip(truth, guesses, strict=True))
    confusion = confusion_matrix(np.array(truth), np.array(guesses), classes)
    confidence = np.linspace(0.5, 1, len(truth), dtype=np.float32)
    return Evaluation(len(truth), 0.5, hits, hits, confusion, np.array(guesses), confidence)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_confusion_of_any_size(tmp_path: Path, classes: int) -> None:
    truth = list(range(classes)) * 3
    guesses = [(label + (place == 1)) % classes for place, label in enumerate(truth)]
    labels = [f"class {label}" for label in range(classes)]
    figure = plots.confusion(evaluation(truth, guesses, classes), labels)
    plots.save(figure, tmp_path / "confusion.png")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert (len(texts) > 0) == (classes <= plots.MAX_NAMED_CLASSES)
    if texts:
        assert sum(map(int, texts)) == len(truth)


@pytest.mark.parametrize("wrong", [0, 1, 30])
def test_mistakes_are_the_surest_ones_first(tmp_path: Path, wrong: int) -> None:
    truth = [0] * 40
    guesses = [1] * wrong + [0] * (40 - wrong)
    result = evaluation(truth, guesses, 2)
    pictures = LabelledPictures(
        torch.zeros(40, 3, 8, 8, dtype=torch.uint8), torch.zeros(40, dtype=torch.long)
    )
    figure = plots.mistakes(result, pictures, ["a cat", "a dog with a very long name"])
    plots.save(figure, tmp_path / "mistakes.png")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == min(wrong, 24)
    if wrong:
        surest = max(result.confidence[:wrong])
        assert f"{surest:.0%}" in titles[0]
        assert "is a cat" in titles[0]


def test_the_range_test_shows_its_suggestion(tmp_path: Path) -> None:
    lrs = list(np.logspace(-5, 1, 50))
    losses = list(np.linspace(2.3, 0.5, 50))
    figure = plots.lr_range(lrs, losses, losses, 0.05)
    plots.save(figure, tmp_path / "lr.png")
    assert "suggestion: 0.05" in str([t.get_text() for t in figure.axes[0].get_legend().texts])
