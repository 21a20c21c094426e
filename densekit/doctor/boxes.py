"""Boxes of a COCO file: not finite, without area, outside of the image, or twice around the same object."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from densekit.doctor.coco_rows import AnnotationRow, CocoRows, ImageRow, annotation_defect
from densekit.doctor.defects import Box, Defect

SAME = 0.8
"""IoU from which on two boxes of a class in an image are taken for one object."""

ROUNDING = 0.1
"""Pixels that a box may reach beyond its image without a word: exports round."""

OFF_BY_ONE = 1.5
"""Pixels of reaching out up to which it is told as a shift of the coordinates."""

TINY = 2.0
"""Pixels of the shorter side below which a box is told."""


def box_defects(rows: CocoRows) -> Iterator[Defect]:
    """What is wrong with single boxes; each box is told once at most."""
    categories = {c.id for c in rows.categories}
    for annotation in rows.annotations:
        image = rows.images_by_id.get(annotation.image_id)
        if image is not None and annotation.category_id in categories:
            found = judge(annotation.box, image.width, image.height)
            if found is not None:
                code, message = found
                yield annotation_defect(rows, annotation, code, f"box {written(annotation.box)} {message}")


def judge(box: Box, width: int, height: int) -> tuple[str, str] | None:
    """The code of what is wrong with a box in an image, and the words that follow the box in the message."""
    x, y, w, h = box
    if not all(math.isfinite(v) for v in box):
        return "box_not_finite", "holds NaN or infinity"
    if w < 0 or h < 0:
        return "box_negative", f"has a width of {w:g} and a height of {h:g}"
    if w == 0 or h == 0:
        return "box_without_area", "has no area"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "box_outside", f"lies wholly outside of the image of {width} x {height}"
    out = max(-x, -y, x + w - width, y + h - height)
    if out <= ROUNDING:
        return ("box_tiny", "is smaller than 2 px") if min(w, h) < TINY else None
    code = "box_off_by_one" if out <= OFF_BY_ONE else "box_partly_outside"
    return code, f"reaches {out:g} px beyond the image of {width} x {height}"


def near_duplicates(rows: CocoRows) -> Iterator[Defect]:
    """Pairs of boxes of one class in one image that all but cover each other; the later one is told, once.

    Where both have masks these must agree too: two objects may well fill the same box.
    """
    groups: dict[tuple[int | str, int], list[AnnotationRow]] = defaultdict(list)
    for annotation in rows.annotations:
        image = rows.images_by_id.get(annotation.image_id)
        if image is not None and not annotation.crowd and _is_usable(annotation, image):
            groups[annotation.image_id, annotation.category_id].append(annotation)
    for group in groups.values():
        boxes = np.array([a.box for a in group])
        for later, earlier, overlap in pairs_alike(boxes):
            first, second = group[earlier], group[later]
            if _masks_differ(first, second, rows.images_by_id[first.image_id]):
                continue
            message = f"box {written(second.box)} and annotation {first.id!r} {written(first.box)}: IoU {overlap:.2f}"
            yield annotation_defect(rows, second, "near_duplicate", message, (first.box,))


def pairs_alike(boxes: npt.NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """Boxes that are ``SAME`` as an earlier one: (position, the most alike earlier position, IoU).

    Args:
        boxes: [n, 4] (x, y, width, height) of one class in one image.
    """
    found = []
    for later in range(1, len(boxes)):
        overlaps = overlap(boxes[later], boxes[:later])
        best = int(overlaps.argmax())
        if overlaps[best] >= SAME:
            found.append((later, best, float(overlaps[best])))
    return found


def overlap(box: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """IoU of a box with each of the others; (x, y, width, height)."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    inner = np.clip(high - low, 0, None).prod(1)
    return np.asarray(inner / np.maximum(box[2] * box[3] + others[:, 2:].prod(1) - inner, 1e-9))


def written(box: Sequence[float]) -> str:
    """A box for people."""
    return "[" + ", ".join(f"{v:g}" for v in box) + "]"


def _is_usable(annotation: AnnotationRow, image: ImageRow) -> bool:
    found = judge(annotation.box, image.width, image.height)
    return found is None or found[0] in ("box_tiny", "box_off_by_one", "box_partly_outside")


def _masks_differ(first: AnnotationRow, second: AnnotationRow, image: ImageRow) -> bool:
    from densekit.doctor.segmentations import drawn

    masks = [drawn(a.segmentation, image.width, image.height) for a in (first, second)]
    if masks[0] is None or masks[1] is None:
        return False
    both = np.logical_or(masks[0], masks[1]).sum()
    return bool(both) and float(np.logical_and(masks[0], masks[1]).sum() / both) < SAME - 0.2
