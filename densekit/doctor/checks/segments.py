"""Polygons, run lengths, crowds and areas of a COCO file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.data.rle import SegmentationError, run_lengths
from densekit.doctor.reader import AnnotationEntry, CocoContent, ImageEntry, as_number
from densekit.doctor.report import Box, Defect, shown

Region = tuple[float, Box]
"""Area in pixels, and the xyxy box around it."""


def check_segments(content: CocoContent, usable: set[int]) -> Iterator[Defect]:
    """Whatever is wrong with segmentations, crowds and areas; one code an annotation.

    Args:
        content: the file.
        usable: places of the annotations whose box can be learned from.
    """
    for annotation in content.annotations:
        image = content.image(annotation)
        found = find_defect(annotation, image) or _fit(annotation, image, annotation.place in usable)
        if found is None:
            continue
        code, message = found
        boxes = (annotation.xyxy,) if annotation.place in usable else ()
        yield Defect(code, image.name if image else str(content.path), message, annotation.id, boxes=boxes)


def find_defect(annotation: AnnotationEntry, image: ImageEntry | None) -> tuple[str, str] | None:
    """Code and message of what is wrong with a segmentation by itself."""
    segmentation = annotation.segmentation
    if annotation.crowd and not isinstance(segmentation, dict):
        what = "polygons" if segmentation else "no segmentation"
        return "crowd-without-rle", f"iscrowd is 1, but there are {what}"
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _run_length_defect(segmentation, image)
    if isinstance(segmentation, list):
        return next((found for polygon in segmentation if (found := _polygon_defect(polygon))), None)
    return "segmentation-malformed", f"{shown(segmentation)} is neither polygons nor run lengths"


def region_of(annotation: AnnotationEntry) -> Region | None:
    """Area and box of a sound segmentation; None where there is none, or nothing in it.

    Polygons count by their own geometry, which is within a pixel of what is drawn; several are taken as disjoint.
    """
    segmentation = annotation.segmentation
    if isinstance(segmentation, dict):
        return _run_length_region(run_lengths(segmentation["counts"]), int(segmentation["size"][0]))
    if not segmentation:
        return None
    points = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
    area = sum(_polygon_area(p) for p in points)
    every = np.concatenate(points)
    return (area, (*every.min(0).tolist(), *every.max(0).tolist())) if area > 0 else None


def area_tolerance(area: float) -> float:
    """How far an area may be from that of its mask: a quarter, and a pixel along the outline of a small object."""
    return 0.25 * area + 2 * math.sqrt(area)


def _polygon_defect(polygon: Any) -> tuple[str, str] | None:
    if not isinstance(polygon, list):
        return "segmentation-malformed", f"polygon {shown(polygon)} is no list of numbers"
    numbers = [as_number(v) for v in polygon]
    if any(v is None or not math.isfinite(v) for v in numbers):
        return "segmentation-malformed", f"polygon {shown(polygon)} holds something else than finite numbers"
    if len(polygon) < 6:
        return "polygon-too-few-points", f"polygon {shown(polygon)} has {len(polygon) / 2:g} points"
    if len(polygon) % 2:
        return "segmentation-malformed", f"polygon has {len(polygon)} numbers, an odd count of x and y"
    return None


def _run_length_defect(segmentation: dict[str, Any], image: ImageEntry | None) -> tuple[str, str] | None:
    size = segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(type(s) is int and 0 < s < 2**31 for s in size):
        return "segmentation-malformed", f"its size is {shown(size)}, not [height, width]"
    try:
        runs = run_lengths(segmentation.get("counts"))
    except SegmentationError as error:
        return "segmentation-malformed", str(error)
    if image is not None and image.width is not None and size != [image.height, image.width]:
        return (
            "rle-wrong-size",
            f"run lengths are for {size[1]} x {size[0]}, the image is {image.width} x {image.height}",
        )
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        return "segmentation-malformed", f"run lengths add up to {runs.sum()}, not to {size[0]} x {size[1]} pixels"
    return None


def _fit(annotation: AnnotationEntry, image: ImageEntry | None, usable: bool) -> tuple[str, str] | None:
    """Whether area, box and mask fit one another."""
    region, area = region_of(annotation), annotation.area
    if area is not None and not (math.isfinite(area) and area > 0) and usable:
        return "area-mismatch", f"area is {area:g}"
    if region is None:
        width, height = annotation.box[2:] if usable and annotation.box else (0.0, 0.0)
        if usable and area is not None and area > width * height + area_tolerance(width * height):
            return "area-mismatch", f"area is {area:g}, its whole box has {width * height:g}"
        return None
    if area is not None and usable and abs(area - region[0]) > area_tolerance(max(area, region[0])):
        return "area-mismatch", f"area is {area:g}, its mask has {region[0]:g}"
    if usable and not _encloses(annotation.xyxy, region[1]):
        around = ", ".join(f"{v:g}" for v in region[1])
        box = ", ".join(f"{v:g}" for v in annotation.xyxy)
        return "box-against-mask", f"box is ({box}), its mask spans ({around}) (x1, y1, x2, y2)"
    return None


def _encloses(box: Box, around: Box) -> bool:
    """Whether two boxes agree within 2 pixels and a tenth of their sides (COCO's own differ by 1 at most)."""
    sides = np.array([around[2] - around[0], around[3] - around[1]] * 2)
    return bool((np.abs(np.array(box) - around) <= 2 + 0.1 * sides).all())


def _polygon_area(points: npt.NDArray[np.float64]) -> float:
    """The shoelace formula."""
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _run_length_region(runs: npt.NDArray[np.int64], height: int) -> Region | None:
    """Of run lengths column by column, zeros first."""
    ends = np.cumsum(runs)
    starts, stops = ends[:-1:2], ends[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    if not len(starts):
        return None
    first, last = starts // height, (stops - 1) // height
    whole = bool((last > first).any())  # a run over the end of a column touches the bottom and the top
    top = 0 if whole else int((starts % height).min())
    bottom = height if whole else int(((stops - 1) % height).max()) + 1
    return float(runs[1::2].sum()), (float(first.min()), float(top), float(last.max()) + 1, float(bottom))
