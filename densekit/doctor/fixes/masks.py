"""What ``--fix`` does about boxes and segmentations: one is drawn from the other before an annotation goes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from densekit.data.formats.coco.rle import SegmentationError, extent, run_lengths, segmentation_mask
from densekit.doctor.coco.rows import ImageRow
from densekit.doctor.coco.segmentations import Mask, Runs
from densekit.doctor.defects import Box, Defect
from densekit.doctor.fixes.correction import Correction

_ROUNDED = 2  # pixels that a box and its mask may differ by


def box_from_mask(c: Correction, defect: Defect) -> None:
    """The box around the mask where there is one; else the annotation goes."""
    mask = c.mask(c.annotations[defect.row])
    around = None if mask is None else extent(run_lengths_of(mask), mask.shape[0])
    if around is None:
        c.drop("annotations", defect.row, defect)
    else:
        c.set("annotations", defect.row, "bbox", list(around), defect)


def swap_corners(c: Correction, defect: Defect) -> None:
    """Width and height above 0."""
    x, y, w, h = c.annotations[defect.row].box
    c.set("annotations", defect.row, "bbox", [min(x, x + w), min(y, y + h), abs(w), abs(h)], defect)


def cut_box(c: Correction, defect: Defect) -> None:
    """The part of the box that lies in the image."""
    annotation = c.annotations[defect.row]
    image = c.rows.images_by_id[annotation.image_id]
    x, y, w, h = annotation.box
    left, top = max(x, 0.0), max(y, 0.0)
    box = [left, top, min(x + w, image.width) - left, min(y + h, image.height) - top]
    c.set("annotations", defect.row, "bbox", box, defect)
    if annotation.area is not None and not annotation.segmentation:
        c.set("annotations", defect.row, "area", box[2] * box[3], defect)


def count_area(c: Correction, defect: Defect) -> None:
    """The pixels of the mask; of the box where there is none."""
    annotation = c.annotations[defect.row]
    mask = c.mask(annotation)
    area = annotation.box[2] * annotation.box[3] if mask is None else float(mask.sum())
    c.set("annotations", defect.row, "area", area, defect)


def polygon_too_short(c: Correction, defect: Defect) -> None:
    """Points in brackets of their own as one flat list; else the other polygons; else the box."""
    polygons = c.annotations[defect.row].segmentation
    kept = _flattened(polygons) or [p for p in polygons if not (isinstance(p, list) and len(p) < 6)]
    if kept:
        c.set("annotations", defect.row, "segmentation", kept, defect)
    else:
        box_as_mask(c, defect)


def mended_mask(c: Correction, defect: Defect) -> None:
    """The same points or run lengths written as COCO does, where they can be; else the box."""
    annotation = c.annotations[defect.row]
    image = c.rows.images_by_id.get(annotation.image_id)
    value = annotation.segmentation
    if image is not None:
        for mended in (_flattened(value), _of_size(value, image, annotation.box)):
            if mended is not None and _is_drawn(mended, image):
                c.set("annotations", defect.row, "segmentation", mended, defect)
                return
    box_as_mask(c, defect)


def _flattened(value: Any) -> list[list[float]] | None:
    """Polygons of a flat list of coordinates, or of lists of points; None where it is neither."""
    if not isinstance(value, list) or not value:
        return None
    polygons = [value] if not isinstance(value[0], list) or _is_point(value[0]) else value
    flat = [
        [v for point in p for v in (point if _is_point(point) else [point])] for p in polygons if isinstance(p, list)
    ]
    sound = all(len(p) >= 6 and all(isinstance(v, int | float) for v in p) for p in flat)
    return flat if sound and flat != value else None


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value)


def _of_size(value: Any, image: ImageRow, box: Box) -> dict[str, Any] | None:
    """Run lengths with the image's size, where they fill the box then: only their size was written otherwise."""
    if not isinstance(value, dict):
        return None
    try:
        runs = run_lengths(value.get("counts"))
    except SegmentationError:
        return None
    around = extent(runs, image.height) if runs.sum() == image.height * image.width else None
    if around is None or max(abs(a - b) for a, b in zip(around, box)) > _ROUNDED:
        return None
    return {**value, "size": [image.height, image.width]}


def _is_drawn(value: Any, image: ImageRow) -> bool:
    try:
        return bool(segmentation_mask(value, image.height, image.width).any())
    except (SegmentationError, OverflowError):
        return False


def box_as_mask(c: Correction, defect: Defect) -> None:
    """The box as a polygon; of a crowd as run lengths."""
    annotation = c.annotations[defect.row]
    if not all(map(math.isfinite, annotation.box)) or min(annotation.box[2:]) <= 0:
        return  # the box goes or changes first
    if annotation.crowd:
        as_runs(c, defect)
        return
    x, y, w, h = annotation.box
    c.set("annotations", defect.row, "segmentation", [[x, y, x + w, y, x + w, y + h, x, y + h]], defect)


def as_runs(c: Correction, defect: Defect) -> None:
    """Run lengths of the polygons, or of the box."""
    annotation = c.annotations[defect.row]
    image = c.rows.images_by_id[annotation.image_id]
    mask = c.mask(annotation)
    mask = _filled(annotation.box, image) if mask is None else mask
    if mask is None:
        c.drop("annotations", defect.row, defect)
        return
    value = {"size": [image.height, image.width], "counts": run_lengths_of(mask).tolist()}
    c.set("annotations", defect.row, "segmentation", value, defect)


def run_lengths_of(mask: Mask) -> Runs:
    """Lengths of the runs of False and True in turn, column by column."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], edges, [mask.size])))
    return np.concatenate(([0], runs)) if flat[0] else runs


def _filled(box: Box, image: ImageRow) -> Mask | None:
    if image.width * image.height > 2**26 or not all(map(math.isfinite, box)):
        return None
    x1, y1, x2, y2 = (round(v) for v in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    mask = np.zeros((image.height, image.width), np.bool_)
    mask[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
    return mask


def crowd_flag(c: Correction, defect: Defect) -> None:
    """1 for what means true, else 0."""
    crowd = c.annotations[defect.row].crowd
    c.set("annotations", defect.row, "iscrowd", int(str(crowd).lower() in ("1", "true", "1.0")), defect)
