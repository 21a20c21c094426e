"""Segmentations of a COCO file: polygons that enclose nothing, run lengths of another size, areas that differ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.data.rle import SegmentationError, segmentation_mask
from densekit.doctor.boxes import ROUNDING, judge, overlaps, written
from densekit.doctor.coco_rows import AnnotationRow, CocoRows, ImageRow, annotation_defect
from densekit.doctor.defects import Box, Defect

Mask = npt.NDArray[np.bool_]

_MOST_PIXELS = 2**26  # of an image whose masks are drawn
_AREA = 0.1  # relative difference that is told, beyond a rim of one pixel
_BOX = 0.5  # IoU of box and mask below which one of them is false, where they
_PIXELS = 3  # are further apart than this


def segmentation_defects(rows: CocoRows) -> Iterator[Defect]:
    """What is wrong with each segmentation; each annotation is told once at most."""
    categories = {c.id for c in rows.categories}
    expected = sum(1 for a in rows.annotations if a.segmentation) > len(rows.annotations) / 2
    for annotation in rows.annotations:
        image = rows.images_by_id.get(annotation.image_id)
        if image is None or annotation.category_id not in categories:
            continue
        found = judge_segmentation(annotation, image)
        if found is None and expected and not annotation.segmentation:
            found = "segmentation_missing", "it has no segmentation"
        if found is not None:
            yield annotation_defect(rows, annotation, *found)


def judge_segmentation(annotation: AnnotationRow, image: ImageRow) -> tuple[str, str] | None:
    """Code and message of what is wrong with a segmentation, its crowd flag, area and box."""
    value = annotation.segmentation
    if annotation.crowd not in (0, 1):
        return "crowd_flag", f"iscrowd is {annotation.crowd!r}"
    if not value:
        return (
            ("crowd_without_rle", "a crowd region without any segmentation") if annotation.crowd else _area(annotation)
        )
    if isinstance(value, dict) and value.get("size") != [image.height, image.width]:
        return "rle_size", f"run lengths of size {value.get('size')!r}"[
            :120
        ] + f", the image is {[image.height, image.width]}"
    if isinstance(value, list) and (short := [p for p in value if isinstance(p, list) and len(p) < 6]):
        return "polygon_too_short", f"a polygon has {len(short[0])} numbers; it needs x and y of three points or more"
    if image.width * image.height > _MOST_PIXELS:
        return None
    try:
        mask = segmentation_mask(value, image.height, image.width)
    except (SegmentationError, OverflowError) as error:
        return "segmentation_invalid", str(error)[:200]
    if annotation.crowd and isinstance(value, list):
        return "crowd_without_rle", "a crowd region drawn as polygons"
    return _against_mask(annotation, image, mask)


def drawn(segmentation: Any, width: int, height: int) -> Mask | None:
    """The mask, or None where there is none that can be drawn."""
    if not segmentation or width * height > _MOST_PIXELS:
        return None
    try:
        return segmentation_mask(segmentation, height, width)
    except (SegmentationError, OverflowError):
        return None


def extent(mask: Mask) -> Box | None:
    """The box around a mask; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    x, y = float(columns[0]), float(rows[0])
    return x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y


def _against_mask(annotation: AnnotationRow, image: ImageRow, mask: Mask) -> tuple[str, str] | None:
    around = extent(mask)
    if around is None:
        return None  # thinner than a pixel
    if judge(annotation.box, image.width, image.height) is None and _apart(annotation.box, around):
        return "box_against_mask", f"box {written(annotation.box)}, but its segmentation spans {written(around)}"
    if annotation.area is None:
        return None
    if not math.isfinite(annotation.area):
        return "area_against_mask", f"area is {annotation.area:g}"
    area = int(mask.sum())
    rim = around[2] + around[3]  # polygons and pixels differ by half a pixel all around
    if abs(annotation.area - area) > _AREA * area + rim:
        return "area_against_mask", f"area is {annotation.area:g}, its segmentation has {area} pixels"
    return None


def _apart(box: Box, around: Box) -> bool:
    """Boxes and polygons are rounded differently: a few pixels are no defect, nor is a small part of a large object."""
    if overlaps(np.array([box]), np.array([around]))[0] >= _BOX:
        return False
    ends = ((box[0], around[0]), (box[1], around[1]), (box[0] + box[2], around[0] + around[2]))
    return max(*(abs(a - b) for a, b in ends), abs(box[1] + box[3] - around[1] - around[3])) > _PIXELS


def _area(annotation: AnnotationRow) -> tuple[str, str] | None:
    """Without a mask the area can be no larger than the box."""
    area, (_, _, w, h) = annotation.area, annotation.box
    if area is None or not math.isfinite(w * h) or w <= 0 or h <= 0:
        return None
    if not math.isfinite(area) or area < 0 or area > (w + 1 + ROUNDING) * (h + 1 + ROUNDING):
        return "area_against_mask", f"area is {area:g}, its box has {w * h:g} pixels"
    return None
