"""Locks between processes, which the system takes back from one that dies.

On Windows and some network drives there are none; there nobody waits and nobody is refused.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl


class Lock:
    """The lock of a file, which is made for it and deleted with it."""

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        """Take the lock.

        Raises:
            BlockingIOError: another process has it, and ``wait`` is False.
            OSError: the file cannot be opened.
        """
        self._path = path
        self.file: IO[str] | None = None
        """Open for writing while the lock is ours; None where there are no locks."""
        while sys.platform != "win32":
            file = path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_in_place(file):
                    self.file = file
                    return
            except BlockingIOError:
                raise
            except OSError:  # a drive without locks
                return
            finally:
                if self.file is None:
                    file.close()  # or its holder has deleted it since it was opened

    def release(self) -> None:
        """Give the lock back."""
        if self.file is not None:
            with suppress(OSError):
                self._path.unlink()
            self.file.close()
            self.file = None

    def _is_in_place(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False


@contextmanager
def one_at_a_time(
    path: Path, before_waiting: Callable[[], object] = lambda: None
) -> Iterator[bool]:
    """Wait until no other process is in a block with this lock file; says whether one was.

    Where there are no locks, or the file cannot be opened, nobody waits. So what is done in the
    block must be right, if wasteful, when several do it.
    """
    lock, waited = None, False
    with suppress(OSError):
        try:
            lock = Lock(path)
        except BlockingIOError:
            waited = True
    if waited:
        before_waiting()
        with suppress(OSError):
            lock = Lock(path, wait=True)
    try:
        yield waited
    finally:
        if lock is not None:
            lock.release()
