"""Prediction over any number of picture files: constant memory, no stop at a bad one.

Results come in the order of the files, however many workers are busy with them.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from mobilenetv2.classifier import Classifier, Prediction, check_top
from mobilenetv2.cores import available_cores
from mobilenetv2.data.many_files import SAMPLE, threads_for
from mobilenetv2.data.pictures import UnreadablePicture
from mobilenetv2.distributed import Processes

BATCH_SIZE = 16
LARGE_BATCH = 256
"""For small pictures and one worker: a network is soon through with 28×28 pixels, and what each of
its layers costs in Python is shared by more."""
SMALL_SIDE = 64
"""Of pictures, in pixels, that a network is soon through with."""
BATCHES_AHEAD = 2  # for each worker
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
