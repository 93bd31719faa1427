"""When it is time to save within an epoch."""

import math
import time
from collections.abc import Callable

from mobilenetv2.intervals import Interval


class CheckpointTimer:
    """Counts steps or minutes since the last checkpoint.

    >>> timer = CheckpointTimer("3steps")
    >>> timer.saved(step=4)
    >>> [timer.is_due(step) for step in (5, 6, 7)]
    [False, False, True]
    """

    def __init__(self, every: str, clock: Callable[[], float] = time.monotonic) -> None:
        number, unit = Interval.parse(every)
        self._steps = number if unit == "steps" else math.inf
        self._seconds = number * 60 if unit == "min" else math.inf
        self._clock = clock
        self.saved(0)

    def saved(self, step: int) -> None:
        """A checkpoint was written after ``step``."""
        self._last_step = step
        self._last_time = self._clock()

    def is_due(self, step: int) -> bool:
        """Whether another one should be, now that ``step`` is done."""
        return (
            step - self._last_step >= self._steps
            or self._clock() - self._last_time >= self._seconds
        )
