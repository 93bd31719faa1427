"""Curves of runs, as functions that return a matplotlib Figure; :mod:`.plots` saves them."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.evaluation.plots import count_of, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, MEASURED, VAL, RATE = "#1f6fb4", "#2a9d6f", "#d1495b", "#66788a"
SHORT = 10  # epochs, up to which all of them are shown
MAX_NAMED_RUNS = 40  # in a legend as high as the figure
MAX_POINTS = 1500  # more cannot be told apart at the width of the figure


def training(events: Sequence[Mapping[str, Any]]) -> "Figure":
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
            f"{count_of(len(steps), 'step')}, {count_of(len(epochs), 'epoch')}; best validation "
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


def comparison(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], alike: Sequence[Sequence[str]] = ()
) -> "Figure":
    """Validation loss and accuracy of several runs, epoch by epoch, in one picture.

    Of long runs accuracies begin at the lowest of the second halves, so that the ends can be told
    apart.

    Args:
        runs: each run's name, and the events of its epochs.
        alike: groups of names that differ in their seeds at most; they share a colour.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    group_of = {name: tuple(names) for names in alike for name in names}
    groups: dict[tuple[str, ...], Any] = {group_of.get(name, (name,)): None for name in runs}
    many = len(groups)
    colours = colormaps["tab10" if many <= 10 else "tab20" if many <= 20 else "turbo"]
    places = {names: place for place, names in enumerate(groups)}
    for name, epochs in runs.items():
        group = group_of.get(name, (name,))
        colour = colours(places[group] if many <= 20 else places[group] / (many - 1))
        for axes, key in ((loss, "val_loss"), (accuracy, "val_accuracy")):
            (groups[group],) = axes.plot(
                [event["epoch"] for event in epochs],
                [event[key] for event in epochs],
                color=colour,
                marker="o",
                markersize=3,
                linewidth=1.2,
            )
    loss.set_ylabel("validation loss")
    accuracy.set_ylabel("validation accuracy")
    losses = [event["val_loss"] for epochs in runs.values() for event in epochs] or [1.0]
    if max(losses) > 10 * min(losses) > 0:  # one that went wrong must not flatten the rest
        loss.set_yscale("log")
    most = max(map(len, runs.values()))
    later = [
        event["val_accuracy"]
        for epochs in runs.values()
        for event in epochs[len(epochs) // 2 if most > SHORT else 0 :]
    ]
    lowest = min(later, default=0.0)
    accuracy.set_ylim(lowest - 0.05 * (1 - lowest) - 1e-4, 1 + 0.02 * (1 - lowest))
    accuracy.yaxis.set_major_formatter("{x:.0%}" if lowest < 0.95 else "{x:.1%}")
    accuracy.set_xlabel("epoch")
    accuracy.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    accuracy.set_xlim(1 - 0.02 * most - 0.2, most + 0.02 * most + 0.2)
    for axes in (loss, accuracy):
        axes.grid(alpha=0.25)
    names = _told_apart([group[0] for group in groups][:MAX_NAMED_RUNS])
    for place, group in enumerate(groups):
        if len(group) > 1 and place < MAX_NAMED_RUNS:
            names[place] += f" and {count_of(len(group) - 1, 'more run')}"
    if many > MAX_NAMED_RUNS:
        names[-1] += f", and {many - MAX_NAMED_RUNS} more"
    lines = list(groups.values())[:MAX_NAMED_RUNS]
    figure.legend(lines, names, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _told_apart(names: Sequence[str], longest: int = 40) -> list[str]:
    """Names of files without the folders that all lie in; of long ones the ends.

    >>> _told_apart(["experiments/a/1", "experiments/b/1"])
    ['a/1', 'b/1']
    """
    try:
        common = os.path.commonpath([Path(name).parent for name in names])
    except ValueError:  # some are absolute, or lie on another drive
        common = ""
    cut = [name.removeprefix(common).lstrip("/\\") for name in names]
    return [short(one if len(one) <= longest else f"…{one[1 - longest :]}", longest) for one in cut]


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
