"""Numbers and ids as other programs write them: ``1.0`` and ``"1"`` for 1.

pandas makes floats of a column with gaps; spreadsheets and VIA make text of all that they export.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Id = int | str

_WHOLE = re.compile(r"\s*[+-]?[0-9]+(?:\.0*)?\s*")
_REAL = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")
_LONGEST = 40  # characters; the regular expressions and int() take long for very long ones


def whole(value: float | str) -> int | None:
    """The whole number that a value stands for, if it fits 64 bits; None where it is none."""
    if isinstance(value, str):
        if len(value) > _LONGEST or not _WHOLE.fullmatch(value):
            return None
        value = int(value.partition(".")[0])
    elif isinstance(value, float) and not value.is_integer():
        return None
    return int(value) if -(2**63) <= value < 2**63 else None


def real(value: float | str) -> float | None:
    """The number that a value stands for; None where it is none."""
    if isinstance(value, str):
        return float(value) if len(value) <= _LONGEST and _REAL.fullmatch(value) else None
    try:
        return float(value)
    except OverflowError:
        return None


def one_kind(ids: Sequence[Id]) -> list[Id]:
    """Numbers and texts mixed as numbers, where all texts are numbers and all stay different; else as they are."""
    if len({isinstance(i, str) for i in ids}) < 2:
        return list(ids)
    numbers = [n for i in ids if (n := whole(i)) is not None]
    return list(numbers) if len(set(numbers)) == len(ids) else list(ids)


class ByNumber:
    """Finds ids whatever the kind they are written in.

    Args:
        ids: known ones; a number that several of them stand for finds none.
    """

    def __init__(self, ids: Iterable[Id]) -> None:
        self._known: dict[int, Id | None] = {}
        for known in ids:
            number = whole(known)
            if number is not None:
                self._known[number] = None if number in self._known else known

    def find(self, wanted: Id) -> Id | None:
        """The known id that is the same number; None where there is none."""
        number = whole(wanted)
        return None if number is None else self._known.get(number)
