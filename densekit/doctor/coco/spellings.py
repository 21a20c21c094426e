"""What a json writes unlike COCO's own, and means all the same: told, and written plainly by ``--fix``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from densekit.doctor.coco.rows import AnnotationRow, CategoryRow, CocoRows, ImageRow, Row, flat
from densekit.doctor.defects import Defect

Field = tuple[str, Any, Any]
"""Key, value in the file (None: missing), value that is read."""


def spelling_defects(rows: CocoRows) -> Iterator[Defect]:
    """One defect for each kind of other spelling in a row."""
    path = str(rows.path)
    for odd in {(array_of(row), row.row): row for row in rows.odd}.values():
        key, own = array_of(odd), odd.id if isinstance(odd, AnnotationRow) else None
        fields = odd_fields(rows.content[key][odd.row], odd)
        for code in dict.fromkeys(_code(field) for field in fields):
            told = ", ".join(_words(field) for field in fields if _code(field) == code)
            yield Defect(code, path, f"{key}[{odd.row}]: {told}", own, path, row=flat(key, odd.row))


def odd_fields(entry: dict[str, Any], row: Row) -> list[Field]:
    """The fields of a row that are written unlike COCO's own."""
    return [(key, entry.get(key), value) for key, value in _plain(row).items() if _is_odd(key, entry.get(key), value)]


def array_of(row: Row) -> str:
    """The array that a row stands in."""
    return {ImageRow: "images", CategoryRow: "categories", AnnotationRow: "annotations"}[type(row)]


def _plain(row: Row) -> dict[str, Any]:
    """A row as COCO writes it."""
    if isinstance(row, ImageRow):
        sides = {"width": row.width, "height": row.height} if row.width else {}
        return {"id": row.id, "file_name": row.file_name, **sides}
    if isinstance(row, CategoryRow):
        return {"id": row.id, "name": row.name}
    ids = {"image_id": row.image_id, "category_id": row.category_id}
    return {**ids, "bbox": list(row.box), "area": row.area, "iscrowd": row.crowd}


def _is_odd(key: str, raw: Any, read: Any) -> bool:
    if key in ("name", "file_name"):
        return bool(raw != read)
    if key == "bbox":
        return not raw or any(isinstance(v, str) for v in raw)
    if raw is None:
        return key not in ("area", "iscrowd")
    return isinstance(raw, str) != isinstance(read, str)


def _code(field: Field) -> str:
    key, raw, _ = field
    if key in ("file_name", "name"):
        return "name_missing"
    return "box_missing" if key == "bbox" and not raw else "number_as_text"


def _words(field: Field) -> str:
    key, raw, read = field
    what = "is missing" if raw is None or raw == "" else f"is {raw!r}"
    return f"{key} {what}, read as {read!r}"
