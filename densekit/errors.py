"""What the user is told when something they gave is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DensekitError(ValueError):
    """A mistake in what the user gave (a file, a key, an option).

    The message is one line that says the value, the rule and the remedy. ``tools/`` print it and exit with 2.
    """


def plain_words(message: str) -> str:
    """A message of pydantic in the words of a YAML file, to stand behind a colon."""
    message = message.removeprefix("Value error, ")
    for theirs, ours in (("a valid dictionary or instance of Part", "keys and values"), ("a valid tuple", "a list"),
                         ("a valid dictionary", "keys and values"), ("a valid list", "a list")):  # fmt: skip
        message = message.replace(theirs, ours)
    return message[:1].lower() + message[1:]


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Say which of the ``known`` names are nearest to ``name``, as the end of an error message."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(repr(k) for k in sorted(known)[:12])
    return f"known are {shown}" + (f" and {len(known) - 12} more" if len(known) > 12 else "")
