"""Random damage to trees of plain values and to bytes, as hypothesis strategies that shrink well."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

from hypothesis import strategies as st

HOSTILE = [
    *(None, True, False, -1, 0, 1, 2, 3, 7, 0.5, -0.0, 1e-300, 1e300, math.nan, math.inf, -math.inf),
    *(2**31, 2**32, 2**63, 2**64, 10**30, -(2**63)),
    *("", " ", "x", "NaN", "1e3", "../x.jpg", "/etc/hostname", "\0", "é" * 40, "a/../../b", "${HOME}", "%s{0}"),
    *([], {}, [[]], [None], {"name": "x"}, [0, 0, 0, 0], [1, 2, 3], [math.nan] * 4, [1e300] * 4, ["1", "2", "3", "4"]),
    *([[1, 2, 3, 4]], [[1, 1, 9, 1, 9, 9]], {"size": [8, 8], "counts": "x"}, {"size": [8, 8], "counts": [64]}),
]
"""Values that a program did not expect at that place."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of a tree: go down by ``places`` (each a fraction of the children), then act."""

    places: tuple[float, ...]
    action: str
    value: Any
    factor: float


PLACES = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=6).map(tuple)
ACTIONS = st.sampled_from(["set", "set", "set", "scale", "delete", "repeat", "swap", "rename"])
CHANGES = st.lists(
    st.builds(
        Change, PLACES, ACTIONS, st.sampled_from(HOSTILE), st.sampled_from([-1.0, 0.0, 0.5, 1.01, 2.0, 100.0, 1e9])
    ),
    min_size=1,
    max_size=4,
)


def changed(tree: Any, changes: list[Change]) -> Any:
    """A copy of a tree with the changes made in turn; those that find nothing to act on do nothing."""
    holder = [copy.deepcopy(tree)]
    for change in changes:
        parent, key = _descend(holder, change.places)
        _act(parent, key, change)
    return holder[0] if holder else None


def _descend(holder: list[Any], places: tuple[float, ...]) -> tuple[Any, Any]:
    parent, key = holder, 0
    for place in places:
        node = parent[key] if len(parent) else None
        if not isinstance(node, dict | list) or not node:
            break
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        parent, key = node, keys[int(place * len(keys))]
    return parent, key


def _act(parent: Any, key: Any, change: Change) -> None:
    if not len(parent):
        return
    value = parent[key]
    if change.action == "delete":
        del parent[key]
    elif change.action == "repeat" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(value))
    elif change.action == "swap":
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        parent[key], parent[keys[0]] = parent[keys[0]], parent[key]
    elif change.action == "rename" and isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    elif change.action == "scale" and isinstance(value, int | float) and not isinstance(value, bool):
        scaled = value * change.factor
        parent[key] = int(scaled) if isinstance(value, int) and math.isfinite(scaled) else scaled
    else:
        parent[key] = copy.deepcopy(change.value)


@dataclasses.dataclass(frozen=True)
class Damage:
    """One change of bytes at a fraction of their length."""

    place: float
    action: str
    value: int
    length: int


DAMAGES = st.lists(
    st.builds(
        Damage,
        st.floats(0, 1),
        st.sampled_from(["set", "set", "cut", "copy", "insert", "end"]),
        st.integers(0, 255),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=5,
)


def damaged(data: bytes, damages: list[Damage]) -> bytes:
    """A copy of the bytes with the damages done in turn."""
    text = bytearray(data)
    for damage in damages:
        at = int(damage.place * max(0, len(text) - 1))
        if damage.action == "set" and text:
            text[at] = damage.value
        elif damage.action == "cut":
            del text[at : at + damage.length]
        elif damage.action == "copy":
            text[at:at] = text[at : at + damage.length]
        elif damage.action == "insert":
            text[at:at] = bytes([damage.value]) * damage.length
        elif damage.action == "end":
            del text[at:]
    return bytes(text)
