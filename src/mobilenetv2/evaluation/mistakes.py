"""Which pictures a classifier got wrong: the surest mistakes first, as a table of files."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.evaluation.evaluate import Evaluation
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.files import write_text
from mobilenetv2.printable import printable

HEADER = ("picture", "is", "taken_for", "probability")


def wrong_ones(evaluation: Evaluation, pictures: LabelledPictures) -> Array:
    """Places of the pictures that were taken for something else, the surest first: int64."""
    wrong: Array = (evaluation.predicted != pictures.labels.cpu().numpy()).nonzero()[0]
    return wrong[(-evaluation.confidence[wrong]).argsort(kind="stable")]


def name_of(pictures: LabelledPictures, place: int) -> str:
    """Its file, or its number in a set that has no files, from 0."""
    return printable(pictures.names[place]) if pictures.names else str(place)


def write_mistakes(
    path: Path, evaluation: Evaluation, pictures: LabelledPictures, labels: Sequence[str]
) -> None:
    """A CSV file with a line for each mistake: picture, class, what it was taken for, how surely.

    Raises:
        WorkFailed: the file cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADER)
    truth = pictures.labels.tolist()
    for place in wrong_ones(evaluation, pictures).tolist():
        guess, sure = int(evaluation.predicted[place]), float(evaluation.confidence[place])
        row = name_of(pictures, place), printable(labels[truth[place]]), printable(labels[guess])
        table.writerow((*row, f"{sure:.4f}"))
    write_text(path, text.getvalue())
