"""Functions that return a matplotlib Figure.

They use matplotlib's objects, never pyplot: no global figure, no display, nothing to close.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.evaluation.evaluate import Evaluation
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.files import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, VAL, RATE = "#1f6fb4", "#d1495b", "#66788a"
MAX_POINTS = 1500  # more cannot be told apart at the width of the figure
MAX_NAMED_CLASSES = 30


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=150)


def curves(events: Sequence[Mapping[str, Any]]) -> "Figure":
    """Loss and accuracy of every batch (faint), smoothed, with validation; learning rate below.

    Args:
        events: what ``metrics.jsonl`` holds; steps and epochs are drawn.
    """
    from matplotlib.figure import Figure

    steps = [event for event in events if event["event"] == "step"]
    epochs = [event for event in events if event["event"] == "epoch"]
    at = np.array([event["step"] for event in steps])
    epoch_at = [event["step"] for event in epochs]
    figure = Figure(figsize=(9, 8), layout="constrained")
    loss, accuracy, rate = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 3, 1.2]}
    )
    for axes, key, name in ((loss, "loss", "loss"), (accuracy, "accuracy", "accuracy")):
        values = np.array([event[key] for event in steps], dtype=float)
        _faint_and_smooth(axes, at, values)
        axes.plot(
            epoch_at,
            [event[f"val_{key}"] for event in epochs],
            color=VAL,
            marker="o",
            markersize=4,
            linewidth=1,
            label="validation, after each epoch",
        )
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
    _loss_limits(loss, [event["loss"] for event in steps])
    accuracy.set_ylim(top=1.005)
    accuracy.yaxis.set_major_formatter("{x:.0%}")
    loss.legend(frameon=False)
    if epochs:
        best = max(epochs, key=lambda event: (event["val_accuracy"], -event["val_loss"]))
        accuracy.annotate(
            f"{best['val_accuracy']:.2%}",
            (best["step"], best["val_accuracy"]),
            xytext=(0, -16),
            textcoords="offset points",
            ha="center",
            color=VAL,
        )
        loss.set_title(
            f"{len(steps):,} steps, {len(epochs)} epochs; best validation "
            f"{best['val_accuracy']:.2%} in epoch {best['epoch']}",
            loc="left",
            fontsize=10,
        )
    rate.plot(at, [event["lr"] for event in steps], color=RATE)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("step (batch)")
    rate.grid(alpha=0.25)
    if len(at) > 1:
        rate.set_xlim(0, at[-1] * 1.02)
    return figure


def confusion(evaluation: Evaluation, labels: Sequence[str]) -> "Figure":
    """Which class was taken for which: rows are the truth, columns the prediction."""
    from matplotlib.figure import Figure

    classes = len(labels)
    named = classes <= MAX_NAMED_CLASSES
    side = min(12.0, max(4.5, 2.5 + 0.42 * classes)) if named else 10.0
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    counts = evaluation.confusion
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # The square root lets one mistake in a hundred be seen beside the diagonal.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    if named:
        axes.set_xticks(range(classes), labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(classes), labels)
        size = min(9.0, 100 / classes + 3)
        for row, column in zip(*np.nonzero(counts), strict=True):
            axes.text(
                column,
                row,
                f"{counts[row, column]:,}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if shares[row, column] > 0.35 else "black",
            )
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    low, high = evaluation.interval
    axes.set_title(
        f"{evaluation.accuracy:.2%} of {evaluation.count:,} pictures "
        f"(95 % interval {low:.1%} to {high:.1%})",
        fontsize=10,
    )
    return figure


def mistakes(
    evaluation: Evaluation, pictures: LabelledPictures, labels: Sequence[str], most: int = 24
) -> "Figure":
    """The pictures that the classifier is most sure and wrong about, the surest first."""
    from matplotlib.figure import Figure

    truth = pictures.labels.cpu().numpy()
    wrong = np.nonzero(evaluation.predicted != truth)[0]
    wrong = wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:most]
    columns = 6
    rows = max(1, -(-len(wrong) // columns))
    figure = Figure(figsize=(9, 0.7 + 1.75 * rows), layout="constrained")
    total = evaluation.count - evaluation.hits
    figure.suptitle(
        f"{total:,} of {evaluation.count:,} pictures are wrong"
        + (f"; the {len(wrong)} surest of them" if total > len(wrong) else ""),
        fontsize=10,
    )
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, index in zip(grid, wrong, strict=False):
        picture = pictures.pictures[index].cpu().permute(1, 2, 0).numpy()
        axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
        guess, actual = labels[evaluation.predicted[index]], labels[truth[index]]
        axes.set_title(
            f"{_short(guess)} {evaluation.confidence[index]:.0%}\nis {_short(actual)}", fontsize=8
        )
    return figure


def lr_range(
    lrs: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float
) -> "Figure":
    """The range test: loss over learning rate, with the suggested rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(lrs, losses, color=TRAIN, alpha=0.3, linewidth=1, label="loss of each batch")
    axes.plot(lrs, smoothed, color=TRAIN, label="smoothed")
    axes.axvline(suggestion, color=VAL, linestyle="--", label=f"suggestion: {suggestion:g}")
    axes.set_xscale("log")
    axes.set_ylim(0.9 * min(smoothed), 1.1 * max(smoothed[: max(1, len(smoothed) // 2)]))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def smooth(values: Array, window: int) -> Array:
    """The mean over ``window`` neighbours, fewer at the ends.

    >>> smooth(np.array([0.0, 3.0, 6.0]), 3).tolist()
    [1.5, 3.0, 4.5]
    """
    kernel = np.ones(window)
    weights = np.convolve(np.ones(len(values)), kernel, mode="same")
    summed: Array = np.convolve(values, kernel, mode="same")
    return summed / weights


def _faint_and_smooth(axes: "Axes", at: Array, values: Array) -> None:
    if len(values) == 0:
        return
    window = max(1, len(values) // 50) | 1  # odd, so that it is centred
    if len(values) <= MAX_POINTS:
        marker = "." if len(values) < 50 else None
        axes.plot(at, values, color=TRAIN, alpha=0.3, linewidth=0.8, marker=marker,
                  label="each batch")  # fmt: skip
    else:  # the range that the batches of each pixel column cover
        groups = np.array_split(np.arange(len(values)), MAX_POINTS // 2)
        low = [values[group].min() for group in groups]
        high = [values[group].max() for group in groups]
        middle = [at[group].mean() for group in groups]
        axes.fill_between(middle, low, high, color=TRAIN, alpha=0.2, linewidth=0,
                          label="each batch")  # fmt: skip
    stride = max(1, len(values) // MAX_POINTS)
    smoothed = smooth(values, window)
    axes.plot(at[::stride], smoothed[::stride], color=TRAIN, linewidth=1.6,
              label=f"mean of {window} batches" if window > 1 else "batch")  # fmt: skip


def _loss_limits(axes: "Axes", losses: Sequence[float]) -> None:
    """One early spike must not flatten the rest."""
    if len(losses) > 20:
        top = float(np.percentile(losses, 99.5))
        axes.set_ylim(bottom=0, top=max(top, axes.dataLim.ymin) * 1.08)


def _short(label: str) -> str:
    return label if len(label) <= 16 else f"{label[:15]}…"
