"""What was measured, as functions that return a matplotlib Figure; curves are in :mod:`.curves`.

They use matplotlib's objects, never pyplot: no global figure, no display, nothing to close.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenetv2.data.augment import Batch
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.evaluation.evaluate import Evaluation
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.evaluation.mistakes import name_of, wrong_ones
from mobilenetv2.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def confusion(evaluation: Evaluation, labels: Sequence[str]) -> "Figure":
    """Which class was taken for which: rows are the truth, columns the prediction."""
    from matplotlib.figure import Figure

    classes = len(labels)
    named = [short(label, 24) for label in labels]
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
        f"{evaluation.accuracy:.2%} of {count_of(evaluation.count, 'picture')} right "
        f"(95% interval {low:.2%} to {high:.2%})" + _worst_confusions(counts, labels),
        fontsize=10,
    )
    return figure


def mistakes(
    evaluation: Evaluation, pictures: LabelledPictures, labels: Sequence[str], most: int = 24
) -> "Figure":
    """The pictures that the classifier is most sure and wrong about, the surest first."""
    truth = pictures.labels.cpu().numpy()
    wrong = wrong_ones(evaluation, pictures)[:most]
    total = evaluation.count - evaluation.hits
    title = f"{total or 'none'} of {count_of(evaluation.count, 'picture')} wrong" + (
        f"; the {len(wrong)} it was surest of" if total > len(wrong) else ""
    )
    shown = pictures.pictures[wrong.tolist()].cpu().numpy()
    figure = _side_by_side(shown, title, lines=3 if pictures.names else 2)
    for axes, index in zip(figure.axes, wrong, strict=False):
        guess, actual = short(labels[evaluation.predicted[index]]), short(labels[truth[index]])
        sure = f"{evaluation.confidence[index]:.0%}"
        axes.set_title(f"“{guess}” {sure}\nis “{actual}”", fontsize=8)
        if pictures.names:
            axes.set_axis_on()
            axes.set_frame_on(False)
            file = Path(name_of(pictures, index)).name
            axes.set_xlabel(short(file if len(file) <= 24 else f"…{file[-23:]}", 24), fontsize=6)
    return figure


def first_batch(batch: Batch, labels: Sequence[str], most: int = 24) -> "Figure":
    """What the network is shown in training: pictures with every change, and their labels.

    Where pictures of two classes were mixed, both are named, with the share of the first.
    """
    shown = batch.pictures[:most].cpu().numpy()
    count = len(batch.labels) if batch.share is None else batch.share.total
    title = f"the first batch as the network sees it: {len(shown)} of {count_of(count, 'picture')}"
    figure = _side_by_side(shown, title, lines=1 if batch.other_labels is None else 2)
    truth = batch.labels.tolist()
    others = truth if batch.other_labels is None else batch.other_labels.tolist()
    for axes, label, other in zip(figure.axes, truth, others, strict=False):
        name = f"“{short(labels[label])}”"
        if other != label:
            name = f"“{short(labels[label], 11)}” {float(batch.weight):.0%}"
            name += f"\nand “{short(labels[other])}”"
        axes.set_title(name, fontsize=8)
    return figure


def _side_by_side(pictures: Array, title: str, lines: int) -> "Figure":
    """Pictures N×C×H×W in 0…255, each in axes of its own, with room for lines of words."""
    from matplotlib.figure import Figure

    columns = min(6, max(3, len(pictures)))
    rows = -(-len(pictures) // columns)
    height, width = pictures.shape[-2:]
    cell = min(3.0, 1.5 * height / width) + 0.15 + 0.15 * lines
    figure = Figure(figsize=(1.5 * columns, 0.45 + cell * rows), layout="constrained")
    figure.suptitle(title, fontsize=10)
    if not rows:
        return figure
    # Ticks that are hidden are made and measured all the same.
    without_ticks: dict[str, Any] = {"xticks": [], "yticks": []}
    grid = np.atleast_1d(figure.subplots(rows, columns, subplot_kw=without_ticks)).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, picture in zip(grid, pictures, strict=False):
        seen = picture.transpose(1, 2, 0).round().clip(0, 255).astype(np.uint8)
        axes.imshow(seen.squeeze(2) if seen.shape[2] == 1 else seen, cmap="gray", vmin=0, vmax=255)
    return figure


def _worst_confusions(counts: Array, labels: Sequence[str]) -> str:
    """The most frequent confusions in words, one per line; nothing where there are none."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN_CONFUSIONS]
    pairs = [divmod(int(place), len(labels)) for place in order if wrong.flat[place]]
    return "".join(
        f"\n“{short(labels[truth], 24)}” taken for “{short(labels[guess], 24)}”: "
        + count_of(int(wrong[truth, guess]), "picture")
        for truth, guess in pairs
    )


def count_of(number: int, what: str) -> str:
    """A number of things, in words."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def short(label: str, longest: int = 16) -> str:
    """A class name that fits and that every font can try: no formulas, no broken characters."""
    cut = label if len(label) <= longest else f"{label[: longest - 1]}…"
    return cut.encode("utf-8", "replace").decode().replace("$", r"\$")
