"""The boxes of a set, judged together: sets from which nothing can be learned, or only something false.

The same findings are made by the examination and, from columns that are in memory anyway, at the start of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from densekit.data.formats.coco.file import CocoFile
from densekit.doctor.boxes.layouts import Verdict, judge_layout
from densekit.doctor.coco.rows import AnnotationRow, CocoRows, ImageRow
from densekit.doctor.coco.segmentations import mask_extent

Floats = npt.NDArray[np.float64]

UNMEASURED = ("no_objects", "crowds_alone")
"""Codes of sets on which no AP is defined."""

NOTHING = ("box_layout", "boxes_of_other_images", "boxes_without_area", *UNMEASURED)
"""Codes of sets from which a detector would learn nothing, or something false: it is better not trained at all."""

SPOILT = ("box_layout", "box_layout_unlikely", "boxes_of_other_images", "boxes_without_area")
"""Codes after which findings about single boxes would only repeat what was said."""

MOSTLY = 0.9
"""Part of the boxes from which on a defect is one of the set, not of its boxes."""

_ENOUGH = 5  # areas that are compared
_MASKS = 300  # masks that boxes are compared with


@dataclasses.dataclass(frozen=True, slots=True)
class BoxSet:
    """Boxes as columns.

    Attributes:
        names: of the classes.
        labels: [n] positions in ``names``.
        boxes: [n, 4] as written.
        sizes: [n, 2] (height, width) of each box's image.
        crowd: [n] regions of many objects.
        areas: [n] as the file gives them; NaN where it gives none.
        images: how many there are.
        around: [n, 4] (x, y, width, height) around masks, NaN where there is none or it was not looked at; None: none.
        whole: False where annotations were left out that make no sense.
    """

    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    boxes: Floats
    sizes: Floats
    crowd: npt.NDArray[np.bool_]
    areas: Floats
    images: int
    around: Floats | None = None
    whole: bool = True


def of_rows(rows: CocoRows) -> BoxSet:
    """The boxes whose image and class are known."""
    names = {c.id: c.name for c in rows.categories}
    places = {category: place for place, category in enumerate(names)}
    pairs = [
        (annotation, rows.images_by_id[annotation.image_id])
        for annotation in rows.annotations
        if annotation.image_id in rows.images_by_id and annotation.category_id in places
    ]
    return BoxSet(
        tuple(names.values()),
        np.array([places[a.category_id] for a, _ in pairs], np.int64),
        np.array([a.box for a, _ in pairs], np.float64).reshape(-1, 4),
        np.array([(i.height, i.width) for _, i in pairs], np.float64).reshape(-1, 2),
        np.array([a.crowd == 1 for a, _ in pairs], np.bool_),
        np.array([np.nan if a.area is None else a.area for a, _ in pairs], np.float64),
        len(rows.images),
        _around(pairs),
        len(pairs) == len(rows.content.get("annotations") or ()),
    )


def of_columns(file: CocoFile) -> BoxSet:
    """The boxes of a file that training has opened."""
    boxes = np.asarray(file.boxes, np.float64)
    sizes = np.asarray(file.sizes[file.owners], np.float64)
    labels, crowd = np.asarray(file.labels), np.asarray(file.crowd)
    return BoxSet(file.classes.names, labels, boxes, sizes, crowd, np.asarray(file.areas), len(file))


def _around(pairs: list[tuple[AnnotationRow, ImageRow]]) -> Floats | None:
    """What the masks of some of the annotations span."""
    places = [k for k, (annotation, _) in enumerate(pairs) if annotation.segmentation and not annotation.crowd]
    found = np.full((len(pairs), 4), np.nan)
    for k in places[:: -(-len(places) // _MASKS) or 1]:
        extent = mask_extent(*pairs[k])
        if extent is not None:
            found[k] = extent
    return found if places else None


def findings(boxes: BoxSet) -> Iterator[tuple[str, str]]:
    """Codes and messages of what is wrong with the set as a whole; the causes of others first."""
    if not len(boxes.boxes):
        if boxes.whole and boxes.images:
            yield "no_objects", f"none of the {boxes.images} images has an annotation"
        return
    verdict = judge_layout(boxes.boxes, boxes.sizes, boxes.around)
    if verdict is not None:
        yield _of_layout(verdict, len(boxes.boxes))
    yield from _without_area(boxes)
    yield from _crowds(boxes)
    if verdict is None:
        yield from _areas(boxes)


def _of_layout(verdict: Verdict, count: int) -> tuple[str, str]:
    if not verdict.layouts:
        return "boxes_of_other_images", (
            f"{verdict.misfits} of {count} boxes have their centre outside of their image; they reach "
            f"{verdict.reach[0]:.1f} times its width and {verdict.reach[1]:.1f} times its height"
        )
    words = " or ".join(layout.words for layout in verdict.layouts)
    if not verdict.sure:
        return "box_layout_unlikely", f"all {count} boxes lie in the corner of their images, as if they were {words}"
    read = "read as x, y, width, height in pixels"
    wrong = f"{read}, {verdict.misfits} of {count} do not fit their images or masks"
    if verdict.layouts[0].whole == 1:
        wrong = f"{read}, all {count} lie within the first pixel"
    return "box_layout", f"the boxes are written as {words}; {wrong}"


def _without_area(boxes: BoxSet) -> Iterator[tuple[str, str]]:
    """Boxes that are points or lines, nearly all of them; where masks are there, boxes can be drawn around these."""
    sides, count = boxes.boxes[:, 2:], len(boxes.boxes)
    none = count - int((sides > 0).all(1).sum())
    if none >= MOSTLY * count and not (sides < 0).any() and boxes.around is None:
        yield "boxes_without_area", f"{none} of {count} boxes have a width or height of 0, or none at all"


def _crowds(boxes: BoxSet) -> Iterator[tuple[str, str]]:
    crowds, count = int(boxes.crowd.sum()), len(boxes.boxes)
    if crowds == count:
        yield "crowds_alone", f"all {count} objects are crowds (iscrowd 1)"
        return
    if crowds >= MOSTLY * count:
        yield "crowds_mostly", f"{crowds} of {count} objects are crowds (iscrowd 1); a detector learns from the others"
    objects = np.bincount(boxes.labels[~boxes.crowd], minlength=len(boxes.names))
    for name, own, rest in zip(boxes.names, objects, np.bincount(boxes.labels, minlength=len(boxes.names))):
        if rest and not own:
            yield "class_of_crowds", f"all {rest} objects of class {name!r} are crowds (iscrowd 1)"


def _areas(boxes: BoxSet) -> Iterator[tuple[str, str]]:
    """Areas that converters filled in: one number for all, or those of boxes of another resolution."""
    sides, areas = boxes.boxes[:, 2:], boxes.areas
    known = np.isfinite(areas) & np.isfinite(sides).all(1) & (sides > 0).all(1)
    areas, own = areas[known], sides[known].prod(1)
    if len(areas) < _ENOUGH:
        return
    pixels = boxes.sizes[known].prod(1)
    if np.ptp(areas) == 0:
        if np.ptp(own) > 0.1 * own.max() or abs(areas[0] - own[0]) > 0.5 * own[0]:
            range_ = f"{own.min():g}" + (f" to {own.max():g}" if np.ptp(own) else "")
            yield "area_of_set", f"the area of all {len(areas)} is {areas[0]:g}, but their boxes have {range_} pixels"
    elif _constant(ratio := areas / own) and abs(np.median(ratio) - 1) > 0.15:
        yield "area_of_set", f"the areas of all {len(areas)} are {np.median(ratio):.3g} times those of their boxes"
    elif _constant(ratio := areas * pixels / own) and abs(np.median(ratio) - 1) < 0.15:
        yield "area_of_set", f"the areas of all {len(areas)} are parts of their image (0..1), not pixels"


def _constant(values: Floats) -> bool:
    low, middle, high = np.quantile(values, [0.02, 0.5, 0.98])
    return bool(high - low <= 0.02 * abs(middle))
