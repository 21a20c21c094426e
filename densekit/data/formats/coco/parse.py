"""A COCO json file to numpy columns, in one pass over the mapped file, with nothing checked but syntax and types.

The file's arrays are decoded in small pieces by a typed parser (msgspec), so that no object per annotation
outlives its piece: memory stays at the columns plus one piece, and a large ``annotations`` array is shared out to
processes. Segmentations are not decoded at all; a column says where in the file each one stands.

``NaN`` and ``Infinity``, which Python's json writes and the JSON standard forbids, are read as such in annotations.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from densekit import machine
from densekit.data.formats.coco.check import REMEDY
from densekit.data.formats.coco.columns import (
    AnnotationColumns,
    AnnotationRow,
    CategoryRow,
    CocoColumns,
    ImageRow,
    annotation_columns,
    category_columns,
    image_columns,
    joined,
    unmixed,
)
from densekit.data.formats.coco.json_scan import (
    Text,
    after_value,
    end_of_rows,
    end_of_value,
    likely_gap,
    next_key,
    open_array,
    open_object,
    skip_space,
    skip_value,
)
from densekit.data.formats.coco.spellings import (
    AnyAnnotation,
    AnyCategory,
    AnyImage,
    annotation_row,
    category_row,
    image_row,
    spelled_rows,
)
from densekit.types import DensekitError

Row = TypeVar("Row", bound=msgspec.Struct)

PIECE = 1 << 18
"""Bytes of json that are decoded at once: small enough to stay in a core's cache."""

PARALLEL_FROM = 1 << 25
"""Bytes of annotations from which on they are shared out to processes."""

_NOT_FINITE = re.compile(rb"(?<=[\[:, \n\t])(?:NaN|-?Infinity)(?=[ \n\t]*[,\]}])")
# Numbers of the same length, so that positions in the file stay right, and which no real file holds.
_STAND_INS = {b"NaN": b"7e9", b"Infinity": b"8.0000e9", b"-Infinity": b"-8.0000e9"}
_STOOD_FOR = {7e9: np.nan, 8e9: np.inf, -8e9: -np.inf}
_TRAILING = re.compile(r"trailing characters \(byte (\d+)\)")


def parse_coco(path: Path, processes: int | None = None, *, labelled: bool = True) -> CocoColumns:
    """Parse a COCO file.

    Args:
        path: the json file.
        processes: how many share a large file; None: one a core, at most 8.
        labelled: whether annotations and categories are needed; else a file of images alone will do.

    Raises:
        DensekitError: the file cannot be read, is not JSON, or is not COCO (a key is missing, a value of another type).
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise DensekitError(f"{path}: the file is empty; a COCO json with images and annotations is needed")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, data, processes or min(8, machine.cores()), labelled)
    except (OSError, ValueError) as error:
        if isinstance(error, DensekitError):
            raise
        raise DensekitError(f"{path}: cannot be read ({error}); give a COCO json file") from None


def _parse(path: Path, data: mmap.mmap, processes: int, labelled: bool) -> CocoColumns:
    parts: dict[str, list[Any]] = {}
    at, others = open_object(path, data), set()
    while (entry := next_key(path, data, at)) is not None:
        key, at = entry
        if key in parts:
            raise DensekitError(f"{path}: key {key!r} stands twice in the file; keep one of them")
        if key in _READERS:
            at = open_array(path, data, at, key)
            parts[key], at = _READERS[key](path, data, at, processes)
        else:
            others.add(key)
            at = skip_value(path, data, at)
        at = after_value(path, data, at)
    for key in _READERS:
        if key not in parts and (labelled or key == "images"):
            raise DensekitError(f"{path}: not a COCO file: the key {key!r} is missing; {_hint(others | set(parts))}")
    return CocoColumns(
        path=path,
        images=unmixed(joined(parts["images"], image_columns([], []))),
        categories=joined(parts.get("categories", []), category_columns([], [])),
        annotations=joined(parts.get("annotations", []), annotation_columns([], [], b"", 0)),
    )


def _hint(found: set[str]) -> str:
    return "it has " + (", ".join(repr(k) for k in sorted(found)[:8]) or "no key at all")


_Decoded = tuple[list[Any], list[str]]
"""Rows, and a word for each of their values that was written unlike COCO's own."""

_Piece = tuple[_Decoded, bytes, int, bool]
"""What was decoded, from which bytes, where the next row starts, whether the array ended instead."""


@dataclasses.dataclass(slots=True)
class _Rows(Generic[Row]):
    """Reads one array of objects of the file, piece by piece.

    Attributes:
        row: an object as COCO writes it.
        any_row: an object whatever its values, and ``spelled`` makes of it the row that it stands for.
        columns: of rows, their words, the bytes that they came from and where these stand in the file.
    """

    path: Path
    data: mmap.mmap
    key: str
    row: type[Row]
    any_row: type[msgspec.Struct]
    spelled: Callable[[Any, list[str]], Row]
    columns: Callable[[list[Row], list[str], bytes, int], Any]

    def read_all(self, at: int) -> tuple[list[Any], int]:
        """Columns of each piece from ``at`` (behind the bracket) and the position behind the closing bracket."""
        parts, at, _ = self.read(at, len(self.data))
        return parts, at

    def read(self, at: int, stop: int) -> tuple[list[Any], int, bool]:
        """Read the rows that start before ``stop``; also say where the next row starts, or that the array ended."""
        at = skip_space(self.data, at)
        if self.data[at : at + 1] == b"]":
            return [], at + 1, True
        decoder = msgspec.json.Decoder(list[self.row])  # type: ignore[name-defined]
        parts, ended = [], False
        while not ended and at < stop:
            found, piece, end, ended = self._guessed_piece(decoder, at, stop) or self._measured_piece(decoder, at, stop)
            parts.append(self.columns(*found, piece, at - 1))
            self._let_go(at, end)
            at = end
        return parts, at, ended

    def _let_go(self, start: int, stop: int) -> None:
        """Take pages of the file that were read out of this process, which would else hold all of it in the end."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED") and stop - first >= mmap.PAGESIZE:
            self.data.madvise(mmap.MADV_DONTNEED, first, stop - first)

    def _text(self, start: int, stop: int, end: bytes) -> bytes:
        """A piece of the file as an array of its own, copied once."""
        with memoryview(self.data) as view, view[start:stop] as part:
            return b"".join((b"[", part, end))

    def _guessed_piece(self, decoder: msgspec.json.Decoder[list[Row]], at: int, stop: int) -> _Piece | None:
        """Decode about ``PIECE`` bytes of rows, up to something that looks like the gap between two rows.

        A piece that starts at a row and decodes as a whole array did end at a real gap. None where it does not decode.
        """
        gap = likely_gap(self.data, min(at + PIECE, stop))
        end, following = gap if gap and gap[0] < at + 2 * PIECE else (at + 2 * PIECE, 0)
        piece = self._text(at, end + 1, b"]")
        try:
            if following:
                return self._decoded(decoder, piece), piece, following, False
            decoder.decode(piece)
        except msgspec.DecodeError as error:
            if (trailing := _TRAILING.search(str(error))) is None:
                return None
            piece = piece[: int(trailing[1]) - 1].rstrip()  # the array ended before the gap that we found
        try:
            return self._decoded(decoder, piece), piece, at - 1 + len(piece), True
        except msgspec.DecodeError:
            return None

    def _measured_piece(self, decoder: msgspec.json.Decoder[list[Row]], at: int, stop: int) -> _Piece:
        """The same, but the end is counted token by token, which is slow and always right."""
        end, ended = end_of_rows(self.data, at, min(at + PIECE, stop))
        piece = self._text(at, end, b"" if ended else b"]")
        try:
            found = self._decoded(decoder, piece)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DensekitError(f"{self.path}: not valid JSON: {error} of {self.key!r} from byte {at}") from None
        if ended:
            return found, piece, end, True
        following = skip_space(self.data, end)
        if self.data[following : following + 1] != b",":
            raise DensekitError(f"{self.path}: not valid JSON: no comma at byte {following}; correct the file")
        return found, piece, skip_space(self.data, following + 1), False

    def _decoded(self, decoder: msgspec.json.Decoder[list[Row]], piece: bytes) -> _Decoded:
        try:
            return self._spelled(decoder, piece)
        except msgspec.ValidationError as error:
            raise DensekitError(self._explained(piece, str(error))) from None
        except msgspec.DecodeError:
            if self.row is not AnnotationRow or not _NOT_FINITE.search(piece):
                raise
        try:
            rows, odd = self._spelled(decoder, _NOT_FINITE.sub(lambda m: _STAND_INS[m[0]], piece))
        except msgspec.ValidationError as error:
            raise DensekitError(self._explained(piece, str(error))) from None
        return [_with_not_finite(row) for row in rows], odd

    def _spelled(self, decoder: msgspec.json.Decoder[list[Row]], piece: bytes) -> _Decoded:
        """Rows of a piece as COCO writes it, which is fast, or else as other programs do."""
        try:
            return decoder.decode(piece), []
        except msgspec.ValidationError:
            rows = msgspec.json.decode(piece, type=list[self.any_row])  # type: ignore[name-defined]
        return spelled_rows(rows, self.spelled)

    def _explained(self, piece: bytes, reason: str) -> str:
        """Name the row that has a value of the wrong type."""
        where = re.search(r"\$\[(\d+)\](?:\.([^\s`]+))?", reason)
        what = reason.split(" - at")[0]
        if where is None:
            return f"{self.path}: {self.key}: {what}; {REMEDY}"
        try:
            row = json.loads(piece)[int(where[1])]
            name = f"{self.key[:-1]} {row['id']!r}" if isinstance(row, dict) and "id" in row else repr(row)[:80]
            key = (where[2] or "").partition("[")[0]
            value = f", which is {row[key]!r}"[:120] if key in row else ""
        except (ValueError, LookupError, TypeError, RecursionError):
            name, value = f"entry {where[1]} of {self.key!r}", ""
        field = f": {where[2]}{value}" if where[2] else ""
        return f"{self.path}: {name}{field}: {what[:1].lower()}{what[1:]}; {REMEDY}"


def _with_not_finite(row: AnnotationRow) -> AnnotationRow:
    row.bbox = tuple(_STOOD_FOR.get(v, v) for v in row.bbox)  # type: ignore[assignment]
    row.area = None if row.area is None else _STOOD_FOR.get(row.area, row.area)
    return row


def _rows_of_annotations(path: Path, data: mmap.mmap) -> _Rows[AnnotationRow]:
    return _Rows(path, data, "annotations", AnnotationRow, AnyAnnotation, annotation_row, annotation_columns)


def _read_images(path: Path, data: mmap.mmap, at: int, processes: int) -> tuple[list[Any], int]:
    return _Rows(path, data, "images", ImageRow, AnyImage, image_row, image_columns).read_all(at)


def _read_categories(path: Path, data: mmap.mmap, at: int, processes: int) -> tuple[list[Any], int]:
    return _Rows(path, data, "categories", CategoryRow, AnyCategory, category_row, category_columns).read_all(at)


def _read_annotations(path: Path, data: mmap.mmap, at: int, processes: int) -> tuple[list[Any], int]:
    """Read ``annotations``, a large array by several processes that share the mapped file.

    Processes that have to import this module first would take longer than they save.
    """
    context = machine.forking() if processes > 1 and len(data) - at >= PARALLEL_FROM else None
    jobs = [(path, *share) for share in _shares(data, at, processes if context is not None else 1)]
    parts: list[AnnotationColumns] = []
    if context is not None and len(jobs) > 1:
        with context.Pool(len(jobs)) as pool:
            for (_, start, _), result in zip(jobs, pool.imap(_read_share, jobs)):
                if result is None or start != at:  # that start was no row: read on from where the last share ended
                    break
                part, at, ended = result
                parts.append(part)
                if ended:
                    return parts, at
    rest, at = _rows_of_annotations(path, data).read_all(at)
    return parts + rest, at


_READERS = {"images": _read_images, "annotations": _read_annotations, "categories": _read_categories}


def _shares(data: mmap.mmap, at: int, count: int) -> list[tuple[int, int]]:
    """Cut the text from ``at`` on into (start, stop) at what looks like gaps between rows."""
    starts, stops = [skip_space(data, at)], []
    for share in range(1, count):
        gap = likely_gap(data, at + (len(data) - at) * share // count)
        if gap is not None and gap[1] > starts[-1]:
            stops.append(gap[0])
            starts.append(gap[1])
    return list(zip(starts, [*stops, len(data)]))


def _read_share(job: tuple[Path, int, int]) -> tuple[AnnotationColumns, int, bool] | None:
    path, start, stop = job
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            parts, at, ended = _rows_of_annotations(path, data).read(start, stop)
        except DensekitError:
            return None  # the reader of the whole says what is wrong, unless this was no row at all
    return joined(parts, annotation_columns([], [], b"", 0)), at, ended


_BEFORE_VALUE = re.compile(rb"[ \t\r\n]*:?[ \t\r\n]*")


def read_segmentation(data: Text, at: int) -> Any:
    """Decode the segmentation that stands at a position of the file (``AnnotationColumns.segmentations``).

    Returns:
        A list of polygons (flat x, y lists), a dictionary ``{"size": [h, w], "counts": list or str}``, or None.
    """
    start = _BEFORE_VALUE.match(data, at)
    assert start is not None
    text = data[start.end() : end_of_value(data, start.end())]
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:  # such as a number that no double holds: infinite here, and refused where it is drawn
        return json.loads(text)
