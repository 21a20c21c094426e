"""Many label files to columns, in several processes, each of which packs what it reads."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from densekit import machine
from densekit.data.formats.labels.records import LabelledObject, Layout, Record, Size
from densekit.data.images.header import peek

Item = TypeVar("Item")
Result = TypeVar("Result")

_PIECE = 256  # files that a process is handed at once
_SHARED_FROM = 1024  # files; fewer are read before processes have started


@dataclasses.dataclass(slots=True)
class Columns:
    """Records side by side: N images, A objects.

    Attributes:
        images: [N] names.
        sizes: [N, 2] int64 (height, width) that the labels give; 0 where they give none.
        counts: [N] int64 objects of each image.
        names: [A] of classes.
        boxes: [A, 4] float64 (x, y, width, height).
        crowd: [A] bool.
        places: [A] where each object is written.
        polygons: [A] as JSON; empty where there are none.
        areas: [A] float64: of the polygons, or of the box.
        aside: how often each thing was left aside.
        problems: lines on what could not be read.
    """

    images: list[str]
    sizes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    names: list[str]
    boxes: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    places: list[str]
    polygons: list[str]
    areas: npt.NDArray[np.float64]
    aside: Counter[str]
    problems: list[str]


def read_columns(layout: Layout) -> Columns:
    """Read all files of a layout; what cannot be read is told in ``problems``."""
    return _joined(_over(lambda files: _pack([r for f in files for r in layout.read(f)]), layout.files))


def file_sizes(root: Path, names: Sequence[str]) -> list[tuple[Size, Size] | None]:
    """Sizes of image files from their headers: as stored, and as EXIF orientations turn them; None: unreadable."""
    pieces = _over(lambda some: [_sizes(root / name) for name in some], names)
    return [sizes for piece in pieces for sizes in piece]


def _sizes(path: Path) -> tuple[Size, Size] | None:
    header = peek(path)
    return None if header is None or min(header.size) < 1 else (header.size, header.turned_size)


_work: Callable[[Sequence[object]], object] | None = None  # what forked processes do; a closure can't be pickled


def _over(work: Callable[[Sequence[Item]], Result], items: Sequence[Item]) -> list[Result]:
    """Results of pieces of the items, in order; in processes where there are many and they start at once."""
    global _work
    pieces = [items[i : i + _PIECE] for i in range(0, len(items), _PIECE)]
    context = machine.forking() if len(items) >= _SHARED_FROM and machine.cores() > 1 else None
    if context is None:
        return [work(piece) for piece in pieces]
    _work = work  # type: ignore[assignment]
    try:
        with context.Pool(min(8, machine.cores(), len(pieces))) as pool:
            return pool.map(_piece, pieces, chunksize=1)  # type: ignore[arg-type]
    finally:
        _work = None


def _piece(items: Sequence[object]) -> object:
    assert _work is not None
    return _work(items)


def _pack(records: Sequence[Record]) -> Columns:
    objects = [o for record in records for o in record.objects]
    return Columns(
        images=[r.image for r in records],
        sizes=np.array([r.size or (0, 0) for r in records], np.int64).reshape(-1, 2),
        counts=np.array([len(r.objects) for r in records], np.int64),
        names=[o.name for o in objects],
        boxes=np.array([o.box for o in objects], np.float64).reshape(-1, 4),
        crowd=np.array([o.crowd for o in objects], np.bool_),
        places=[o.place for o in objects],
        polygons=[json.dumps(o.polygons) if o.polygons else "" for o in objects],
        areas=np.array([_area(o) for o in objects], np.float64),
        aside=Counter(words for r in records for words in r.aside),
        problems=[line for r in records for line in r.problems],
    )


def _area(one: LabelledObject) -> float:
    """Of polygons by the shoelace formula; parts that overlap count twice."""
    if not one.polygons:
        return one.box[2] * one.box[3]
    total = 0.0
    for polygon in one.polygons:
        x, y = np.array(polygon[0::2]), np.array(polygon[1::2])
        total += abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    return total


def _joined(pieces: Sequence[Columns]) -> Columns:
    if not pieces:
        return _pack([])
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(Columns):
        parts = [getattr(piece, field.name) for piece in pieces]
        if isinstance(parts[0], np.ndarray):
            columns[field.name] = np.concatenate(parts)
        elif isinstance(parts[0], Counter):
            columns[field.name] = sum(parts, Counter[str]())
        else:
            columns[field.name] = [value for part in parts for value in part]
    return Columns(**columns)
