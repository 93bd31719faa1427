"""Predictions in a file, one line each, and what an earlier, interrupted call left there.

Nothing in a file is changed before all of it is known to be this program's own, and then only a
torn last line is cut off.
"""

import csv
import io
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from mobilenetv2.classifier import Classifier, Prediction
from mobilenetv2.errors import UserError
from mobilenetv2.evaluation.predict_files import FilePrediction, predict_files

SAME_ANSWER = 0.02  # probability; runtimes and precisions differ by less
ASKED_AGAIN = 16  # pictures of an earlier call, to tell whether the same classifier has named them
LINES_TOGETHER = 16
"""Lines that a kill may cost; handing over each by itself would cost small pictures time."""
NAMES = ("label", "probability")


class Written(NamedTuple):
    """What an earlier call wrote about a file.

    Attributes:
        name: of the file, as :meth:`PredictionWriter.name` calls it.
        best: its likeliest label; None if it could not be read.
        labels: how many labels it got.
    """

    name: str
    best: Prediction | None
    labels: int


class PredictionWriter(Protocol):
    """A way to write predictions, one line each.

    Attributes:
        top: how many labels each file gets that can be read.
        header: the first line, or nothing.
        beginning: of every other line.
    """

    top: int
    header: str
    beginning: str

    def name(self, path: Path) -> str:
        """How :meth:`read` will call that file."""

    def line(self, prediction: FilePrediction) -> str:
        """One prediction as a line."""

    def read(self, line: str) -> Written | None:
        """What a line says; None if it is no prediction."""


class CsvWriter:
    """Columns: path, error, then label and probability of each of the ``top`` labels."""

    beginning = ""

    def __init__(self, top: int) -> None:
        self.top = top
        columns = [f"{name}_{rank}" for rank in range(1, top + 1) for name in NAMES]
        self._columns = ["path", "error", *columns]
        self.header = _csv_line(self._columns)

    def name(self, path: Path) -> str:
        """The path as the first column holds it."""
        return _one_line(str(path))

    def line(self, prediction: FilePrediction) -> str:
        """One row."""
        figures = [
            text for one in prediction.predictions for text in (one.label, f"{one.probability:.6f}")
        ]
        row = [str(prediction.path), prediction.error or "", *figures]
        return _csv_line(row + [""] * (len(self._columns) - len(row)))

    def read(self, line: str) -> Written | None:
        """The first columns of a whole row."""
        row = next(csv.reader([line]), [])
        if len(row) != len(self._columns):
            return None
        path, error, label, probability = row[:4]
        try:
            best = None if error else Prediction(label, float(probability))
        except ValueError:
            return None
        return Written(path, best, self.top if best else 0)


class JsonLinesWriter:
    """One JSON object per line: path, error, and the ``top`` predictions."""

    header = ""
    beginning = '{"path": "'

    def __init__(self, top: int) -> None:
        self.top = top

    def name(self, path: Path) -> str:
        """The path."""
        return str(path)

    def line(self, prediction: FilePrediction) -> str:
        """One object, in ASCII, so that names in a broken encoding survive too."""
        document = {
            "path": str(prediction.path),
            "error": prediction.error,
            "predictions": [vars(one) for one in prediction.predictions],
        }
        return json.dumps(document) + "\n"

    def read(self, line: str) -> Written | None:
        """The object's path, first prediction and number of predictions."""
        try:
            about = json.loads(line)
            found = [
                Prediction(str(one["label"]), float(one["probability"]))
                for one in about["predictions"]
            ]
            return Written(str(about["path"]), found[0] if found else None, len(found))
        except (KeyError, TypeError, ValueError):
            return None


def already_written(target: Path, writer: PredictionWriter) -> list[Written]:
    """What an earlier, interrupted call wrote into ``target``; a torn last line is cut off.

    Raises:
        UserError: ``target`` holds something else, and stays as it is.
    """
    if not target.is_file():  # a pipe holds nothing, and reading it would wait for ever
        return []
    contents = target.read_bytes()
    end = contents.rfind(b"\n") + 1
    text = contents[:end].decode(errors="surrogateescape")
    # Not splitlines: other characters that end a line there may be part of a file's name.
    lines = [line.removesuffix("\r") + "\n" for line in text.split("\n")[:-1]]
    torn = contents[end:].decode(errors="surrogateescape")
    beginning = writer.beginning if lines else writer.header or writer.beginning
    if (lines and not lines[0].startswith(writer.header)) or not _could_begin(torn, beginning):
        raise UserError(
            f"{target}: holds something else than these predictions{_of_another_top(writer)}; name "
            "another file or remove it"
        )
    found = _read(target, lines, writer)
    if torn:
        os.truncate(target, end)
    return found


def _could_begin(torn: str, beginning: str) -> bool:
    return torn.startswith(beginning) or beginning.startswith(torn)


def _of_another_top(writer: PredictionWriter) -> str:
    return f" with {writer.top} labels each (--top)" if writer.header else ""


def _read(target: Path, lines: Sequence[str], writer: PredictionWriter) -> list[Written]:
    """The predictions in whole lines, of which the first may be a header."""
    found: list[Written] = []
    first = bool(writer.header)
    for number, line in enumerate(lines[first:], 1 + first):
        one = writer.read(line)
        if one is None:
            raise UserError(f"{target}: line {number} is no prediction; name another file")
        if one.best is not None and one.labels != writer.top:
            raise UserError(
                f"{target}: line {number} has {one.labels} labels, and {writer.top} are asked for; "
                "name another file, or change --top"
            )
        found.append(one)
    return found


def append(target: Path, writer: PredictionWriter, predictions: Iterable[FilePrediction]) -> int:
    """Write ``predictions`` behind what ``target`` holds, and say how many files were unreadable.

    Raises:
        OSError: it cannot be written.
    """
    is_new = not target.is_file() or not target.stat().st_size
    unreadable = 0
    with target.open("a", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        if is_new:
            file.write(writer.header)
            file.flush()
        for number, prediction in enumerate(predictions, 1):
            file.write(writer.line(prediction))
            unreadable += prediction.error is not None
            if number % LINES_TOGETHER == 0:
                file.flush()
    return unreadable


def require_same_classifier(
    target: Path, written: Sequence[Written], classifier: Classifier
) -> None:
    """Make sure that the classifier says what ``target`` says, by some of its files.

    Those are spread over it; another classifier may agree on one picture. A picture that was
    written after ``target`` cannot be what ``target`` tells of.

    Raises:
        UserError: it says something else, so ``target`` comes from another classifier or of other
            pictures.
    """
    there = [one for one in written if one.best is not None and Path(one.name).is_file()]
    if not there:
        return
    written_at, now_is = target.stat().st_mtime, time.time()
    for one in there:
        # What lies in the future tells of a camera's clock, not of a change.
        if written_at < Path(one.name).stat().st_mtime <= now_is:
            raise UserError(
                f"{target}: holds what was said of {one.name} before that file changed; name "
                "another file or remove it"
            )
    asked = there[:: -(-len(there) // ASKED_AGAIN)]
    now = predict_files(classifier, [Path(one.name) for one in asked], len(classifier.labels))
    for one, again in zip(asked, now, strict=True):
        if again.error is not None or one.best is None:
            continue
        answers = {_one_line(said.label): said.probability for said in again.predictions}
        difference = abs(answers.get(_one_line(one.best.label), -1.0) - one.best.probability)
        if not difference <= SAME_ANSWER:  # nor is it where an answer is not a number
            raise UserError(
                f"{target}: holds predictions of another classifier, or of pictures that have "
                f"changed since ({one.name}: {one.best.label} {one.best.probability:.1%}); name "
                "another file or remove it"
            )


def _csv_line(row: Sequence[str]) -> str:
    text = io.StringIO()
    # A line break in a file's name must not break the line.
    csv.writer(text, lineterminator="\n").writerow([_one_line(cell) for cell in row])
    return text.getvalue()


def _one_line(cell: str) -> str:
    return cell.replace("\r", "\\r").replace("\n", "\\n")
