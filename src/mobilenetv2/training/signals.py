"""Stopping in good order: the first signal asks, the second one ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from mobilenetv2.distributed import ALONE, Processes
from mobilenetv2.errors import Interrupted

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
"""Ctrl-C, a polite kill, a terminal that was closed, and what clusters send before they take a
machine away."""


class Stopped(BaseException):
    """Leaves the work; nothing but :class:`StopRequest` catches it for good."""


class StopRequest:
    """While entered, a first signal is noted in ``received``; a second one acts as usual.

    Work in small steps calls :meth:`check` after each of them. Longer work that can be thrown
    away, because it will be done again, goes into :meth:`at_once`. A :class:`Stopped` that leaves
    the block becomes an :class:`Interrupted` that says how to go on.

    Args:
        go_on: what the user can do afterwards, in a sentence.
        processes: those that work together; a signal to one of them stops all at the same step.
    """

    def __init__(self, go_on: str, processes: Processes = ALONE) -> None:
        self.received: signal.Signals | None = None
        self._processes = processes
        self._go_on = go_on
        self._at_once = False
        self._previous: dict[int, Any] = {}

    def check(self) -> None:
        """Stop here, if that was asked for.

        Raises:
            Stopped: a signal came.
        """
        number = self._processes.largest(int(self.received or 0))
        if number:
            self.received = signal.Signals(number)
            raise Stopped

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While entered, a signal leaves the block in the middle of whatever it does.

        Among several processes it does not: the others would wait for this one forever.

        Raises:
            Stopped: a signal came, now or before.
        """
        if self._processes.count > 1:
            yield
            return
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def __enter__(self) -> "StopRequest":
        try:
            for number in SIGNALS:
                if number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # as `nohup` wants it
                self._previous[number] = signal.signal(number, self._note)
        except ValueError:  # not in the main thread: whoever started that thread decides
            pass
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()
        if isinstance(error, Stopped) and self.received:
            words = str(error) or "before the first step"
            raise Interrupted(
                f"stopped by {self.received.name} {words}. {self._go_on}",
                exit_code=143 if self.received == signal.SIGTERM else 130,  # as a shell gives
            ) from None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()
        if self._at_once:
            self._at_once = False
            raise Stopped

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


@contextmanager
def stopped_at_once(go_on: str, processes: Processes = ALONE) -> Iterator[None]:
    """While entered, a signal ends work that leaves nothing behind.

    Several processes end as they do without this: ``torchrun`` sees one die and ends the others.

    Raises:
        Interrupted: a signal came; says ``go_on``.
    """
    if processes.count > 1:
        yield
        return
    with StopRequest(go_on) as stop, stop.at_once():
        yield
