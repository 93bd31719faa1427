"""Prediction over any number of picture files: constant memory, no stop at a bad one.

Results come in the order of the files, however many workers are busy with them.
"""

import csv
import io
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mobilenetv2.classifier import Classifier, Prediction, check_top
from mobilenetv2.cores import available_cores
from mobilenetv2.data.many_files import SAMPLE, threads_for
from mobilenetv2.data.pictures import UnreadablePicture
from mobilenetv2.distributed import Processes
from mobilenetv2.errors import UserError

BATCH_SIZE = 16
LARGE_BATCH = 256
"""For small pictures and one worker: a network is soon through with 28×28 pixels, and what each of
its layers costs in Python is shared by more."""
SMALL_SIDE = 64
"""Of pictures, in pixels, that a network is soon through with."""
BATCHES_AHEAD = 2  # for each worker
SAME_ANSWER = 0.02  # probability; runtimes and precisions differ by less
FILES_TOGETHER = 256  # of each process, between two exchanges of answers


@dataclass(frozen=True)
class FilePrediction:
    """What a file shows, or why it could not be read.

    Attributes:
        path: the file.
        predictions: the likeliest labels first; empty if the file could not be read.
        error: why it could not be read, without the path; None if it could.
    """

    path: Path
    predictions: Sequence[Prediction]
    error: str | None = None


def workers_for(classifier: Classifier, paths: Sequence[Path]) -> int:
    """How many workers name these files soonest.

    A worker for each core takes a batch from its files to its labels by itself, on one thread: so
    no core ever waits for another, as it would within every layer of a network on all of them.
    Where files are small and the network is soon through, one worker is faster
    (:func:`.threads_for`).
    """
    return threads_for(paths) if _is_small(classifier) else available_cores()


def _is_small(classifier: Classifier) -> bool:
    size = classifier.preprocessing
    return size.height * size.width <= SMALL_SIDE**2


def predict_files(
    classifier: Classifier,
    paths: Iterable[Path],
    top: int,
    workers: int | None = None,
    batch_size: int | None = None,
) -> Iterator[FilePrediction]:
    """Name what each file shows, in the order of ``paths``.

    Args:
        classifier: names them.
        paths: as many as there are; few more are taken than are asked for.
        top: how many labels of each.
        workers: batches at the same time; by default :func:`workers_for` the first files.
        batch_size: files that a worker takes together.

    Raises:
        UserError: ``top`` is below 1.
    """
    check_top(top)
    classifier = classifier.for_inference()
    remaining = iter(paths)
    if workers is None:
        first = list(islice(remaining, SAMPLE))
        remaining = chain(first, remaining)
        workers = workers_for(classifier, first)
    batch_size = batch_size or (
        LARGE_BATCH if workers == 1 and _is_small(classifier) else BATCH_SIZE
    )
    threads = torch.get_num_threads()
    waiting: deque[Future[list[FilePrediction]]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        while True:
            while len(waiting) < workers * BATCHES_AHEAD:
                batch = list(islice(remaining, batch_size))
                if not batch:
                    break
                waiting.append(pool.submit(_predict_batch, classifier, batch, top))
            if not waiting:
                return
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the workers' 1 is also what later threads would get


def predict_together(
    classifier: Classifier, paths: Sequence[Path], top: int, workers: int, processes: Processes
) -> Iterator[FilePrediction]:
    """The same by several processes that share the files; each gets all answers, in order."""
    if processes.count == 1:
        yield from predict_files(classifier, paths, top, workers)
        return
    step = FILES_TOGETHER * processes.count
    for start in range(0, len(paths), step):
        few = paths[start : start + step]
        own = predict_files(classifier, few[processes.rank :: processes.count], top, workers)
        parts = processes.gathered(list(own))
        for place in range(len(few)):
            yield parts[place % processes.count][place // processes.count]


def _predict_batch(classifier: Classifier, paths: Sequence[Path], top: int) -> list[FilePrediction]:
    prepared: list[Tensor | str] = []
    for path in paths:
        try:
            prepared.append(classifier.prepare(path))
        except UnreadablePicture as error:
            prepared.append(error.reason)
    pictures = [one for one in prepared if isinstance(one, Tensor)]
    named = iter(classifier.most_likely(torch.stack(pictures), top) if pictures else [])
    return [
        FilePrediction(path, (), one) if isinstance(one, str) else FilePrediction(path, next(named))
        for path, one in zip(paths, prepared, strict=True)
    ]


class Written(NamedTuple):
    """What an earlier call wrote about a file: its name and its likeliest label, if it has one."""

    name: str
    best: Prediction | None


class PredictionWriter(Protocol):
    """A way to write predictions, one line each."""

    header: str

    def name(self, path: Path) -> str:
        """How :meth:`read` will call that file."""

    def line(self, prediction: FilePrediction) -> str:
        """One prediction as a line."""

    def read(self, line: str) -> Written | None:
        """What a line says; None if it is no prediction."""


class CsvWriter:
    """Columns: path, error, then label and probability of each of the ``top`` labels."""

    def name(self, path: Path) -> str:
        """The path as the first column holds it."""
        return _one_line(str(path))

    def __init__(self, top: int) -> None:
        columns = [f"{name}_{rank}" for rank in range(1, top + 1) for name in NAMES]
        self._columns = ["path", "error", *columns]
        self.header = _csv_line(self._columns)

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
            return Written(path, None if error else Prediction(label, float(probability)))
        except ValueError:
            return None


NAMES = ("label", "probability")


class JsonLinesWriter:
    """One JSON object per line: path, error, predictions."""

    header = ""

    def name(self, path: Path) -> str:
        """The path."""
        return str(path)

    def line(self, prediction: FilePrediction) -> str:
        """One object."""
        document = {
            "path": str(prediction.path),
            "error": prediction.error,
            "predictions": [vars(one) for one in prediction.predictions],
        }
        return json.dumps(document, ensure_ascii=False) + "\n"

    def read(self, line: str) -> Written | None:
        """The object's path and first prediction."""
        try:
            about = json.loads(line)
            best = [Prediction(**one) for one in about["predictions"][:1]]
            return Written(str(about["path"]), best[0] if best else None)
        except (json.JSONDecodeError, KeyError, TypeError):
            return None


def already_written(target: Path, writer: PredictionWriter) -> list[Written]:
    """What an earlier, interrupted call wrote into ``target``; a torn last line is cut off.

    Raises:
        UserError: ``target`` holds something else.
    """
    if not target.exists():
        return []
    contents = target.read_text(encoding="utf-8", errors="surrogateescape")
    whole = contents[: contents.rfind("\n") + 1]
    # Not splitlines: other characters that end a line there may be part of a file's name.
    lines = [f"{line}\n" for line in whole.split("\n")[:-1]]
    if writer.header and lines[:1] != [writer.header]:
        raise UserError(
            f"{target}: holds something else than these predictions; name another file or remove it"
        )
    found = [writer.read(line) for line in lines[1 if writer.header else 0 :]]
    if None in found:
        raise UserError(
            f"{target}: line {found.index(None) + bool(writer.header) + 1} is no prediction; name "
            "another file"
        )
    if len(whole) < len(contents):
        target.write_text(whole, encoding="utf-8", errors="surrogateescape")
    return [one for one in found if one is not None]


def require_same_classifier(
    target: Path, written: Sequence[Written], classifier: Classifier
) -> None:
    """Make sure that the classifier says what ``target`` says, by one of its files that is there.

    Raises:
        UserError: it says something else, so ``target`` comes from another classifier.
    """
    for name, best in written:
        if best is None or not Path(name).is_file():
            continue
        (now,) = predict_files(classifier, [Path(name)], len(classifier.labels))
        if now.error is not None:
            continue
        same = {one.label: one.probability for one in now.predictions}.get(best.label, -1.0)
        if abs(same - best.probability) > SAME_ANSWER:
            raise UserError(
                f"{target}: holds predictions of another classifier, or of a picture that has "
                f"changed since ({name}: {best.label} {best.probability:.1%}); name another file "
                "or remove it"
            )
        return


def _csv_line(row: Sequence[str]) -> str:
    text = io.StringIO()
    # A line break in a file's name must not break the line.
    csv.writer(text, lineterminator="\n").writerow([_one_line(cell) for cell in row])
    return text.getvalue()


def _one_line(cell: str) -> str:
    return cell.replace("\r", "\\r").replace("\n", "\\n")
