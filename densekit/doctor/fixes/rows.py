"""What ``--fix`` does about rows that are written unlike COCO's own, or that make no sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densekit.data.formats.coco.rle import SegmentationError, segmentation_box
from densekit.doctor.coco.rows import Row, which_row, wrong_key
from densekit.doctor.coco.spellings import odd_fields
from densekit.doctor.defects import Defect
from densekit.doctor.fixes.correction import Correction


def as_read(c: Correction, defect: Defect) -> None:
    """The row as it was read."""
    key, position = which_row(defect.row)
    rows: dict[str, Mapping[int, Row]] = {
        "images": c.images,
        "annotations": c.annotations,
        "categories": c.categories,
    }
    for name, _, value in odd_fields(c.entry(key, position), rows[key][position]):
        c.set(key, position, name, value, defect)


def malformed(c: Correction, defect: Defect) -> None:
    """A value that can be told from the others of the row, or done without; else the row goes."""
    key, position = which_row(defect.row)
    entry = c.content[key][position]
    name = wrong_key(key, entry)
    value = _told(c, key, name, entry) if isinstance(entry, dict) else None
    if value is not None:
        c.set(key, position, name, value, defect)
    elif isinstance(entry, dict) and name == "area":
        c.set(key, position, name, None, defect)
    else:
        c.drop(key, position, defect)
        if key == "images" and isinstance(entry, dict):
            _drop_own(c, entry.get("id"), defect)


def _told(c: Correction, key: str, name: str, entry: dict[str, Any]) -> Any:
    """What a value must be by the rest of the file; None where that is open."""
    if (key, name) == ("annotations", "id"):
        return c.new_id(text=False)
    if (key, name) == ("annotations", "category_id"):
        return _category(c, entry.get(name))
    if (key, name) == ("annotations", "bbox"):
        try:
            return list(segmentation_box(entry.get("segmentation")))
        except (SegmentationError, OverflowError):
            return None
    return None


def _category(c: Correction, wanted: Any) -> int | None:
    """The category of that name, or the only one of the file."""
    named = [category.id for category in c.rows.categories if category.name == wanted]
    if wanted is None and len(c.rows.categories) == 1:
        named = [c.rows.categories[0].id]
    return named[0] if len(named) == 1 else None


def _drop_own(c: Correction, image_id: Any, defect: Defect) -> None:
    """Remove the annotations of an image that has gone."""
    if isinstance(image_id, int | str) and image_id not in c.rows.images_by_id:
        for annotation in c.own(image_id):
            c.drop("annotations", annotation.row, defect)
