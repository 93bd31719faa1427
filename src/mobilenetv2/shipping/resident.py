"""How much memory a piece of work takes, wherever it is taken: by Python, C++, or a mapped file."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Resident:
    """The most memory that the process holds beyond what it held when this was made.

    Resident pages are counted, the one measure that knows what a library takes. Linux keeps their
    peak, and lets it start anew, so that what was taken and given back before does not hide it.
    """

    def __init__(self) -> None:
        # No Linux, or not allowed: what hides below the peak so far is not seen.
        with suppress(OSError):
            _CLEAR.write_text("5")  # the peak is what is there now
        self._before = _megabytes("VmRSS")

    def most(self) -> float:
        """Megabytes."""
        return max(0.0, _megabytes("VmHWM") - self._before)


def _megabytes(name: str) -> float:
    """One line of the process's status; the peak, where there is no such file."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1e6 if sys.platform == "darwin" else 1e3)
    kilobytes = next(line for line in lines if line.startswith(name)).split()[1]
    return int(kilobytes) * 1024 / 1e6
