"""Boxes of a COCO file: not finite, without area, outside of the image, or twice around the same object."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from densekit.doctor.coco.rows import AnnotationRow, CocoRows, ImageRow, annotation_defect
from densekit.doctor.defects import Box, Defect

SAME = 0.8
"""IoU from which on two boxes of a class in an image are taken for one object."""

ROUNDING = 0.1
"""Pixels that a box may reach beyond its image without a word: exports round."""

OFF_BY_ONE = 1.5
"""Pixels of reaching out up to which it is told as a shift of the coordinates."""

TINY = 2.0
"""Pixels of the shorter side below which a box is told."""

_MOST_NEIGHBOURS = 64  # that a box is compared with, and
_MOST_PAIRS = 500_000  # that are found: bounds for hostile files


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

    Where both have masks these must agree too: two objects may well fill the same box. Of one id they are told as that.
    """
    chosen, groups = [], []
    numbers: dict[tuple[int | str, int], int] = {}
    for annotation in rows.annotations:
        image = rows.images_by_id.get(annotation.image_id)
        if image is not None and not annotation.crowd and _is_usable(annotation, image):
            chosen.append(annotation)
            groups.append(numbers.setdefault((image.id, annotation.category_id), len(numbers)))
    boxes = np.array([a.box for a in chosen], np.float64).reshape(-1, 4)
    told: set[int] = set()
    for earlier, later, iou in alike(np.array(groups, np.int64), boxes):
        first, second = chosen[earlier], chosen[later]
        if later in told or first.id == second.id or _masks_differ(first, second, rows.images_by_id[first.image_id]):
            continue
        told.add(later)
        message = f"box {written(second.box)} and annotation {first.id!r} {written(first.box)}: IoU {iou:.2f}"
        yield annotation_defect(rows, second, "near_duplicate", message, (first.box,))


def alike(groups: npt.NDArray[np.int64], boxes: npt.NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """Pairs of boxes of one group that are ``SAME``.

    Boxes of a group are sorted by their left edge. Two with an IoU of ``SAME`` have left edges within (1 - SAME) of the
    first one's width, so each is compared with the few that follow it that closely.

    Args:
        groups: [n] such as a number from 0 on for each image and class.
        boxes: [n, 4] (x, y, width, height).

    Returns:
        (earlier position, later position, IoU), by the later position, the most alike first.
    """
    # One key sorts faster than two; beyond the clip the order hardly matters.
    order = np.argsort(groups * 1e6 + np.clip(boxes[:, 0], 0, 9e5))
    groups, boxes = groups[order], boxes[order]
    near = np.flatnonzero(groups[1:] == groups[:-1])
    found: list[tuple[int, int, float]] = []
    for step in range(1, _MOST_NEIGHBOURS):
        near = near[near + step < len(boxes)]
        first, second = boxes[near], boxes[near + step]
        close = (second[:, 0] - first[:, 0] <= (1 - SAME) * first[:, 2]) & (groups[near + step] == groups[near])
        near, first, second = near[close], first[close], second[close]
        if not len(near) or len(found) > _MOST_PAIRS:
            break
        iou = overlaps(first, second)
        for i in np.flatnonzero(iou >= SAME).tolist():
            pair = sorted((int(order[near[i]]), int(order[near[i] + step])))
            found.append((pair[0], pair[1], float(iou[i])))
    return sorted(found, key=lambda pair: (pair[1], -pair[2], pair[0]))


def overlaps(boxes: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[n] IoU of each pair of [n, 4] (x, y, width, height)."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    inner = np.clip(high - low, 0, None).prod(1)
    return np.asarray(inner / np.maximum(boxes[:, 2:].prod(1) + others[:, 2:].prod(1) - inner, 1e-9))


def written(box: Sequence[float]) -> str:
    """A box for people."""
    return "[" + ", ".join(f"{v:g}" for v in box) + "]"


def _is_usable(annotation: AnnotationRow, image: ImageRow) -> bool:
    found = judge(annotation.box, image.width, image.height)
    return found is None or found[0] in ("box_tiny", "box_off_by_one", "box_partly_outside")


def _masks_differ(first: AnnotationRow, second: AnnotationRow, image: ImageRow) -> bool:
    from densekit.doctor.coco.segmentations import drawn

    masks = [drawn(a.segmentation, image.width, image.height) for a in (first, second)]
    if masks[0] is None or masks[1] is None:
        return False
    both = np.logical_or(masks[0], masks[1]).sum()
    return bool(both) and float(np.logical_and(masks[0], masks[1]).sum() / both) < SAME - 0.2
