"""What is said of wrong values on the command line: a line that names the flag."""

import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

from mobilenetv2.errors import ConfigError


@contextmanager
def plain_complaints(arguments: list[str]) -> Iterator[None]:
    """A block in which a value of the wrong type is told without Python's types.

    Args:
        arguments: what was typed; wrong values are named by the flags in it.

    Raises:
        ConfigError: a value was of the wrong type, or could not be right.
    """
    said, complaint = io.StringIO(), None
    try:
        with redirect_stderr(said):
            yield
    except ConfigError as error:
        raise ConfigError(_named_as_typed(str(error), arguments)) from error.__cause__
    except SystemExit:
        if complaint := wrong_value(said.getvalue()):
            raise ConfigError(complaint) from None
        raise
    finally:
        if not complaint:
            sys.stderr.write(said.getvalue())


def _named_as_typed(complaint: str, arguments: list[str]) -> str:
    """A complaint about settings, by their flags where these were typed.

    >>> _named_as_typed("batch_size: must be greater than 0, got -1", ["--batch-size", "-1"])
    '--batch-size: must be greater than 0, got -1'
    >>> _named_as_typed("epochs: must be greater than 0, got -1", ["--config", "x.yaml"])
    'epochs: must be greater than 0, got -1'
    """
    typed = {argument.partition("=")[0].replace("_", "-") for argument in arguments}

    def named(found: re.Match[str]) -> str:
        flag = f"--{found[1].replace('_', '-')}"
        return f"{flag}: " if flag in typed else found[0]

    return re.sub(r"^(\w+): ", named, complaint, flags=re.M)


_EXPECTED = {
    r"invalid literal for int\(\) with base 10: (.+?)(?= Argument helptext)": "a whole number",
    r"could not convert string to float: (.+?)(?= Argument helptext)": "a number",
    r"Could not find valid parse for arguments: \[(.+?)\]": "nothing but numbers",
    r"no type matching (.+?) could be instantiated from \[(.*?)\]\.": None,
}
"""How tyro says that a value is of no type that is expected, and what is expected."""


def wrong_value(box: str) -> str | None:
    r"""What a box of tyro's says of a value of the wrong type, in a line; None of anything else.

    >>> wrong_value("│ Error parsing --lr: no type matching FLOAT|{auto} could be │\n"
    ...             "│ instantiated from ['fast']. Got errors: … │")
    "--lr: a number or auto is expected, not 'fast'"
    >>> wrong_value("│ invalid choice '2' for argument '--channels'. Expected one of ('1', '3'). │")
    "--channels: '1' or '3' is expected, not '2'"
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)  # colours
    lines = re.sub(r"^[│|]|[│|]\s*$", "", plain, flags=re.M).splitlines()
    text = " ".join(" ".join(line for line in lines if line.strip("─- ")).split())
    invalid = r"invalid choice (.+) for argument '(.+?)'\. Expected one of \((.+?)\)"
    if choice := re.search(invalid, text):
        expected = _either(choice[3].rstrip(",").split(", "))
        return f"{choice[2]}: {expected} is expected, not {choice[1]}"
    if missing := re.search(r"Missing value for argument '(--.+?)'", text):
        return f"{missing[1]} needs a value"
    if not (named := re.search(r"Error parsing (\S+): ", text)):
        return None
    for words, kind in _EXPECTED.items():
        if found := re.match(words, text[named.end() :]):
            value = found[found.lastindex or 1]
            if not value:
                return f"{named[1]} needs a value"
            return f"{named[1]}: {kind or _kinds(found[1])} is expected, not {value}"
    return None


def _either(words: Sequence[str]) -> str:
    """Words of which one is meant."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _kinds(types: str) -> str:
    """Types as tyro names them, in words.

    >>> _kinds("{None}|INT|{INT INT}"), _kinds("{None}|{{1,2} {1,2}}"), _kinds("{auto,head}|INT")
    ('a whole number or two', '2 × {1,2}', 'auto or head or a whole number')
    >>> _kinds("{None}|{INT INT}")
    'two whole numbers'
    """
    named = {"INT": "a whole number", "FLOAT": "a number"}
    named["INT INT"] = "two" if "INT|" in types else "two whole numbers"
    words: list[str] = []
    for kind in re.findall(r"\{(?:[^{}]|\{[^{}]*\})*\}|[^|]+", types):
        inside = kind.removeprefix("{").removesuffix("}") if kind.startswith("{") else kind
        if "{" in inside:  # several, each of which is one of these
            words.append(f"{inside.count('{')} × {inside[: inside.index('}') + 1]}")
        else:
            words += [named.get(one, one) for one in inside.split(",") if one != "None"]
    return " or ".join(words)
