"""Who speaks, and how a complaint looks."""

import os
from collections.abc import Callable
from functools import partial

from mobilenetv2.cli.console import console
from mobilenetv2.printable import printable


def is_first() -> bool:
    """Whether this process speaks for all that ``torchrun`` has started."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def teller(quiet: bool) -> Callable[[str], None]:
    """Tells who watches a terminal, on stderr, what there is to wait for."""
    shown = console(stderr=True, soft_wrap=True)
    shown.quiet = quiet or not is_first() or not shown.is_terminal
    return partial(shown.print, markup=False, highlight=False, emoji=False)


def remark(message: str) -> None:
    """Tell the user, once for all processes, what to know about the result, on stderr."""
    if is_first():
        complain(message)


def complain(message: str) -> None:
    """Tell the user what is wrong, on stderr."""
    lines = "\n".join(map(printable, message.split("\n")))  # it may name a stranger's files
    console(stderr=True, soft_wrap=True).print(
        f"mobilenetv2: {lines}", style="red", markup=False, highlight=False, emoji=False
    )
