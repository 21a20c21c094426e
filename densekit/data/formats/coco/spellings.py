"""COCO's rows as other programs write them, read as the rows that they stand for.

The typed parser reads a file as COCO writes it; a piece that it refuses comes here, which is slower. What means one
thing is read: whole numbers as floats, numbers as text, a box that is missing beside a segmentation, a category
without a name, LVIS's ``coco_url`` in place of a file name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import UNSET

from densekit.data.formats.coco.columns import (
    ABSENT,
    NAME_FROM_ID,
    NUMBER_AS_TEXT,
    AnnotationRow,
    CategoryRow,
    Id,
    ImageRow,
)
from densekit.data.formats.coco.numbers import real, whole
from densekit.data.formats.coco.rle import Box, SegmentationError, segmentation_box

BOX_FROM_MASK = "annotations without a box have the one around their segmentation"
NAME_FROM_URL = "images without a file_name have the end of their coco_url"


class AnyImage(msgspec.Struct, gc=False):
    """One entry of ``images``, whatever its values."""

    id: Any = UNSET
    file_name: Any = UNSET
    coco_url: Any = UNSET
    width: Any = UNSET
    height: Any = UNSET


class AnyCategory(msgspec.Struct, gc=False):
    """One entry of ``categories``, whatever its values."""

    id: Any = UNSET
    name: Any = UNSET
    supercategory: Any = None


class AnyAnnotation(msgspec.Struct, gc=False):
    """One entry of ``annotations``, whatever its values."""

    id: Any = UNSET
    image_id: Any = UNSET
    category_id: Any = UNSET
    bbox: Any = UNSET
    iscrowd: Any = UNSET
    area: Any = UNSET
    segmentation: msgspec.Raw = ABSENT


class SpellingError(ValueError):
    """What is wrong with a value of a row: (key, words)."""


def image_row(row: AnyImage, odd: list[str]) -> ImageRow:
    """The image that an entry stands for; what was written otherwise is added to ``odd``."""
    name = file_name_of(row.file_name, row.coco_url, odd)
    return ImageRow(id_of(row.id, "id"), name, whole_of(row.width, "width", odd), whole_of(row.height, "height", odd))


def category_row(row: AnyCategory, odd: list[str]) -> CategoryRow:
    """The category that an entry stands for."""
    number = whole_of(row.id, "id", odd)
    return CategoryRow(number, category_name_of(row.name, number, odd), row.supercategory)


def annotation_row(row: AnyAnnotation, odd: list[str]) -> AnnotationRow:
    """The annotation that an entry stands for."""
    given = row.segmentation is not ABSENT and bytes(row.segmentation) != b"null"
    return AnnotationRow(
        id_of(row.id, "id"),
        id_of(row.image_id, "image_id"),
        whole_of(row.category_id, "category_id", odd),
        box_of(row.bbox, lambda: msgspec.json.decode(row.segmentation) if given else None, odd),
        0 if row.iscrowd is UNSET or row.iscrowd is None else whole_of(row.iscrowd, "iscrowd", odd, flag=True),
        None if row.area is UNSET or row.area is None else real_of(row.area, "area", odd),
        row.segmentation,
    )


def file_name_of(value: Any, url: Any, odd: list[str]) -> str:
    """A file name; where there is none, the end of the image's address: ``train2017/000000000009.jpg``."""
    if (value is UNSET or value == "") and isinstance(url, str):
        odd.append(NAME_FROM_URL)
        return "/".join(unquote(url).split("/")[-2:])
    if not isinstance(value, str) or not value:
        raise SpellingError("file_name", "it is missing" if value is UNSET else "expected a text")
    return value


def category_name_of(value: Any, number: int, odd: list[str]) -> str:
    """A name; where there is none, the id."""
    if value is UNSET or value is None or value == "":
        odd.append(NAME_FROM_ID)
        return str(number)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SpellingError("name", "expected a text")
    return str(value)


def id_of(value: Any, key: str) -> Id:
    """An id: any text, or a whole number."""
    return value if isinstance(value, str) else whole_of(value, key, [])


def whole_of(value: Any, key: str, odd: list[str], *, flag: bool = False) -> int:
    """A whole number, also as float or as text; of a ``flag`` also true and false."""
    number = whole(value) if isinstance(value, int | float | str) and (flag or not isinstance(value, bool)) else None
    if number is None:
        large = isinstance(value, int | float) and abs(value) >= 2**63
        raise SpellingError(key, "it is missing" if value is UNSET else _TOO_LARGE if large else "expected an integer")
    if isinstance(value, str):
        odd.append(NUMBER_AS_TEXT)
    return number


def real_of(value: Any, key: str, odd: list[str]) -> float:
    """A number, also as text."""
    number = real(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    if number is None:
        raise SpellingError(key, "it is missing" if value is UNSET else "expected a number")
    if isinstance(value, str):
        odd.append(NUMBER_AS_TEXT)
    return number


def box_of(value: Any, segmentation: Callable[[], Any], odd: list[str]) -> Box:
    """Four numbers, also as text; without any, the box around the segmentation."""
    if value is UNSET or value is None or value == []:
        try:
            box = segmentation_box(segmentation())
        except SegmentationError as error:
            what = "it is missing" if value is UNSET else "it is empty"
            raise SpellingError("bbox", f"{what}, and cannot be taken from a segmentation ({error})") from None
        odd.append(BOX_FROM_MASK)
        return box
    if not isinstance(value, list) or len(value) != 4:
        raise SpellingError("bbox", "expected four numbers (x, y, width, height)")
    x, y, width, height = (real_of(v, "bbox", odd) for v in value)
    return x, y, width, height


_TOO_LARGE = "it is too large for 64 bits"


def spelled_rows(rows: Sequence[Any], convert: Callable[[Any, list[str]], Any]) -> tuple[list[Any], list[str]]:
    """Rows that entries stand for, and a word for each value that was written otherwise.

    Raises:
        msgspec.ValidationError: as the typed parser words it: the position of the row, the key, and what is wrong.
    """
    out, odd = [], list[str]()
    for i, row in enumerate(rows):
        try:
            out.append(convert(row, odd))
        except SpellingError as error:
            key, words = error.args
            raise msgspec.ValidationError(f"{words} - at `$[{i}].{key}`") from None
    return out, odd
