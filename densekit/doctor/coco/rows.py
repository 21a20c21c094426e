"""A COCO json read leniently: every row that makes sense as plain values, every other one as a defect."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from msgspec import UNSET

from densekit.data.formats.coco.numbers import ByNumber, one_kind
from densekit.data.formats.coco.spellings import (
    SpellingError,
    box_of,
    category_name_of,
    file_name_of,
    id_of,
    real_of,
    whole_of,
)
from densekit.data.images.read import inside
from densekit.doctor.defects import Box, Defect
from densekit.errors import DensekitError

_LARGE = 2**63


@dataclasses.dataclass(slots=True)
class ImageRow:
    """One entry of ``images``: ``row`` is its position; 0 x 0 while no size is known."""

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


Row = ImageRow | CategoryRow | AnnotationRow
AnyRow = TypeVar("AnyRow", ImageRow, CategoryRow, AnnotationRow)


@dataclasses.dataclass
class CocoRows:
    """What a COCO json holds.

    Attributes:
        path: the file.
        content: as parsed, untouched; empty where it could not be.
        folder: of the images; None where it is not known.
        images: of the rows that make sense, in file order; likewise ``annotations`` and ``categories``.
        defects: found while reading.
        odd: rows that the file writes unlike COCO's own.
        lost: ids of images whose rows make no sense.
        spelled: by position of an image in the file, its file in the folder where that is spelled otherwise.
    """

    path: Path
    content: dict[str, Any]
    folder: Path | None = None
    images: list[ImageRow] = dataclasses.field(default_factory=list)
    annotations: list[AnnotationRow] = dataclasses.field(default_factory=list)
    categories: list[CategoryRow] = dataclasses.field(default_factory=list)
    defects: list[Defect] = dataclasses.field(default_factory=list)
    odd: list[Row] = dataclasses.field(default_factory=list)
    lost: set[int | str] = dataclasses.field(default_factory=set)
    spelled: dict[int, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def images_by_id(self) -> dict[int | str, ImageRow]:
        """Images by id; the first where an id occurs twice."""
        found: dict[int | str, ImageRow] = {}
        for image in self.images:
            found.setdefault(image.id, image)
        return found

    def forget_ids(self) -> None:
        """Count ids anew, after ``images`` was changed."""
        self.__dict__.pop("images_by_id", None)

    def mentioned(self, key: str) -> set[str]:
        """Ids that rows of ``annotations`` name, as text, also of rows that make no sense."""
        entries = self.content.get("annotations")
        return {str(e.get(key)) for e in entries if isinstance(e, dict)} if isinstance(entries, list) else set()

    def file(self, image: ImageRow) -> str:
        """Path of an image for people to read."""
        name = self.spelled.get(image.row, image.file_name)
        return name if self.folder is None else str(self.folder / name)

    def place(self, image: ImageRow) -> Path | None:
        """Where the image file is, also under another spelling; None where that is not known or outside."""
        if self.folder is None:
            return None
        try:
            return inside(self.folder, self.spelled.get(image.row, image.file_name), self.path)
        except (DensekitError, OSError, ValueError):
            return None


def grouped(annotations: Iterable[AnnotationRow]) -> dict[int | str, list[AnnotationRow]]:
    """Annotations by the id of their image."""
    found: dict[int | str, list[AnnotationRow]] = {}
    for annotation in annotations:
        found.setdefault(annotation.image_id, []).append(annotation)
    return found


def read_rows(path: Path) -> CocoRows:
    """Read a file whatever it holds; what makes no sense is told in ``defects``."""
    rows = CocoRows(path, {})
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        rows.defects.append(_unreadable(path, f"it cannot be read as JSON: {_first_line(error)}"))
        return rows
    if not isinstance(content, dict):
        rows.defects.append(_unreadable(path, f"it holds a {type(content).__name__}, not an object with images"))
        return rows
    return rows_of(content, path)


def rows_of(content: dict[str, Any], path: Path) -> CocoRows:
    """The rows of a json that was parsed already; other spellings are read as training reads them."""
    rows = CocoRows(path, content)
    rows.images = _checked(rows, "images", ImageRow, _image)
    for image, own in zip(rows.images, one_kind([image.id for image in rows.images])):
        if image.id != own:
            image.id = own
            rows.odd.append(image)
    rows.categories = _checked(rows, "categories", CategoryRow, _category)
    rows.annotations = _checked(rows, "annotations", AnnotationRow, _annotation)
    _refer(rows)
    return rows


def _refer(rows: CocoRows) -> None:
    """An ``image_id`` of 1 means the image "1" where there is no image 1, and the other way round."""
    by_number: ByNumber | None = None
    for annotation in rows.annotations:
        if annotation.image_id not in rows.images_by_id:
            by_number = by_number or ByNumber(rows.images_by_id)
            found = by_number.find(annotation.image_id)
            if found is not None:
                annotation.image_id = found
                rows.odd.append(annotation)


def _checked(rows: CocoRows, key: str, kind: type[AnyRow], convert: Convert) -> list[AnyRow]:
    """The entries of an array that make sense; those written unlike COCO's own are noted in ``rows.odd``."""
    entries = rows.content.get(key)
    if not isinstance(entries, list):
        what = "is missing" if key not in rows.content else f"is a {type(entries).__name__}, not a list"
        rows.defects.append(_unreadable(rows.path, f"the key {key!r} {what}"))
        return []
    if not entries and key != "annotations":
        rows.defects.append(Defect("array_empty", str(rows.path), f"{key!r} is empty", source=str(rows.path)))
    found = []
    for row, entry in enumerate(entries):
        odd: list[str] = []
        try:
            found.append(kind(row, *convert(_values(entry), odd)))
        except SpellingError as error:
            rows.defects.append(malformed(rows, key, row, _worded(entry, error)))
            continue
        if odd:
            rows.odd.append(found[-1])
    return found


def malformed(rows: CocoRows, key: str, row: int, message: str) -> Defect:
    """A row that makes no sense."""
    entry = rows.content[key][row]
    own = entry.get("id") if isinstance(entry, dict) else None
    if key == "images" and isinstance(own, int | str):
        rows.lost.add(own)
    shown = own if key == "annotations" and isinstance(own, int | str) else None
    path = str(rows.path)
    return Defect("row_malformed", path, f"{key}[{row}]: {message}", shown, path, row=flat(key, row))


def wrong_key(key: str, entry: Any) -> str:
    """The key of a malformed row whose value makes no sense; empty where it is no object or has no such key."""
    convert: Convert = {"images": _image, "annotations": _annotation, "categories": _category}[key]
    try:
        convert(_values(entry), [])
    except SpellingError as error:
        return str(error.args[0])
    return ""


def _worded(entry: Any, error: SpellingError) -> str:
    key, words = error.args
    value = f" is {_short(entry[key])}" if isinstance(entry, dict) and key in entry else ""
    return f"{key}{value}: {words}" if key else str(words)


_KEYS = ("images", "annotations", "categories")


def flat(key: str, row: int) -> int:
    """Array and position in one number: what ``which_row`` undoes."""
    return row * len(_KEYS) + _KEYS.index(key)


def which_row(flat: int) -> tuple[str, int]:
    """Array and position, from ``Defect.row`` of a code that is not about one array alone."""
    return _KEYS[flat % len(_KEYS)], flat // len(_KEYS)


Values = Mapping[str, Any]
Convert = Callable[[Values, list[str]], tuple[Any, ...]]


def _values(entry: Any) -> Values:
    """An entry's values; what it lacks is UNSET."""
    if not isinstance(entry, dict):
        raise SpellingError("", f"it is {_short(entry)}, not an object")
    return defaultdict(lambda: UNSET, entry)


def _image(entry: Values, odd: list[str]) -> tuple[Any, ...]:
    """0 x 0 where no size is given, or none that an image can have: ``locate`` takes it from the file."""
    own, name = id_of(entry["id"], "id"), file_name_of(entry["file_name"], entry["coco_url"], odd)
    try:
        sides = [whole_of(entry[side], side, odd) for side in ("width", "height")]
    except SpellingError:
        sides = [0, 0]
    return own, name, *(sides if min(sides) > 0 and sides[0] * sides[1] <= 2**40 else (0, 0))


def _category(entry: Values, odd: list[str]) -> tuple[Any, ...]:
    number = whole_of(entry["id"], "id", odd)
    return number, category_name_of(entry["name"], number, odd)


def _annotation(entry: Values, odd: list[str]) -> tuple[Any, ...]:
    area, segmentation = entry["area"], None if entry["segmentation"] is UNSET else entry["segmentation"]
    return (
        id_of(entry["id"], "id"),
        id_of(entry["image_id"], "image_id"),
        whole_of(entry["category_id"], "category_id", odd),
        box_of(entry["bbox"], lambda: segmentation, odd),
        None if area is UNSET or area is None else real_of(area, "area", odd),
        _crowd(entry["iscrowd"], odd),
        segmentation,
    )


def _crowd(value: Any, odd: list[str]) -> Any:
    """0 or 1; anything else as it is written, for the check of segmentations."""
    if value is UNSET or value is None:
        return 0
    try:
        return whole_of(value, "iscrowd", odd, flag=True)
    except SpellingError:
        return value


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < _LARGE else "a number beyond 64 bits"
    return text if len(text) <= 60 else text[:57] + "..."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _unreadable(path: Path, message: str) -> Defect:
    return Defect("file_unreadable", str(path), message, source=str(path))


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
