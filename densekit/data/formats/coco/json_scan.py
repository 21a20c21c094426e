"""Where things stand in a mapped JSON file: keys of the top object, ends of values, gaps between the rows of an array.

Nothing is decoded here; strings are stepped over whole, so brackets and commas inside them do not count.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from densekit.types import DensekitError

Text = mmap.mmap | bytes

_SPACE = re.compile(rb"[ \t\r\n]*")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SCALAR = re.compile(rb"[^,}\]\s]*")
_GAP = re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*\{")


def skip_space(data: Text, at: int) -> int:
    """Position of the first character from ``at`` on that is no white space."""
    match = _SPACE.match(data, at)
    return match.end() if match else at


def likely_gap(data: Text, at: int) -> tuple[int, int] | None:
    """Where the text from ``at`` on first looks like the gap of two rows: (closing brace, next opening brace)."""
    gap = _GAP.search(data, at)
    return None if gap is None else (gap.start(), gap.end() - 1)


def open_object(path: Path, data: Text) -> int:
    """Position behind the opening brace of the file's top object."""
    at = skip_space(data, 3 if data[:3] == b"\xef\xbb\xbf" else 0)
    if data[at : at + 1] == b"[":
        raise DensekitError(f"{path}: not a COCO file: it holds a list (results?), not images and annotations")
    if data[at : at + 1] != b"{":
        raise DensekitError(f"{path}: not a COCO file: not even JSON; give a json with images and annotations")
    return at + 1


def open_array(path: Path, data: Text, at: int, key: str) -> int:
    """Position behind the opening bracket of a key's value."""
    if data[at : at + 1] != b"[":
        raise DensekitError(f"{path}: not a COCO file: {key!r} is no list; correct the file")
    return at + 1


def next_key(path: Path, data: Text, at: int) -> tuple[str, int] | None:
    """The next key of the top object and the position of its value; None at the end of the file."""
    at = skip_space(data, at)
    if data[at : at + 1] == b"}":
        if skip_space(data, at + 1) != len(data):
            raise DensekitError(f"{path}: not valid JSON: more text after the end, at byte {at + 1}; correct the file")
        return None
    name = _STRING.match(data, at)
    colon = skip_space(data, name.end()) if name else at
    if name is None or data[colon : colon + 1] != b":":
        raise DensekitError(f"{path}: not valid JSON: a key is missing at byte {at}{_cut(data, at)}; correct the file")
    return name[0][1:-1].decode("utf-8", "replace"), skip_space(data, colon + 1)


def after_value(path: Path, data: Text, at: int) -> int:
    """Position behind the comma that follows a value of the top object, or of the closing brace."""
    at = skip_space(data, at)
    if data[at : at + 1] == b"}":
        return at
    if data[at : at + 1] != b",":
        raise DensekitError(f"{path}: not valid JSON: no comma at byte {at}{_cut(data, at)}; correct the file")
    at = skip_space(data, at + 1)
    if data[at : at + 1] == b"}":
        raise DensekitError(f"{path}: not valid JSON: nothing follows the comma before byte {at}; correct the file")
    return at


def _cut(data: Text, at: int) -> str:
    return " (the file is cut off)" if at >= len(data) else ""


def skip_value(path: Path, data: Text, at: int) -> int:
    """Position behind a value that is not needed, which must be valid JSON all the same."""
    end = end_of_value(data, at)
    try:
        msgspec.json.decode(data[at:end], type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DensekitError(f"{path}: not valid JSON from byte {at}: {error}; correct the file") from None
    return end


def _tokens(data: Text, at: int) -> Iterator[tuple[int, bytes]]:
    for token in _TOKEN.finditer(data, at):
        yield token.end(), token[0][:1]


def end_of_value(data: Text, at: int) -> int:
    """Position behind the value that starts at ``at``; the end of the text where it never closes."""
    if data[at : at + 1] not in (b"{", b"["):
        scalar = (_STRING if data[at : at + 1] == b'"' else _SCALAR).match(data, at)
        return scalar.end() if scalar else at
    depth = 0
    for end, token in _tokens(data, at):
        depth += token in b"[{"
        depth -= token in b"]}"
        if depth == 0:
            return end
    return len(data)


def end_of_rows(data: Text, at: int, enough: int) -> tuple[int, bool]:
    """Where a row ends, counted token by token.

    Args:
        data: the text.
        at: where a row of an array starts.
        enough: the row that holds this position is the last one that counts.

    Returns:
        The position behind that row, and False; or, where the array ends there or earlier, the position behind its
        bracket, and True.
    """
    depth = 0
    for end, token in _tokens(data, at):
        depth += token in b"[{"
        depth -= token in b"]}"
        if depth < 0:
            return end, True
        if depth == 0 and token == b"}" and end > enough:
            following = skip_space(data, end)
            return (following + 1, True) if data[following : following + 1] == b"]" else (end, False)
    return len(data), True
