"""How often something happens, as people write it."""

import re
from typing import Literal, NamedTuple


class Interval(NamedTuple):
    """How often something happens: a number and its unit.

    >>> Interval.parse("10 min"), Interval.parse("500steps")
    (Interval(number=10.0, unit='min'), Interval(number=500.0, unit='steps'))
    """

    number: float
    unit: Literal["min", "steps", "epoch"]

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """Read ``"10min"``, ``"500steps"`` or ``"epoch"``.

        Raises:
            ValueError: it is something else.
        """
        if text == "epoch":
            return cls(1, "epoch")
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(min|steps)", text)
        if not match:
            raise ValueError("must be minutes (10min), steps (500steps) or epoch")
        number, unit = float(match[1]), match[2]
        if not number or (unit == "steps" and not number.is_integer()):
            raise ValueError("must be more than 0min, or a whole number of steps from 1 on")
        return cls(number, "min" if unit == "min" else "steps")
