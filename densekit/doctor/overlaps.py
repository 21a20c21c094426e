"""Pairs of boxes that nearly coincide, without looking at all pairs: under a second for all of COCO."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def near_pairs(groups: Ints, boxes: Floats, threshold: float) -> tuple[Ints, Ints, Floats]:
    """Pairs of boxes of the same group whose IoU reaches a threshold.

    Sorted by group and left edge, partners stand close together: with IoU t the left edges differ by at most 1 - t of
    the left box's width, so each box is compared with its next neighbours until none is near enough.

    Args:
        groups: [n] number of each box's group (image, or image and class).
        boxes: [n, 4] xyxy, finite and of positive size.
        threshold: least IoU.

    Returns:
        Rows of the earlier box, rows of the later one, and their IoU; ordered by the later row.
    """
    order = np.lexsort((boxes[:, 0], groups))
    group, left = groups[order], boxes[order, 0]
    reach = left + (1 - threshold) * (boxes[order, 2] - left) + 1e-9
    found: list[tuple[Ints, Ints, Floats]] = []
    rows, step = np.arange(len(order)), 1
    while len(rows := rows[rows + step < len(order)]):
        rows = rows[(group[rows + step] == group[rows]) & (left[rows + step] <= reach[rows])]
        first, second = order[rows], order[rows + step]
        overlap = paired_iou(boxes[first], boxes[second])
        near = overlap >= threshold
        found.append((first[near], second[near], overlap[near]))
        step += 1
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    a, b, overlaps = (np.concatenate(column) for column in zip(*found))
    first, second = np.minimum(a, b), np.maximum(a, b)
    by_row = np.lexsort((first, second))
    return first[by_row], second[by_row], overlaps[by_row]


def paired_iou(a: Floats, b: Floats) -> Floats:
    """[n, 4] xyxy and [n, 4] xyxy -> [n] IoU; zero for boxes without area."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - common
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=union > 0))
