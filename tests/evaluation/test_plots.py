"""The figures: readable at every length, and true to what they show."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mobilenetv2.data.augment import Batch
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.errors import WorkFailed
from mobilenetv2.evaluation import curves, plots
from mobilenetv2.evaluation.evaluate import Evaluation
from mobilenetv2.evaluation.metrics import confusion_matrix
from mobilenetv2.evaluation.mistakes import write_mistakes


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
             "val_loss": 1 / epoch, "val_accuracy": 1 - 1 / (epoch + 1),
             "train_loss": 0.5 / epoch, "train_accuracy": 1 - 0.5 / (epoch + 1)}
        )  # fmt: skip
    return found


LONG_RUN = pytest.param(100_000, 90, marks=pytest.mark.slow)


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (0, 1), (1, 1), (5, 1), (700, 7), LONG_RUN])
def test_curves_of_any_length(tmp_path: Path, steps: int, epochs: int) -> None:
    figure = curves.training(events(steps, epochs))
    plots.save(figure, tmp_path / "curves.png")
    assert 10_000 < (tmp_path / "curves.png").stat().st_size < 400_000
    loss = figure.axes[0]
    drawn = sum(len(line.get_xdata()) for line in loss.lines)
    assert drawn < 2 * curves.MAX_POINTS + 100
    if steps and epochs:
        best = events(steps, epochs)[-1]["val_accuracy"]
        assert f"{best:.2%}" in loss.get_title(loc="left")


def test_smoothing_is_the_mean_of_the_neighbours() -> None:
    values = np.random.default_rng(0).normal(size=50)
    smoothed = curves.smooth(values, 7)
    for place in range(50):
        window = values[max(0, place - 3) : place + 4]
        assert smoothed[place] == pytest.approx(window.mean())


def evaluation(truth: list[int], guesses: list[int], classes: int) -> Evaluation:
    hits = sum(a == b for a, b in zip(truth, guesses, strict=True))
    confusion = confusion_matrix(np.array(truth), np.array(guesses), classes)
    confidence = np.linspace(0.5, 1, len(truth), dtype=np.float32)
    return Evaluation(len(truth), 0.5, hits, hits, confusion, np.array(guesses), confidence)


@pytest.mark.parametrize("classes", [2, 10, 200, pytest.param(100, marks=pytest.mark.slow)])
def test_confusion_of_any_size(tmp_path: Path, classes: int) -> None:
    truth = list(range(classes)) * 3
    guesses = [(label + (place == 1)) % classes for place, label in enumerate(truth)]
    labels = [f"class {label}" for label in range(classes)]
    figure = plots.confusion(evaluation(truth, guesses, classes), labels)
    plots.save(figure, tmp_path / "confusion.png")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert (len(texts) > 0) == (classes <= plots.MAX_COUNTED_CLASSES)
    if texts:
        assert sum(map(int, texts)) == len(truth)


def test_mistakes_name_their_files(tmp_path: Path) -> None:
    result = evaluation([0, 0, 1, 1], [0, 1, 1, 0], 2)
    files = ("ants/1.jpg", "ants/$2.jpg", "bees/3.jpg", "bees/a very long name of a bee, 4.jpg")
    pictures = LabelledPictures(
        torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), files
    )
    figure = plots.mistakes(result, pictures, ["ants", "bees"])
    plots.save(figure, tmp_path / "mistakes.png")
    shown = {axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()}
    assert shown == {r"\$2.jpg", f"…{files[3][-23:]}"}
    write_mistakes(tmp_path / "mistakes.csv", result, pictures, ["ants", "bees"])
    rows = list(csv.reader((tmp_path / "mistakes.csv").read_text("utf-8").splitlines()))
    assert rows[0] == ["picture", "is", "taken_for", "probability"]
    assert sorted(row[:3] for row in rows[1:]) == [
        [files[1], "ants", "bees"], [files[3], "bees", "ants"],
    ]  # fmt: skip
    assert [float(row[3]) for row in rows[1:]] == sorted(
        (round(float(result.confidence[place]), 4) for place in (1, 3)), reverse=True
    )


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
        assert "is “a cat”" in titles[0]


def test_the_range_test_shows_its_suggestion(tmp_path: Path) -> None:
    lrs = list(np.logspace(-5, 1, 50))
    losses = list(np.linspace(2.3, 0.5, 50))
    figure = curves.lr_range(lrs, losses, losses, 0.05)
    plots.save(figure, tmp_path / "lr.png")
    assert "suggestion: 0.05" in str([t.get_text() for t in figure.axes[0].get_legend().texts])


def inside(figure: Figure, axes: Axes, text: Text) -> bool:
    """Whether all of a text lies within its axes."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    frame, box = axes.get_window_extent(renderer), text.get_window_extent(renderer)
    return bool(
        frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    )


@pytest.mark.parametrize(("steps", "epochs"), [(5, 1), (700, 7), LONG_RUN])
def test_curves_show_what_happened(steps: int, epochs: int) -> None:
    figure = curves.training(events(steps, epochs))
    loss, accuracy, rate = figure.axes
    lines = {str(line.get_label()): line for line in loss.lines}
    points = lines["validation, after each epoch"].get_xydata()
    assert points[-1].tolist() == [steps, 1 / epochs]
    measured = lines["training pictures, measured like validation"].get_xydata()
    assert measured[-1].tolist() == [steps, 0.5 / epochs]
    (best,) = accuracy.texts
    assert best.get_text() == f"{1 - 1 / (epochs + 1):.2%}"
    assert inside(figure, accuracy, best)
    low, high = accuracy.get_ylim()
    assert low < 0.5
    assert 1 < high < 1.05
    assert rate.get_xlim()[0] == 0
    assert rate.get_xlim()[1] >= steps
    assert ("1 epoch;" in loss.get_title(loc="left")) == (epochs == 1)


def test_an_early_spike_does_not_flatten_the_rest() -> None:
    found = events(2000, 2)
    found[3]["loss"] = 1e6
    bottom, top = curves.training(found).axes[0].get_ylim()
    assert (bottom, top) == (0, pytest.approx(3.2, abs=0.5))


def test_the_last_percents_can_be_seen() -> None:
    found = events(1000, 10)
    for event in found:
        for key in event.keys() & {"accuracy", "val_accuracy", "train_accuracy"}:
            event[key] = 0.99 + event[key] / 200
    low, _ = curves.training(found).axes[1].get_ylim()
    assert low > 0.98


def test_the_most_frequent_confusions_are_named(tmp_path: Path) -> None:
    truth, guesses = [0] * 9 + [1] * 9 + [2] * 9, [0] * 5 + [2] * 4 + [1] * 8 + [0] + [2] * 9
    figure = plots.confusion(evaluation(truth, guesses, 3), ["ant", "bee", "wasp"])
    title = figure.get_suptitle().splitlines()
    assert title[1:] == ["“ant” taken for “wasp”: 4 pictures", "“bee” taken for “ant”: 1 picture"]
    perfect = plots.confusion(evaluation([0, 1], [0, 1], 2), ["ant", "bee"])
    assert "taken for" not in perfect.get_suptitle()


def test_rows_are_the_truth() -> None:
    figure = plots.confusion(evaluation([0, 0, 0, 1], [1, 1, 1, 1], 2), ["ant", "bee"])
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(1, 0): "3", (1, 1): "1"}  # x is the prediction, y the truth
    assert np.array_equal(axes.images[0].get_array(), [[0, 1], [0, 1]])


@pytest.mark.parametrize(
    "labels",
    [
        ["US$", "AU$"],
        ["$\\frac$", "a_b^c$"],
        ["虎", "猫"],
        ["caf\udce9", "🐈"],
        ["a" * 300, ""],
    ],
    ids=ascii,
)
def test_names_of_every_kind_can_be_drawn(tmp_path: Path, labels: list[str]) -> None:
    """No name is taken for a formula, and none ends a training in an error or a warning."""
    result = evaluation([0, 0, 1], [1, 0, 0], 2)
    pictures = LabelledPictures(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1]))
    for figure in (
        plots.confusion(result, labels),
        plots.mistakes(result, pictures, labels),
    ):
        plots.save(figure, tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as image:
            image.verify()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pictures_shown_are_the_ones_that_were_wrong(channels: int) -> None:
    """Each picture holds its own number, so that no other can stand in its place."""
    numbers = torch.arange(40, dtype=torch.uint8)
    pictures = LabelledPictures(
        numbers.view(40, 1, 1, 1).expand(40, channels, 6, 12), torch.zeros(40, dtype=torch.long)
    )
    wrong = [3, 17, 31]
    result = evaluation([0] * 40, [int(number in wrong) for number in range(40)], 2)
    figure = plots.mistakes(result, pictures, ["ant", "bee"])
    shown = [int(axes.images[0].get_array().flat[0]) for axes in figure.axes if axes.images]
    assert shown == [31, 17, 3]
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles[0] == f"“bee” {result.confidence[31]:.0%}\nis “ant”"
    assert figure.get_suptitle() == "3 of 40 pictures wrong"


def test_a_figure_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    figure = curves.training(events(3, 1))
    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(WorkFailed, match="No space left"):
        plots.save(figure, path)
    assert path.read_bytes() == b"old"


def test_the_first_batch_is_shown_as_it_is_trained_on() -> None:
    """Its pictures, in its order, and both names where two were mixed."""
    pictures = torch.arange(30).float().view(30, 1, 1, 1).expand(30, 3, 6, 12) * 8 + 0.4
    labels = torch.arange(30) % 2
    batch = Batch(pictures, labels, other_labels=torch.ones(30, dtype=torch.long), weight=0.75)
    figure = plots.first_batch(batch, ["ant", "bee"])
    shown = [int(axes.images[0].get_array().flat[0]) for axes in figure.axes if axes.images]
    assert shown == [8 * place for place in range(24)]
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles[:2] == ["“ant” 75%\nand “bee”", "“bee”"]
    assert "24 of 30 pictures" in figure.get_suptitle()


def test_values_outside_of_a_picture_do_not_turn_black_into_white() -> None:
    pictures = torch.tensor([-3.0, 0.0, 255.4, 300.0]).view(4, 1, 1, 1).expand(4, 1, 4, 4)
    figure = plots.first_batch(Batch(pictures, torch.zeros(4, dtype=torch.long)), ["ant"])
    shown = [int(axes.images[0].get_array().flat[0]) for axes in figure.axes if axes.images]
    assert shown == [0, 0, 255, 255]
    assert "4 of 4 pictures" in figure.get_suptitle()


@pytest.mark.parametrize("count", [2, 14])
def test_a_comparison_shows_every_run(tmp_path: Path, count: int) -> None:
    epochs = [event for event in events(0, 8) if event["event"] == "epoch"]
    runs = {f"runs/{number}": epochs[: number + 1] for number in range(count)}
    runs["runs/_not begun"] = []  # matplotlib would leave it out
    figure = curves.comparison(runs)
    plots.save(figure, tmp_path / "comparison.png")
    loss, accuracy = figure.axes
    for axes, key in ((loss, "val_loss"), (accuracy, "val_accuracy")):
        for line, shown in zip(axes.lines, runs.values(), strict=True):
            points = [[event["epoch"], event[key]] for event in shown]
            assert np.array_equal(line.get_xydata(), np.reshape(points, (-1, 2)))
    assert len({line.get_color() for line in loss.lines}) == count + 1
    (legend,) = figure.legends
    names = [name.removeprefix("runs/") for name in runs]
    assert [text.get_text() for text in legend.texts] == names
    colours = [line.get_color() for line in legend.get_lines()]
    assert colours == [line.get_color() for line in loss.lines]
    with Image.open(tmp_path / "comparison.png") as image:
        image.verify()


def test_seeds_of_one_setting_share_a_colour_and_a_name() -> None:
    runs: dict[str, list[Any]] = {f"runs/{name}": [] for name in ("a", "b", "a-2", "c", "a-3")}
    figure = curves.comparison(runs, [["runs/a", "runs/a-2", "runs/a-3"]])
    for axes in figure.axes:
        a, b, second, c, third = (line.get_color() for line in axes.lines)
        assert a == second == third
        assert len({a, b, c}) == 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["a and 2 more runs", "b", "c"]
    assert [line.get_color() for line in legend.get_lines()] == [a, b, c]


def test_long_names_of_runs_are_told_apart_by_their_ends() -> None:
    runs = {f"/home/somebody/{'a' * 50}/{number}/run": [] for number in range(50)}
    (legend,) = curves.comparison(runs).legends
    names = [text.get_text() for text in legend.texts]
    assert names[:2] == ["0/run", "1/run"]
    assert names[-1] == "39/run, and 10 more"
    (legend,) = curves.comparison({"b" * 90: [], f"/{'a' * 60}/1": []}).legends
    assert [text.get_text()[-3:] for text in legend.texts] == ["bbb", "a/1"]


@pytest.mark.parametrize(("epochs", "is_cut"), [(1, False), (10, False), (40, True)])
def test_of_long_runs_the_ends_can_be_told_apart(epochs: int, is_cut: bool) -> None:
    found = [event for event in events(0, epochs) if event["event"] == "epoch"]
    _, accuracy = curves.comparison({"a": found, "b": found}).axes
    bottom, top = accuracy.get_ylim()
    assert (bottom > found[0]["val_accuracy"]) == is_cut
    left, right = accuracy.get_xlim()
    assert left < 1 <= epochs < right
    ticks = [tick for tick in accuracy.get_xticks() if left <= tick <= right]
    assert all(float(tick).is_integer() for tick in ticks)
    assert top > 1
