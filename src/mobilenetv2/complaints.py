"""How wrong settings and misspelt words are told: with what was perhaps meant."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

LONGEST = 200
"""Characters of a wrong value that are repeated."""


def explain(error: ValidationError, flags: Mapping[str, str | None]) -> str:
    """A validation error in one line per problem, in the words of the command line.

    Args:
        error: of a section of settings.
        flags: each setting that there is, and the section that holds it (None for the top).
    """
    lines: dict[str, str] = {}
    # Who gave a number is told of numbers, and not of the words that would do as well.
    problems = sorted(
        error.errors(include_url=False),
        key=lambda one: one["type"] == "literal_error" and not isinstance(one["input"], str),
    )
    for problem in problems:
        names = [part for part in problem["loc"] if isinstance(part, str)]
        if problem["type"] == "extra_forbidden":
            key = names[-1]
            home = flags.get(key)
            hint = f"; it belongs below {home!r}" if home else suggestion(key, flags)
            lines[key] = f"unknown setting {key!r}{hint}"
        else:
            section = names[0] if names else ""
            key = next((part for part in reversed(names) if part in flags), section)
            message = problem["msg"].removeprefix("Value error, ")
            message = message.replace("Input should be", "must be")
            # The first problem of a key is about its usual type; the alternatives add nothing,
            # but for what is wrong with one of several values.
            got = f"{key}: {message}, got {_shown(problem['input'])}"
            if isinstance(problem["loc"][-1] if problem["loc"] else "", int):
                lines[key] = got
            lines.setdefault(key, got if key else message)
    return "\n".join(lines.values())


def _shown(value: object) -> str:
    """A value as Python writes it, in a line: a few words of YAML may stand for endless lists.

    >>> _shown({"lr": "fast"})
    "{'lr': 'fast'}"
    >>> _shown([[[[["deep"]]]]])
    '[[[[...]]]]'
    """
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 4, LONGEST, LONGEST, 80
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = 20
    text = short.repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def suggestion(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known word, or nothing.

    >>> suggestion("minst", ["digits", "mnist"])
    "; did you mean 'mnist'?"
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
