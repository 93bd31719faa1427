"""The same work on many files, in their order: in several threads, where those help."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mobilenetv2.cores import available_cores

File = TypeVar("File")
Result = TypeVar("Result")

SMALL = 8 << 10
"""Bytes of a file on average, below which one thread is faster than several. Between photos of 6
and 17 KB neither was, by more than their noise."""
SAMPLE = 100
"""Files that are asked for their size, at most."""
AHEAD = 16
"""Files for each thread that are begun before their results are asked for."""


def in_order(
    work: Callable[[File], Result], files: Sequence[File], threads: int
) -> Iterator[Result]:
    """What ``work`` makes of each file, in the order of ``files``; few more are begun than taken.

    An error in ``work`` is raised where its result would come.
    """
    if threads == 1:
        yield from map(work, files)
        return
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for file in files:
            waiting.append(pool.submit(work, file))
            if len(waiting) == AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt should not wait for the other files


def threads_for(paths: Sequence[Path]) -> int:
    """How many threads read these pictures soonest: one for each core, or one for small files.

    Pillow decodes outside of Python's lock, but opens and judges a file under it. Of small files
    that is most of the work, and threads that wait for the lock in turn are slower than one alone:
    of digits of 182 bytes, one examined 2,863 a second, two 1,201 (benchmarks/small_files.py). That
    is so while the files lie in memory; a disk that is far away would pay for more threads.
    """
    sizes = []
    for path in paths[:: -(-len(paths) // SAMPLE) or 1]:
        with contextlib.suppress(OSError):
            sizes.append(os.stat(path).st_size)  # noqa: PTH116 - half the time of Path.stat
    if sizes and sum(sizes) < SMALL * len(sizes):
        return 1
    return available_cores()
