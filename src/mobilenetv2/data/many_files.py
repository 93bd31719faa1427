"""The same work on many files, in their order: in several threads, where those help."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mobilenetv2.cores import available_cores

File = TypeVar("File")
Result = TypeVar("Result")

SMALL = 8 << 10
"""Bytes of a file on average, below which one thread is faster than several."""
SAMPLE = 100
"""Files that are asked for their size."""
AT_ONCE = 256
"""Results that may wait to be taken."""
BATCH = 4
"""Files handed to a thread together: handing over one can cost more than reading it."""


def in_order(
    work: Callable[[File], Result], files: Sequence[File], threads: int
) -> Iterator[Result]:
    """What ``work`` makes of each file, in the order of ``files``; never many more than taken.

    An error in ``work`` is raised where its result would come.
    """
    if threads == 1:
        yield from map(work, files)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        for start in range(0, len(files), AT_ONCE):
            few = files[start : start + AT_ONCE]
            batches = (few[at : at + BATCH] for at in range(0, len(few), BATCH))
            for results in pool.map(lambda batch: [work(file) for file in batch], batches):
                yield from results
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt should not wait for the other files


def threads_for(paths: Sequence[Path]) -> int:
    """How many threads read these pictures soonest: one for each core, or one for small files.

    Pillow decodes outside of Python's lock, but opens and judges a file under it. Of small files
    that is most of the work, and threads that wait for the lock in turn are slower than one alone:
    of 20,000 digits of 290 bytes, one thread examined 2,700 a second, two of them 1,500.
    """
    sizes = []
    for path in paths[:: max(1, len(paths) // SAMPLE)]:
        with contextlib.suppress(OSError):
            sizes.append(os.stat(path).st_size)  # noqa: PTH116 - half the time of Path.stat
    if sizes and sum(sizes) < SMALL * len(sizes):
        return 1
    return available_cores()
