"""COCO's rows as the typed parser gives them, and the numpy columns that are kept of them."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from densekit.types import DensekitError

Id = int | str

_SEGMENTATION = b'"segmentation"'
_ABSENT = msgspec.Raw()


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


class AnnotationRow(msgspec.Struct, gc=False):
    """One entry of ``annotations``."""

    id: Id
    image_id: Id
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int | bool | None = 0
    area: float | None = None
    segmentation: msgspec.Raw = _ABSENT


Ids = npt.NDArray[np.int64] | list[Id]
"""A column of ids: an array where all are integers, else a list as the file has them."""


@dataclasses.dataclass(slots=True)
class ImageColumns:
    """The ``images`` of a file, in file order."""

    ids: Ids
    file_names: list[str]
    widths: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int64]


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
    """

    ids: Ids
    image_ids: Ids
    category_ids: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.int64]
    segmentations: npt.NDArray[np.int64]


@dataclasses.dataclass(slots=True)
class CocoColumns:
    """A COCO file as it is written."""

    path: Path
    images: ImageColumns
    category_ids: list[int]
    category_names: list[str]
    annotations: AnnotationColumns


def image_columns(rows: list[ImageRow]) -> ImageColumns:
    """Columns of rows."""
    widths, heights = ([getattr(r, side) for r in rows] for side in ("width", "height"))
    return ImageColumns(_ids([r.id for r in rows]), [r.file_name for r in rows], _integers(widths), _integers(heights))


def annotation_columns(rows: list[AnnotationRow], piece: bytes, at: int) -> AnnotationColumns:
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
    )


def _segmentations(rows: list[AnnotationRow], piece: bytes, at: int) -> npt.NDArray[np.int64]:
    """Where each row's segmentation stands in the file; ``at`` is the position of the piece's first byte."""
    parts = piece.split(_SEGMENTATION)
    given = [r.segmentation is not _ABSENT for r in rows]
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


Columns = TypeVar("Columns", ImageColumns, AnnotationColumns)


def joined(kind: type[Columns], parts: list[Columns]) -> Columns:
    """One set of columns of those of several pieces."""
    if not parts:
        return kind(*(_EMPTY[f.name] for f in dataclasses.fields(kind)))
    if len(parts) == 1:
        return parts[0]
    return kind(*(_concatenated([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(kind)))


def _concatenated(columns: list[Any]) -> Any:
    if all(isinstance(c, np.ndarray) for c in columns):
        return np.concatenate(columns)
    return [v for c in columns for v in (c.tolist() if isinstance(c, np.ndarray) else c)]


_INTEGERS = np.zeros(0, np.int64)
_EMPTY: dict[str, Any] = {
    **dict.fromkeys(("ids", "image_ids", "category_ids", "widths", "heights", "crowd", "segmentations"), _INTEGERS),
    "file_names": [],
    "boxes": np.zeros((0, 4)),
    "areas": np.zeros(0),
}
