"""Where the commands write what people read: standard output, or standard error."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from rich.console import Console

UNFOLDED = 10_000
"""Columns of what is no terminal: in a file, a name in a table is not to be folded."""


class _Lasting:
    """A stream whose reader may leave, as `head` does, or a terminal that is closed.

    What cannot be written then is dropped: hours of work do not end for a line that nobody reads.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _reader_may_leave():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _reader_may_leave():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """A block whose writing may fail for want of a reader, but not of room on the disk, say."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise


def console(stderr: bool = False, **options: Any) -> Console:
    """A console on one of the two streams, whose reader may leave; ``options`` as rich has them."""
    stream = sys.stderr if stderr else sys.stdout
    if not stream.isatty() and not os.environ.get("COLUMNS"):
        options.setdefault("width", UNFOLDED)
    return Console(file=cast(IO[str], _Lasting(stream)), stderr=stderr, **options)
