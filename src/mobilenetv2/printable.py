"""Names from elsewhere, of files, classes or labels, made safe to show."""

import unicodedata

CONTROLS = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, halves of pairs, and ends of lines and paragraphs."""
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of what stands around them."""


def printable(text: str) -> str:
    r"""The text without anything that a terminal would act on or could not encode.

    >>> print(printable("cat\x1b[2J\n狗"))
    cat\x1b[2J\n狗
    """
    return "".join(c.encode("unicode_escape").decode() if _acts(c) else c for c in text)


def _acts(character: str) -> bool:
    return character in TURNING or unicodedata.category(character) in CONTROLS
