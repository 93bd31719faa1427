"""Names from elsewhere, of files, classes or labels, made safe to show."""


def printable(text: str) -> str:
    r"""The text without anything that a terminal would act on or could not encode.

    >>> print(printable("cat\x1b[2J\n狗"))
    cat\x1b[2J\n狗
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
