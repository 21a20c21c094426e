"""How far predictions of the same images lie apart, from 0 (equal) to 1 (nothing in common).

B images, n, m detections of an image, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from densekit.ops import boxes as box_ops
from densekit.types import Classification, Detections, Predictions, Segmentation

SAME_BOX = 0.9
"""IoU from which on two boxes of a class are one detection."""


def differences(a: Predictions, b: Predictions) -> list[float]:
    """One number an image; 1 where numbers are not finite in one of the two alone.

    Detection: the part of all scores that belongs to boxes which the other lacks, or by which the scores (or the masks)
    of common boxes differ. Segmentation: the part of the pixels whose class differs. Classification: the part of the
    probability that lies elsewhere (total variation).
    """
    if isinstance(a, Detections) and isinstance(b, Detections):
        return [_of_detections(a, b, row) for row in range(len(a.boxes))]
    if isinstance(a, Segmentation) and isinstance(b, Segmentation):
        return [_of_masks(*pair) for pair in zip(a.masks, b.masks, a.probabilities, b.probabilities)]
    assert isinstance(a, Classification)
    assert isinstance(b, Classification)
    return [_finite(float(d)) for d in (a.probabilities - b.probabilities).abs().sum(1) / 2]


def _finite(value: float) -> float:
    return min(1.0, value) if value == value else 1.0


def _of_masks(a: Tensor, b: Tensor, chances_a: Tensor, chances_b: Tensor) -> float:
    if a.shape != b.shape or bool((chances_a.isfinite() != chances_b.isfinite()).any()):
        return 1.0
    return float((a != b).float().mean())


def _of_detections(a: Detections, b: Detections, row: int) -> float:
    (boxes, scores, labels, masks), (boxes_b, scores_b, labels_b, masks_b) = _found(a, row), _found(b, row)
    total = float(scores.sum() + scores_b.sum())
    if not len(scores) or not len(scores_b):
        return float(total > 0)
    overlap = torch.where(labels[:, None] == labels_b, box_ops.iou(boxes, boxes_b).nan_to_num(0.0), 0.0)
    best, partner = overlap.max(1)
    apart = (scores - scores_b[partner]).abs()
    if masks is not None and masks_b is not None:
        apart = torch.maximum(apart, scores * (masks - masks_b[partner]).abs().mean((1, 2)))
    lost = torch.where(best >= SAME_BOX, apart, scores).sum()
    new = torch.where(overlap.amax(0) >= SAME_BOX, 0.0, scores_b).sum()
    return _finite(float(lost + new) / total)


def _found(found: Detections, row: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    valid = found.valid[row]
    masks = None if found.masks is None else found.masks[row][valid]
    return found.boxes[row][valid], found.scores[row][valid], found.labels[row][valid], masks
