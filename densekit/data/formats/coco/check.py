"""The rules that a COCO file must keep before anything is learned from it, as vectorised checks.

A file that breaks the structure (ids that occur twice or point nowhere, images without size) is refused, as are names
that leave the image folder (``images.py``). Boxes that are not finite, have no area, or lie wholly outside their image
are refused too, unless the data set's ``on_bad_box: drop`` says otherwise. A box that reaches beyond its image is fine:
it is cut at the edge when samples are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.data.formats.coco.columns import CocoColumns, Ids
from densekit.data.formats.coco.numbers import ByNumber
from densekit.types import DensekitError, nearest

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]

REMEDY = "correct it (tools/doctor.py names all defects, --fix writes a corrected file)"

OTHER_KIND = "annotations have an image_id that is a number where the image's id is a text, or the other way round"
"""The word for it in ``AnnotationColumns.odd``."""

BOX_RULES = {
    "box_not_finite": "holds NaN or infinity",
    "box_without_area": "has no area (width and height must be above 0)",
    "box_outside": "lies wholly outside its image",
}
"""What is wrong with a box, by the code that ``box_defects`` gives."""


def box_defects(boxes: npt.NDArray[np.float64], sizes: npt.NDArray[Any]) -> dict[str, Mask]:
    """Which boxes break which rule; each box breaks one at most.

    Args:
        boxes: [n, 4] (x, y, width, height).
        sizes: [n, 2] (height, width) of each box's image.

    Returns:
        For each code of ``BOX_RULES`` an [n] mask.
    """
    x, y, width, height = boxes.T
    finite = np.isfinite(boxes).all(1)
    with np.errstate(invalid="ignore", over="ignore"):
        empty = finite & ~((width > 0) & (height > 0))
        inside = (x < sizes[:, 1]) & (y < sizes[:, 0]) & (x + width > 0) & (y + height > 0)
    return {"box_not_finite": ~finite, "box_without_area": empty, "box_outside": finite & ~empty & ~inside}


def check_images(columns: CocoColumns) -> None:
    """Raise DensekitError where there is no image, an image id occurs twice, or a size is not positive."""
    path, images = columns.path, columns.images
    if len(images.ids) == 0:
        raise DensekitError(f"{path}: 'images' is empty; a data set needs at least one image")
    _unique(path, images.ids, "image")
    small = np.flatnonzero((images.widths < 1) | (images.heights < 1) | (images.widths * images.heights > 2**40))
    if len(small):
        i = small[0]
        raise DensekitError(
            f"{path}: image {_plain(images.ids[i])!r}: width {images.widths[i]} and height {images.heights[i]} "
            f"are no size in pixels; {REMEDY}"
        )


def check_annotations(columns: CocoColumns, labelled: bool = True) -> tuple[Indices, Indices]:
    """Look up each annotation's image and category; an ``image_id`` that is 1 also finds an image "1", and vice versa.

    Args:
        columns: of the file.
        labelled: whether there must be a category.

    Returns:
        For each annotation the position of its image and of its category in the file.

    Raises:
        DensekitError: an id occurs twice or is unknown, or ``iscrowd`` is neither 0 nor 1.
    """
    path, annotations = columns.path, columns.annotations
    _unique(path, columns.categories.ids, "category")
    _unique(path, annotations.ids, "annotation")
    if not columns.categories.ids and (labelled or len(annotations.ids)):
        raise DensekitError(f"{path}: 'categories' is empty; name at least one category")
    if not len(annotations.ids):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    categories = _positions(columns.categories.ids, annotations.category_ids)
    images = _positions(columns.images.ids, annotations.image_ids)
    if (images < 0).any():
        _find_by_number(columns, images)
    for what, found, wanted, known in (
        ("category", categories, annotations.category_ids, columns.categories.ids),
        ("image", images, annotations.image_ids, columns.images.ids),
    ):
        unknown = np.flatnonzero(found < 0)
        if len(unknown):
            value = _plain(wanted[unknown[0]])
            near = nearest(str(value), map(str, known[:1000]))
            raise DensekitError(
                f"{path}: annotation {_plain(annotations.ids[unknown[0]])!r}: {what}_id {value!r} is not among the "
                f"{_PLURAL[what]} of the file{_more(unknown)} ({near.rstrip('?')}); {REMEDY}"
            )
    _check_crowd(columns)
    return images, categories


def _find_by_number(columns: CocoColumns, images: Indices) -> None:
    """Fill in, where they are -1, the positions of images whose id is the same number in another kind."""
    known = columns.images.ids.tolist() if isinstance(columns.images.ids, np.ndarray) else columns.images.ids
    place = {image: i for i, image in enumerate(known)}
    by_number = ByNumber(known)
    for i in np.flatnonzero(images < 0).tolist():
        found = by_number.find(_plain(columns.annotations.image_ids[i]))
        if found is not None:
            images[i] = place[found]
            columns.annotations.odd.append(OTHER_KIND)


def bad_box_message(path: Path, code: str, annotation: Any, box: Sequence[float], name: str, count: int) -> str:
    """One line about a box that breaks a rule; ``count`` boxes break it in all."""
    more = f" (one of {count})" if count > 1 else ""
    values = ", ".join(f"{v:g}" for v in box)
    return (
        f"{path}: annotation {_plain(annotation)!r} (image {name!r}): box [{values}] (x, y, width, height) "
        f"{BOX_RULES[code]}{more}; {REMEDY}, or set on_bad_box: drop"
    )


_PLURAL = {"category": "categories", "image": "images"}


def _check_crowd(columns: CocoColumns) -> None:
    crowd = columns.annotations.crowd
    strange = np.flatnonzero((crowd != 0) & (crowd != 1))
    if len(strange):
        i = strange[0]
        name = _plain(columns.annotations.ids[i])
        raise DensekitError(
            f"{columns.path}: annotation {name!r}: iscrowd is {crowd[i]}, not 0 or 1{_more(strange)}; {REMEDY}"
        )


def _unique(path: Path, ids: Ids | list[int], what: str) -> None:
    if isinstance(ids, np.ndarray):
        ordered = np.sort(ids)
        twice = ordered[1:][ordered[1:] == ordered[:-1]].tolist()
    else:
        seen: set[Any] = set()
        twice = [v for v in ids if v in seen or seen.add(v)]  # type: ignore[func-returns-value]
    if twice:
        raise DensekitError(f"{path}: {what} id {twice[0]!r} occurs twice; ids must be unique; {REMEDY}")


def _positions(known: Ids | list[int], wanted: Ids) -> Indices:
    """Position of each wanted id among the known ones; -1 where it is not there."""
    if isinstance(known, list) and all(type(k) is int for k in known):
        known = np.array(known, np.int64)
    if isinstance(known, np.ndarray) and isinstance(wanted, np.ndarray):
        if len(wanted) > 1000 and known.min() >= 0 and known.max() < 2**24:  # a table is much faster than a search
            places = np.full(int(known.max()) + 2, -1)
            places[known] = np.arange(len(known))
            inside = (wanted >= 0) & (wanted <= known.max())
            return places[np.where(inside, wanted, len(places) - 1)]
        order = np.argsort(known, kind="stable")
        at = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
        return np.where(known[order[at]] == wanted, order[at], -1)
    table = {_plain(k): i for i, k in enumerate(known)}
    return np.array([table.get(_plain(w), -1) for w in wanted], np.int64)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _more(indices: Indices) -> str:
    return f" (one of {len(indices)} such annotations)" if len(indices) > 1 else ""
