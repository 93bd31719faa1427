"""Stopping in good order: the first signal asks, the second one ends."""

import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
"""Ctrl-C, a polite kill, and what clusters send before they take a machine away."""


class StopRequest:
    """While entered, a first signal is noted in ``received``; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """143 for SIGTERM, as a shell would give; 130 for everything else."""
        return 143 if self.received == signal.SIGTERM else 130

    def __enter__(self) -> "StopRequest":
        try:
            for number in SIGNALS:
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

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
