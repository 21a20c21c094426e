"""What ``--fix`` does about defects of a set as a whole: every annotation is written anew, in the same way."""

from __future__ import annotations

import numpy as np

from densekit.doctor.boxes.layouts import judge_layout
from densekit.doctor.boxes.sets import of_rows
from densekit.doctor.defects import Defect
from densekit.doctor.fixes.correction import Correction


def write_as_coco(c: Correction, defect: Defect) -> None:
    """Boxes as x, y, width, height in pixels, where one way of writing alone fits them."""
    boxes = of_rows(c.rows)
    verdict = judge_layout(boxes.boxes, boxes.sizes, boxes.around)
    if verdict is None or len(verdict.layouts) != 1:
        return
    for annotation in c.rows.annotations:
        image = c.rows.images_by_id.get(annotation.image_id)
        box = np.array([annotation.box], np.float64)
        if image is not None and np.isfinite(box).all():
            size = np.array([(image.height, image.width)], np.float64)
            (new,) = verdict.layouts[0].as_coco(box, size).round(6).tolist()
            c.set("annotations", annotation.row, "bbox", new, defect)


def write_polygons(c: Correction, defect: Defect) -> None:
    """Polygons in pixels."""
    for annotation in c.rows.annotations:
        image = c.rows.images_by_id.get(annotation.image_id)
        if image is None or not isinstance(annotation.segmentation, list):
            continue
        sides = (image.width, image.height)
        polygons = [
            [v * sides[i % 2] if isinstance(v, int | float) else v for i, v in enumerate(polygon)]
            if isinstance(polygon, list)
            else polygon
            for polygon in annotation.segmentation
        ]
        c.set("annotations", annotation.row, "segmentation", polygons, defect)


def write_areas(c: Correction, defect: Defect) -> None:
    """The pixels of each mask, or of the box where there is none."""
    for annotation in c.rows.annotations:
        mask = c.mask(annotation)
        area = annotation.box[2] * annotation.box[3] if mask is None else float(mask.sum())
        if np.isfinite(area) and area > 0:
            c.set("annotations", annotation.row, "area", area, defect)
