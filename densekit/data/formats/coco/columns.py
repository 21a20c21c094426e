"""COCO's rows as the typed parser gives them, and the numpy columns that are kept of them."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from densekit.data.formats.coco.numbers import one_kind
from densekit.types import DensekitError

Id = int | str

_SEGMENTATION = b'"segmentation"'
ABSENT = msgspec.Raw()
"""Where an annotation has no segmentation."""

NUMBER_AS_TEXT = "numbers written as text are read as numbers"
NAME_FROM_ID = "categories without a name are called by their id"
"""Words in ``odd``."""


class ImageRow(msgspec.Struct, gc=False):
    """One entry of ``images``; other keys are not looked at."""

    id: Id
    file_name: str
    width: int
    height: int


class CategoryRow(msgspec.Struct, gc=False):
    """One entry of ``categories``."""

    id: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    name: str
    supercategory: Any = None


class AnnotationRow(msgspec.Struct, gc=False):
    """One entry of ``annotations``."""

    id: Id
    image_id: Id
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int | bool | None = 0
    area: float | None = None
    segmentation: msgspec.Raw = ABSENT


Ids = npt.NDArray[np.int64] | list[Id]
"""A column of ids: an array where all are integers, else a list as the file has them."""


@dataclasses.dataclass(slots=True)
class ImageColumns:
    """The ``images`` of a file, in file order; ``odd`` has a word for each value that was written unlike COCO's own."""

    ids: Ids
    file_names: list[str]
    widths: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int64]
    odd: list[str]


@dataclasses.dataclass(slots=True)
class CategoryColumns:
    """The ``categories`` of a file, in file order; ``odd`` as for images, ``parents`` is None where there is none."""

    ids: list[int]
    names: list[str]
    odd: list[str]
    parents: list[Any]


@dataclasses.dataclass(slots=True)
class AnnotationColumns:
    """The ``annotations`` of a file, in file order.

    Attributes:
        ids: annotation ids.
        image_ids: ids of their images, not looked up.
        category_ids: [n] ids of their categories, not looked up.
        boxes: [n, 4] (x, y, width, height) as written, NaN and infinity included.
        areas: [n]; NaN where the file gives none.
        crowd: [n] ``iscrowd`` as written; 0 where absent.
        segmentations: [n] position in the file just behind the key (or at the value); -1 where there is none.
        odd: a word for each value that was written unlike COCO's own.
    """

    ids: Ids
    image_ids: Ids
    category_ids: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.int64]
    segmentations: npt.NDArray[np.int64]
    odd: list[str]


@dataclasses.dataclass(slots=True)
class CocoColumns:
    """A COCO file as it is written."""

    path: Path
    images: ImageColumns
    categories: CategoryColumns
    annotations: AnnotationColumns


def image_columns(rows: list[ImageRow], odd: list[str], *_: Any) -> ImageColumns:
    """Columns of rows."""
    widths, heights = (_integers([getattr(r, side) for r in rows]) for side in ("width", "height"))
    return ImageColumns(_ids([r.id for r in rows]), [r.file_name for r in rows], widths, heights, odd)


def category_columns(rows: list[CategoryRow], odd: list[str], *_: Any) -> CategoryColumns:
    """Columns of rows; a category whose name is empty is called by its id, as one without a name is."""
    empty = [NAME_FROM_ID] * sum(not r.name for r in rows)
    names = [r.name or str(r.id) for r in rows]
    return CategoryColumns([r.id for r in rows], names, [*odd, *empty], [r.supercategory for r in rows])


def annotation_columns(rows: list[AnnotationRow], odd: list[str], piece: bytes, at: int) -> AnnotationColumns:
    """Columns of rows, with the bytes that they were decoded from and where in the file these stand."""
    return AnnotationColumns(
        ids=_ids([r.id for r in rows]),
        image_ids=_ids([r.image_id for r in rows]),
        category_ids=_integers([r.category_id for r in rows]),
        boxes=np.fromiter(itertools.chain.from_iterable([r.bbox for r in rows]), np.float64, 4 * len(rows)).reshape(
            -1, 4
        ),
        areas=np.array([np.nan if r.area is None else r.area for r in rows], np.float64),
        crowd=_integers([r.iscrowd or 0 for r in rows]),
        segmentations=_segmentations(rows, piece, at),
        odd=odd,
    )


def _segmentations(rows: list[AnnotationRow], piece: bytes, at: int) -> npt.NDArray[np.int64]:
    """Where each row's segmentation stands in the file; ``at`` is the position of the piece's first byte."""
    parts = piece.split(_SEGMENTATION)
    given = [r.segmentation is not ABSENT for r in rows]
    if len(parts) == len(rows) + 1 and all(given):  # one key a row, so each is the row's own
        lengths = np.fromiter(map(len, parts[:-1]), np.int64, len(rows))
        return at + np.cumsum(lengths + len(_SEGMENTATION))
    position, out = 0, np.full(len(rows), -1, np.int64)
    for i in np.flatnonzero(given):  # any later place with the same bytes decodes to the same value
        value = bytes(rows[i].segmentation)
        position = piece.index(value, position)
        out[i] = -1 if value == b"null" else at + position
        position += len(value)
    return out


def _ids(values: list[Id]) -> Ids:
    return values if str in set(map(type, values)) else _integers(values)


def _integers(values: list[Any]) -> npt.NDArray[np.int64]:
    try:
        return np.array(values, np.int64)
    except OverflowError:
        large = next(v for v in values if not -(2**63) <= v < 2**63)
        raise DensekitError(f"the number {large} is too large for 64 bits; correct the file") from None


def unmixed(images: ImageColumns) -> ImageColumns:
    """The same with ids of one kind, where numbers and texts are mixed and the texts are numbers too."""
    if isinstance(images.ids, list) and (ids := one_kind(images.ids)) != images.ids:
        texts = sum(isinstance(i, str) for i in images.ids)
        return dataclasses.replace(images, ids=_ids(ids), odd=[*images.odd, *[NUMBER_AS_TEXT] * texts])
    return images


Columns = TypeVar("Columns", ImageColumns, CategoryColumns, AnnotationColumns)


def joined(parts: list[Columns], none: Columns) -> Columns:
    """One set of columns of those of several pieces; ``none`` are the columns of no row."""
    if len(parts) < 2:
        return parts[0] if parts else none
    kind = type(none)
    return kind(*(_concatenated([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(kind)))


def _concatenated(columns: list[Any]) -> Any:
    if all(isinstance(c, np.ndarray) for c in columns):
        return np.concatenate(columns)
    return [v for c in columns for v in (c.tolist() if isinstance(c, np.ndarray) else c)]
