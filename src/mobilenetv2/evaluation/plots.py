"""Functions that return a matplotlib Figure.

They use matplotlib's objects, never pyplot: no global figure, no display, nothing to close.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.evaluation.evaluate import Evaluation
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.evaluation.mistakes import name_of, wrong_ones
from mobilenetv2.files import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, MEASURED, VAL, RATE = "#1f6fb4", "#2a9d6f", "#d1495b", "#66788a"
MAX_POINTS = 1500  # more cannot be told apart at the width of the figure
MAX_COUNTED_CLASSES = 30  # numbers in the cells of a confusion matrix
MAX_NAMED_CLASSES = 120  # names beside it
SHOWN_CONFUSIONS = 3

# Fonts for what matplotlib's own lacks, above all Chinese, Japanese and Korean; where installed.
FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "PingFang SC",
    "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei", "Arial Unicode MS",
)  # fmt: skip


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    from matplotlib.font_manager import get_font_names
    from matplotlib.text import Text

    families = ["DejaVu Sans", *sorted(set(FONTS) & set(get_font_names()), key=FONTS.index)]
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
    with written_whole(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # then it is a small box
        figure.savefig(file, format="png", dpi=150)


def curves(events: Sequence[Mapping[str, Any]]) -> "Figure":
    """Loss and accuracy of every batch (faint), smoothed, with validation; learning rate below.

    Where an epoch measured training pictures like the validation set, they stand beside it: the gap
    between the two is what over-fitting costs.

    A head that was solved in one go has no batches: what it was measured to be is drawn as bars.

    Args:
        events: what ``metrics.jsonl`` holds; steps and epochs are drawn.
    """
    from matplotlib.figure import Figure

    steps = [event for event in events if event["event"] == "step"]
    epochs = [event for event in events if event["event"] == "epoch"]
    if epochs and not steps:
        return _measured_once(epochs[-1])
    at = np.array([event["step"] for event in steps])
    epoch_at = [event["step"] for event in epochs]
    figure = Figure(figsize=(9, 8), layout="constrained")
    loss, accuracy, rate = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 3, 1.2]}
    )
    for axes, key, name in ((loss, "loss", "loss"), (accuracy, "accuracy", "accuracy")):
        values = np.array([event[key] for event in steps], dtype=float)
        _faint_and_smooth(axes, at, values)
        for part, colour, label in (
            ("train", MEASURED, "training pictures, measured like validation"),
            ("val", VAL, "validation, after each epoch"),
        ):
            if any(f"{part}_{key}" in event for event in epochs):
                axes.plot(
                    epoch_at,
                    [event.get(f"{part}_{key}", math.nan) for event in epochs],
                    color=colour,
                    marker="o",
                    markersize=4 if len(epochs) <= 40 else 2.5,
                    linewidth=1,
                    label=label,
                )
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
    _loss_limits(loss, [event["loss"] for event in steps])
    _accuracy_limits(accuracy, [event["accuracy"] for event in steps], epochs)
    if steps or epochs:
        loss.legend(frameon=False)
    if epochs:
        best = max(epochs, key=lambda event: (event["val_accuracy"], event["epoch"]))
        accuracy.annotate(
            f"{best['val_accuracy']:.2%}",
            (best["step"], best["val_accuracy"]),
            xytext=(0, -17),
            textcoords="offset points",
            ha="right",
            color=VAL,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
        )
        loss.set_title(
            f"{_count(len(steps), 'step')}, {_count(len(epochs), 'epoch')}; best validation "
            f"accuracy {best['val_accuracy']:.2%} in epoch {best['epoch']}",
            loc="left",
            fontsize=10,
        )
    rate.plot(at, [event["lr"] for event in steps], color=RATE)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("step (batch)")
    rate.xaxis.set_major_formatter("{x:,.0f}")
    rate.xaxis.get_major_locator().set_params(integer=True)
    rate.grid(alpha=0.25)
    rate.set_xlim(0, max([1, *at[-1:], *epoch_at[-1:]]) * 1.02)
    return figure


def confusion(evaluation: Evaluation, labels: Sequence[str]) -> "Figure":
    """Which class was taken for which: rows are the truth, columns the prediction."""
    from matplotlib.figure import Figure

    classes = len(labels)
    named = [_name(label, 24) for label in labels]
    side = min(12.0, max(5.0, 2.5 + 0.42 * classes))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    counts = evaluation.confusion
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # The square root lets one mistake in a hundred be seen beside the diagonal.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    if classes <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(classes), named)
        axes.set_yticks(range(classes), named)
        axes.tick_params(labelsize=min(10.0, 620 / classes))
        if max(map(len, named)) > 3:
            steep = classes > MAX_COUNTED_CLASSES
            for text in axes.get_xticklabels():
                text.set(rotation=90 if steep else 45, rotation_mode="anchor", ha="right")
                text.set_verticalalignment("center" if steep else "top")
    if classes <= MAX_COUNTED_CLASSES:
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
    figure.suptitle(
        f"{evaluation.accuracy:.2%} of {_count(evaluation.count, 'picture')} right "
        f"(95% interval {low:.2%} to {high:.2%})" + _worst_confusions(counts, labels),
        fontsize=10,
    )
    return figure


def mistakes(
    evaluation: Evaluation, pictures: LabelledPictures, labels: Sequence[str], most: int = 24
) -> "Figure":
    """The pictures that the classifier is most sure and wrong about, the surest first."""
    from matplotlib.figure import Figure

    truth = pictures.labels.cpu().numpy()
    wrong = wrong_ones(evaluation, pictures)[:most]
    columns = min(6, max(3, len(wrong)))
    rows = -(-len(wrong) // columns)
    height, width = pictures.pictures.shape[-2:]
    cell = min(3.0, 1.5 * height / width) + (0.6 if pictures.names else 0.45)
    figure = Figure(figsize=(1.5 * columns, 0.45 + cell * rows), layout="constrained")
    total = evaluation.count - evaluation.hits
    figure.suptitle(
        f"{total or 'none'} of {_count(evaluation.count, 'picture')} wrong"
        + (f"; the {len(wrong)} it was surest of" if total > len(wrong) else ""),
        fontsize=10,
    )
    if not rows:
        return figure
    # Ticks that are hidden are made and measured all the same.
    without_ticks: dict[str, Any] = {"xticks": [], "yticks": []}
    grid = np.atleast_1d(figure.subplots(rows, columns, subplot_kw=without_ticks)).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, index in zip(grid, wrong, strict=False):
        picture = pictures.pictures[index].cpu().permute(1, 2, 0).numpy()
        axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
        guess, actual = _name(labels[evaluation.predicted[index]]), _name(labels[truth[index]])
        sure = f"{evaluation.confidence[index]:.0%}"
        axes.set_title(f"“{guess}” {sure}\nis “{actual}”", fontsize=8)
        if pictures.names:
            axes.set_axis_on()
            axes.set_frame_on(False)
            file = Path(name_of(pictures, index)).name
            axes.set_xlabel(_name(file if len(file) <= 24 else f"…{file[-23:]}", 24), fontsize=6)
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
        faint = 0.3 if window > 1 else 0.8
        axes.plot(at, values, color=TRAIN, alpha=faint, linewidth=0.8, marker=marker,
                  label="each batch")  # fmt: skip
    else:  # the range that the batches of each pixel column cover
        groups = np.array_split(np.arange(len(values)), MAX_POINTS // 2)
        low = [values[group].min() for group in groups]
        high = [values[group].max() for group in groups]
        middle = [at[group].mean() for group in groups]
        axes.fill_between(middle, low, high, color=TRAIN, alpha=0.2, linewidth=0,
                          label="each batch")  # fmt: skip
    if window == 1:
        return
    stride = max(1, len(values) // MAX_POINTS)
    smoothed = smooth(values, window)
    axes.plot(at[::stride], smoothed[::stride], color=TRAIN, linewidth=1.6,
              label=f"mean of {window:,} batches")  # fmt: skip


def _measured_once(epoch: Mapping[str, Any]) -> "Figure":
    """Loss and accuracy on training and validation pictures, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4), layout="constrained")
    figure.suptitle("solved in one go, without steps", x=0.01, ha="left", fontsize=10)
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        parts = [part for part in ("val", "train") if f"{part}_{key}" in epoch]
        values = [epoch[f"{part}_{key}"] for part in parts]
        names = {"val": "validation", "train": "training pictures"}
        colours = {"val": VAL, "train": MEASURED}
        bars = axes.barh(
            [names[part] for part in parts], values, color=[colours[part] for part in parts]
        )
        shown = [f"{value:.2%}" if key == "accuracy" else f"{value:.4f}" for value in values]
        axes.bar_label(bars, shown, padding=3)
        axes.set_xlabel(key)
        axes.set_xlim(0, 1.25 if key == "accuracy" else max([*values, 1e-6]) * 1.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[1].set_xticks([0, 0.25, 0.5, 0.75, 1])
    return figure


def _loss_limits(axes: "Axes", losses: Sequence[float]) -> None:
    """One early spike must not flatten the rest."""
    if len(losses) > 20:
        top = float(np.percentile(losses, 99.5))
        axes.set_ylim(bottom=0, top=max(top, axes.dataLim.ymin) * 1.08)


def _accuracy_limits(
    axes: "Axes", accuracies: Sequence[float], epochs: Sequence[Mapping[str, Any]]
) -> None:
    """The range where something happens: the last percents are what a learner looks for."""
    bottom = 0.0
    if len(accuracies) > 20:
        lowest = [float(np.percentile(accuracies, 2)), *(event["val_accuracy"] for event in epochs)]
        bottom = max(0.0, min(lowest))
    margin = 0.02 * (1 - bottom) + 1e-4
    axes.set_ylim(bottom - margin, 1 + margin)
    axes.yaxis.set_major_formatter("{x:.0%}" if bottom < 0.95 else "{x:.1%}")


def _worst_confusions(counts: Array, labels: Sequence[str]) -> str:
    """The most frequent confusions in words, one per line; nothing where there are none."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN_CONFUSIONS]
    pairs = [divmod(int(place), len(labels)) for place in order if wrong.flat[place]]
    return "".join(
        f"\n“{_name(labels[truth], 24)}” taken for “{_name(labels[guess], 24)}”: "
        + _count(int(wrong[truth, guess]), "picture")
        for truth, guess in pairs
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _name(label: str, longest: int = 16) -> str:
    """A class name that fits and that every font can try: no formulas, no broken characters."""
    short = label if len(label) <= longest else f"{label[: longest - 1]}…"
    return short.encode("utf-8", "replace").decode().replace("$", r"\$")
