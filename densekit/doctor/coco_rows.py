"""A COCO json read leniently: every row that makes sense as plain values, every other one as a defect."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from densekit.data.images import inside
from densekit.doctor.defects import Box, Defect
from densekit.errors import DensekitError

_LARGE = 2**63


@dataclasses.dataclass(slots=True)
class ImageRow:
    """One entry of ``images``: ``row`` is its position."""

    row: int
    id: int | str
    file_name: str
    width: int
    height: int


@dataclasses.dataclass(slots=True)
class CategoryRow:
    """One entry of ``categories``."""

    row: int
    id: int
    name: str


@dataclasses.dataclass(slots=True)
class AnnotationRow:
    """One entry of ``annotations``; the box is finite or not, as written; area is None where absent."""

    row: int
    id: int | str
    image_id: int | str
    category_id: int
    box: Box
    area: float | None
    crowd: Any
    segmentation: Any


@dataclasses.dataclass
class CocoRows:
    """What a COCO json holds.

    Attributes:
        path: the file.
        content: as parsed, untouched; empty where it could not be.
        folder: of the images; None where it is not known.
        images: of the rows that make sense, in file order; likewise ``annotations`` and ``categories``.
        defects: found while reading.
    """

    path: Path
    content: dict[str, Any]
    folder: Path | None = None
    images: list[ImageRow] = dataclasses.field(default_factory=list)
    annotations: list[AnnotationRow] = dataclasses.field(default_factory=list)
    categories: list[CategoryRow] = dataclasses.field(default_factory=list)
    defects: list[Defect] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def images_by_id(self) -> dict[int | str, ImageRow]:
        """Images by id; the first where an id occurs twice."""
        found: dict[int | str, ImageRow] = {}
        for image in self.images:
            found.setdefault(image.id, image)
        return found

    def mentioned(self, key: str) -> set[str]:
        """Ids that rows of ``annotations`` name, as text, also of rows that make no sense."""
        entries = self.content.get("annotations")
        return {str(e.get(key)) for e in entries if isinstance(e, dict)} if isinstance(entries, list) else set()

    def file(self, image: ImageRow) -> str:
        """Path of an image for people to read."""
        return image.file_name if self.folder is None else str(self.folder / image.file_name)

    def place(self, image: ImageRow) -> Path | None:
        """Where the image file is, if it may be opened; None where it is not known or outside of the folder."""
        if self.folder is None:
            return None
        try:
            return inside(self.folder, image.file_name, self.path)
        except (DensekitError, OSError, ValueError):
            return None


def read_rows(path: Path, folder: Path | None = None) -> CocoRows:
    """Read a file whatever it holds; what makes no sense is told in ``defects``."""
    rows = CocoRows(path, {}, folder)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        rows.defects.append(_unreadable(path, f"it cannot be read as JSON: {_first_line(error)}"))
        return rows
    if not isinstance(content, dict):
        rows.defects.append(_unreadable(path, f"it holds a {type(content).__name__}, not an object with images"))
        return rows
    return rows_of(content, path, folder)


def rows_of(content: dict[str, Any], path: Path, folder: Path | None = None) -> CocoRows:
    """The rows of a json that was parsed already."""
    rows = CocoRows(path, content, folder)
    rows.images = [ImageRow(*v) for v in _checked(rows, "images", _image)]
    rows.categories = [CategoryRow(*v) for v in _checked(rows, "categories", _category)]
    rows.annotations = [AnnotationRow(*v) for v in _checked(rows, "annotations", _annotation)]
    return rows


def _checked(rows: CocoRows, key: str, convert: Any) -> Iterator[tuple[Any, ...]]:
    entries = rows.content.get(key)
    if not isinstance(entries, list):
        what = "is missing" if key not in rows.content else f"is a {type(entries).__name__}, not a list"
        rows.defects.append(_unreadable(rows.path, f"the key {key!r} {what}"))
        return
    if not entries and key != "annotations":
        rows.defects.append(Defect("array_empty", str(rows.path), f"{key!r} is empty", source=str(rows.path)))
    for row, entry in enumerate(entries):
        try:
            yield (row, *convert(entry))
        except _MalformedError as error:
            annotation = entry.get("id") if key == "annotations" and isinstance(entry, dict) else None
            shown = annotation if isinstance(annotation, int | str) else None
            message = f"{key}[{row}]: {error}"
            rows.defects.append(
                Defect("row_malformed", str(rows.path), message, shown, str(rows.path), row=_flat(key, row))
            )


_KEYS = ("images", "annotations", "categories")


def _flat(key: str, row: int) -> int:
    """Array and position in one number: what ``which_row`` undoes."""
    return row * len(_KEYS) + _KEYS.index(key)


def which_row(flat: int) -> tuple[str, int]:
    """Array and position of a malformed row, from ``Defect.row``."""
    return _KEYS[flat % len(_KEYS)], flat // len(_KEYS)


class _MalformedError(Exception):
    """What is wrong with a row."""


def _image(entry: Any) -> tuple[Any, ...]:
    sides = _whole(_get(entry, "width"), "width"), _whole(_get(entry, "height"), "height")
    if min(sides) < 1 or sides[0] * sides[1] > 2**40:
        raise _MalformedError(f"{sides[0]} x {sides[1]} is no size in pixels")
    return (_id(_get(entry, "id"), "id"), _text(_get(entry, "file_name"), "file_name"), *sides)


def _category(entry: Any) -> tuple[Any, ...]:
    return _whole(_get(entry, "id"), "id"), _text(_get(entry, "name"), "name")


def _annotation(entry: Any) -> tuple[Any, ...]:
    box = _get(entry, "bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        raise _MalformedError(f"bbox is {_short(box)}, not four numbers")
    area = entry.get("area")
    if area is not None and not _is_number(area):
        raise _MalformedError(f"area is {_short(area)}, not a number")
    crowd = entry.get("iscrowd")
    return (
        _id(_get(entry, "id"), "id"),
        _id(_get(entry, "image_id"), "image_id"),
        _whole(_get(entry, "category_id"), "category_id"),
        tuple(_float(v) for v in box),
        None if area is None else _float(area),
        0 if crowd is None else crowd,
        entry.get("segmentation"),
    )


def _get(entry: Any, key: str) -> Any:
    if not isinstance(entry, dict):
        raise _MalformedError(f"it is {_short(entry)}, not an object")
    if key not in entry:
        raise _MalformedError(f"the key {key!r} is missing")
    return entry[key]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _whole(value: Any, key: str) -> int:
    if not _is_number(value) or not math.isfinite(_float(value)) or value != int(value) or abs(value) >= _LARGE:
        raise _MalformedError(f"{key} is {_short(value)}, not a whole number")
    return int(value)


def _id(value: Any, key: str) -> int | str:
    return value if isinstance(value, str) else _whole(value, key)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise _MalformedError(f"{key} is {_short(value)}, not a text")
    return value


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < _LARGE else "a number beyond 64 bits"
    return text if len(text) <= 60 else text[:57] + "..."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _unreadable(path: Path, message: str) -> Defect:
    return Defect("file_unreadable", str(path), message, source=str(path))


def folded_name(name: str) -> str:
    """A name without case and blanks."""
    return "".join(name.casefold().split())


def annotation_defect(
    rows: CocoRows, annotation: AnnotationRow, code: str, message: str, others: tuple[Box, ...] = ()
) -> Defect:
    """A defect of an annotation, with its image where it is known."""
    image = rows.images_by_id.get(annotation.image_id)
    shown = None if image is None else rows.place(image)
    return Defect(
        code,
        rows.file(image) if image is not None else str(rows.path),
        message,
        annotation.id,
        str(rows.path),
        shown,
        (annotation.box, *others),
        annotation.row,
    )


def image_defect(rows: CocoRows, image: ImageRow, code: str, message: str, show: bool = False) -> Defect:
    """A defect of an image; ``show`` says that the file can be opened."""
    picture = rows.place(image) if show else None
    return Defect(code, rows.file(image), message, None, str(rows.path), picture, row=image.row)
