"""A lenient reader of COCO json files: takes what can be understood and reports the rest.

``densekit.data.coco_file`` reads the same files for training and stops at the first fault; this one never stops.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from densekit.doctor.report import Box, Defect, shown

LISTS = ("images", "annotations", "categories")


@dataclasses.dataclass(slots=True)
class ImageEntry:
    """One entry of ``images``; ``place`` is its position in the file's list, ``id`` is hashable or None."""

    place: int
    id: Any
    name: str
    width: int | None
    height: int | None


@dataclasses.dataclass(slots=True)
class CategoryEntry:
    """One entry of ``categories``."""

    place: int
    id: Any
    name: str


@dataclasses.dataclass(slots=True)
class AnnotationEntry:
    """One entry of ``annotations``.

    Attributes:
        place: position in the file's list.
        id: as the file gives it; None where it can't be one.
        image_id: likewise.
        category_id: likewise.
        box: (x, y, width, height) as written, NaN and infinity included; None where it is not four numbers.
        written_box: whatever stands there.
        area: None where there is none.
        crowd: whether ``iscrowd`` is set.
        segmentation: whatever stands there.
    """

    place: int
    id: Any
    image_id: Any
    category_id: Any
    box: Box | None
    written_box: Any
    area: float | None
    crowd: bool
    segmentation: Any

    @property
    def xyxy(self) -> Box:
        """The box's corners; only for boxes that are four numbers."""
        assert self.box is not None
        x, y, width, height = self.box
        return x, y, x + width, y + height


@dataclasses.dataclass(slots=True)
class CocoContent:
    """What could be read of a COCO file.

    Attributes:
        path: the json file.
        tree: the file as it was parsed, untouched.
        images, categories, annotations: entries that can be made sense of, in file order.
        defects: of the file's structure.
        image_of: first image of each id. category_of: first category of each id.
    """

    path: Path
    tree: Any
    images: list[ImageEntry] = dataclasses.field(default_factory=list)
    categories: list[CategoryEntry] = dataclasses.field(default_factory=list)
    annotations: list[AnnotationEntry] = dataclasses.field(default_factory=list)
    defects: list[Defect] = dataclasses.field(default_factory=list)
    image_of: dict[Any, ImageEntry] = dataclasses.field(default_factory=dict)
    category_of: dict[Any, CategoryEntry] = dataclasses.field(default_factory=dict)

    def image(self, annotation: AnnotationEntry) -> ImageEntry | None:
        """The image that an annotation belongs to, where it is known."""
        return self.image_of.get(annotation.image_id)


def read_coco(path: Path) -> CocoContent:
    """Read a COCO json file; whatever is wrong with it ends up in ``defects``."""
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        return _failed(path, "json-unreadable", f"can't be read: {error.strerror or error}")
    except RecursionError:
        return _failed(path, "json-unreadable", "is nested too deeply to be COCO")
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        return _failed(path, "json-unreadable", f"is not JSON: {' '.join(str(error).split())[:200]}")
    content = CocoContent(path, tree)
    lists = _lists(content)
    for place, entry in enumerate(lists["images"]):
        _read_image(content, place, entry)
    for place, entry in enumerate(lists["categories"]):
        _read_category(content, place, entry)
    for place, entry in enumerate(lists["annotations"]):
        _read_annotation(content, place, entry)
    return content


def as_id(value: Any) -> Any:
    """An id that a dictionary can hold: a whole number or a string; else None."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, str) or type(value) is int else None


def as_number(value: Any) -> float | None:
    """A number as a float, NaN and infinity included; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def as_box(value: Any) -> Box | None:
    """Four numbers, or None."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    x, y, width, height = (as_number(v) for v in value)
    return None if x is None or y is None or width is None or height is None else (x, y, width, height)


def _failed(path: Path, code: str, message: str) -> CocoContent:
    return CocoContent(path, None, defects=[Defect(code, str(path), message)])


def _lists(content: CocoContent) -> dict[str, list[Any]]:
    """The three lists; what is missing is reported and empty."""
    tree, file = content.tree, str(content.path)
    if not isinstance(tree, dict):
        kind = type(tree).__name__
        hint = "; a list of results belongs to evaluation" if isinstance(tree, list) else ""
        content.defects.append(Defect("json-not-coco", file, f"the file holds a {kind}, not an object{hint}"))
        return {key: [] for key in LISTS}
    found = {}
    for key in LISTS:
        value = tree.get(key)
        if not isinstance(value, list):
            is_what = f"is {shown(value)}, not a list" if key in tree else "is missing"
            content.defects.append(Defect("json-not-coco", file, f"the key '{key}' {is_what}"))
        elif not value and key != "annotations":
            content.defects.append(Defect("json-not-coco", file, f"the list '{key}' is empty"))
        found[key] = value if isinstance(value, list) else []
    return found


def _malformed(content: CocoContent, kind: str, place: int, message: str, annotation_id: Any = None) -> None:
    where = f"{kind} {place} (counted from 0)"
    content.defects.append(Defect("entry-malformed", str(content.path), f"{where}: {message}", annotation_id))


def _read_image(content: CocoContent, place: int, entry: Any) -> None:
    if not isinstance(entry, dict):
        return _malformed(content, "images", place, f"{shown(entry)} is no object")
    image_id, name = as_id(entry.get("id")), entry.get("file_name")
    width, height = (_side(entry.get(key)) for key in ("width", "height"))
    if image_id is None:
        return _malformed(content, "images", place, f"id is {shown(entry.get('id'))}, not a whole number or a string")
    if not isinstance(name, str):
        return _malformed(content, "images", place, f"file_name is {shown(name)}, not a string")
    if width is None or height is None:
        key = "width" if width is None else "height"
        _malformed(content, "images", place, f"{shown(name)}: {key} is {shown(entry.get(key))}, no size in pixels")
        width = height = None
    image = ImageEntry(place, image_id, name, width, height)
    content.images.append(image)
    content.image_of.setdefault(image_id, image)


def _side(value: Any) -> int | None:
    number = as_number(value)
    return int(number) if number is not None and 1 <= number <= 2**31 and number == int(number) else None


def _read_category(content: CocoContent, place: int, entry: Any) -> None:
    if not isinstance(entry, dict):
        return _malformed(content, "categories", place, f"{shown(entry)} is no object")
    category_id, name = as_id(entry.get("id")), entry.get("name")
    if not isinstance(category_id, int):
        return _malformed(content, "categories", place, f"id is {shown(entry.get('id'))}, not a whole number")
    if not isinstance(name, str):
        return _malformed(content, "categories", place, f"name is {shown(name)}, not a string")
    category = CategoryEntry(place, category_id, name)
    content.categories.append(category)
    content.category_of.setdefault(category_id, category)


def _read_annotation(content: CocoContent, place: int, entry: Any) -> None:
    if not isinstance(entry, dict):
        return _malformed(content, "annotations", place, f"{shown(entry)} is no object")
    annotation_id, crowd, area = as_id(entry.get("id")), entry.get("iscrowd"), entry.get("area")
    if annotation_id is None:
        _malformed(content, "annotations", place, f"id is {shown(entry.get('id'))}, not a whole number or a string")
    elif crowd not in (None, 0, 1):
        _malformed(content, "annotations", place, f"iscrowd is {shown(crowd)}, not 0 or 1", annotation_id)
    elif area is not None and as_number(area) is None:
        _malformed(content, "annotations", place, f"area is {shown(area)}, not a number", annotation_id)
    content.annotations.append(
        AnnotationEntry(
            place=place,
            id=annotation_id,
            image_id=as_id(entry.get("image_id")),
            category_id=as_id(entry.get("category_id")),
            box=as_box(entry.get("bbox")),
            written_box=entry.get("bbox"),
            area=as_number(area),
            crowd=crowd is True or crowd == 1,
            segmentation=entry.get("segmentation"),
        )
    )
    return None
