"""Segmentations of a COCO file: polygons that enclose nothing, run lengths of another size, areas that differ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.data.formats.coco.rle import SegmentationError, extent, polygons_runs, run_lengths, segmentation_mask
from densekit.doctor.boxes.boxes import ROUNDING, judge, overlaps, written
from densekit.doctor.boxes.layouts import ALL, PARTS
from densekit.doctor.coco.rows import AnnotationRow, CocoRows, ImageRow, annotation_defect
from densekit.doctor.defects import Box, Defect
from densekit.doctor.parallel import over_files

Mask = npt.NDArray[np.bool_]
Runs = npt.NDArray[np.int64]

_PARALLEL_FROM = 2000  # segmentations: fewer are drawn before processes have started
_MOST_PIXELS = 2**26  # of an image whose masks are drawn
_AREA = 0.1  # relative difference that is told, beyond a rim of one pixel
_BOX = 0.5  # IoU of box and mask below which one of them is false, where they
_PIXELS = 3  # are further apart than this


def segmentation_defects(rows: CocoRows, *, processes: int | None = 1, shown: bool = False) -> Iterator[Defect]:
    """What is wrong with each segmentation; each annotation is told once at most."""
    if parts := in_parts(rows):
        message = f"the polygons of all {parts} lie within 0..1: parts of the image, not pixels"
        yield Defect("segmentations_in_parts", str(rows.path), message, source=str(rows.path))
        return
    categories = {c.id for c in rows.categories}
    expected = sum(1 for a in rows.annotations if a.segmentation) > len(rows.annotations) / 2
    known = [a for a in rows.annotations if a.image_id in rows.images_by_id and a.category_id in categories]
    pairs = [(annotation, rows.images_by_id[annotation.image_id]) for annotation in known]
    if expected and len(pairs) >= _PARALLEL_FROM:
        judged = over_files(_judge, pairs, "segmentations", _died, processes=processes, shown=shown)
    else:
        judged = [_judge(pair) for pair in pairs]
    for annotation, found in zip(known, judged):
        if found is None and expected and not annotation.segmentation:
            found = "segmentation_missing", "it has no segmentation"
        if found is not None:
            yield annotation_defect(rows, annotation, *found)


def in_parts(rows: CocoRows) -> int:
    """How many annotations have polygons, where these are parts of the image: no polygon of pixels is that small."""
    largest = [
        max(map(abs, numbers))
        for annotation in rows.annotations
        if (numbers := _numbers(annotation.segmentation)) and annotation.image_id in rows.images_by_id
    ]
    small = sum(value <= PARTS for value in largest)
    return len(largest) if small and small >= ALL * len(largest) else 0


def _numbers(segmentation: Any) -> list[float]:
    """The numbers of the first polygon; nothing where there is none."""
    first = segmentation[0] if isinstance(segmentation, list) and segmentation else None
    return [v for v in first if isinstance(v, int | float)] if isinstance(first, list) else []


def _judge(pair: tuple[AnnotationRow, ImageRow]) -> tuple[str, str] | None:
    return judge_segmentation(*pair)


def _died(pair: tuple[AnnotationRow, ImageRow]) -> tuple[str, str]:
    return "segmentation_invalid", "the process that drew it was killed"


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
        runs = runs_of(value, image.height, image.width)
    except (SegmentationError, OverflowError) as error:
        return "segmentation_invalid", str(error)[:200]
    if annotation.crowd and isinstance(value, list):
        return "crowd_without_rle", "a crowd region drawn as polygons"
    return _against_mask(annotation, image, runs)


def drawn(segmentation: Any, width: int, height: int) -> Mask | None:
    """The mask, or None where there is none that can be drawn."""
    if not segmentation or width * height > _MOST_PIXELS:
        return None
    try:
        return segmentation_mask(segmentation, height, width)
    except (SegmentationError, OverflowError):
        return None


def runs_of(segmentation: Any, height: int, width: int) -> Runs:
    """Run lengths of a segmentation: all that its area and its extent need, many times cheaper than its mask.

    Raises:
        SegmentationError: as ``segmentation_mask``.
    """
    if isinstance(segmentation, list):
        runs = polygons_runs(segmentation, height, width)
    elif isinstance(segmentation, dict):
        runs = run_lengths(segmentation.get("counts"))
    else:
        raise SegmentationError("it is neither polygons nor run lengths")
    if (runs < 0).any() or runs.sum() != height * width:
        raise SegmentationError(f"its run lengths add up to {runs.sum()}, the image has {height * width} pixels")
    return runs


def mask_extent(annotation: AnnotationRow, image: ImageRow) -> Box | None:
    """The box around an annotation's mask; None where there is none that can be drawn."""
    if not annotation.segmentation or image.width * image.height > _MOST_PIXELS:
        return None
    try:
        return extent(runs_of(annotation.segmentation, image.height, image.width), image.height)
    except (SegmentationError, OverflowError):
        return None


def _against_mask(annotation: AnnotationRow, image: ImageRow, runs: Runs) -> tuple[str, str] | None:
    around = extent(runs, image.height)
    if around is None:
        return None  # thinner than a pixel
    if judge(annotation.box, image.width, image.height) is None and _apart(annotation.box, around):
        return "box_against_mask", f"box {written(annotation.box)}, but its segmentation spans {written(around)}"
    if annotation.area is None:
        return None
    if not math.isfinite(annotation.area):
        return "area_against_mask", f"area is {annotation.area:g}"
    area = int(runs[1::2].sum())
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
