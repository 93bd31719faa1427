"""How much memory a piece of work takes, wherever it is taken: by Python, C++, or a mapped file."""

from mobilenetv2.machine_memory import forget_peak, peak_memory, resident_memory


class Resident:
    """The most memory that the process holds beyond what it held when this was made.

    Resident pages are counted, the one measure that knows what a library takes. Linux keeps their
    peak, and lets it start anew, so that what was taken and given back before does not hide it;
    elsewhere what lies below the peak so far is not seen.
    """

    def __init__(self) -> None:
        forget_peak()
        self._before = resident_memory()

    def most(self) -> float | None:
        """Megabytes; None where the system does not tell."""
        peak = peak_memory()
        if peak is None or self._before is None:
            return None
        return max(0, peak - self._before) / 1e6
