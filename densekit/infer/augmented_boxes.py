"""Test-time augmentation of a detector: the mean of what is found on flipped and scaled copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densekit.infer.augmented import (
    FLIPPED_DIMS,
    Flip,
    check_augmentation,
    check_pixels,
    is_plain,
    views,
    without_padding,
)
from densekit.infer.merging import Found, merge_views
from densekit.model import DenseModel
from densekit.types import Batch, Detections


@torch.inference_mode()
def detect_augmented(
    model: DenseModel, batch: Batch, *, flips: Sequence[Flip] = ("none",), scales: Sequence[float] = (1.0,)
) -> Detections:
    """Detections over every flip at every scale, as ``merge_views`` joins them.

    Args:
        model: in evaluation mode, with a detection head.
        batch: on the model's device.
        flips: each of ``none``, ``horizontal``, ``vertical``, ``both``.
        scales: factors on the size of the batch's images.

    Returns:
        In the pixels of the original images, as ``DenseModel.predict`` gives them; for one scale of 1 and no flip
        exactly those, else on the CPU.

    Raises:
        DensekitError: as ``check_augmentation``, or the batch brings stored maps.
    """
    check_augmentation(flips, scales)
    if is_plain(flips, scales):
        return _detect(model, batch)
    check_pixels(batch)
    return padded([one for part in without_padding(batch) for one in _merged(model, part, flips, scales)])


def found_in(detections: Detections, row: int) -> Found:
    """The boxes of one image of a batch, on the CPU."""
    valid = detections.valid[row]
    boxes, scores, labels = (v[row][valid].cpu() for v in (detections.boxes, detections.scores, detections.labels))
    cells = None if detections.masks is None else detections.masks[row][valid].cpu().float()
    return Found(boxes.float(), scores.float(), labels, cells)


def padded(images: Sequence[Found]) -> Detections:
    """The boxes of several images as one batch."""
    count, most = len(images), max(len(one.scores) for one in images)
    found = Detections(
        torch.zeros(count, most, 4),
        torch.zeros(count, most),
        torch.zeros(count, most, dtype=torch.int64),
        torch.zeros(count, most, dtype=torch.bool),
    )
    if (cells := images[0].cells) is not None:
        found.masks = torch.zeros(count, most, *cells.shape[1:])
    for row, one in enumerate(images):
        own = slice(0, len(one.scores))
        found.boxes[row, own], found.scores[row, own], found.labels[row, own] = one[:3]
        found.valid[row, own] = True
        if found.masks is not None and one.cells is not None:
            found.masks[row, own] = one.cells
    return found


def nms_threshold(model: DenseModel, head: str | None = None) -> float:
    """IoU above which a head of the model takes two boxes for one object; 0.5 where it does not tell."""
    return float(getattr(model.head(head), "nms_threshold", 0.5))


class MergedBoxes:
    """The boxes of some images over their views, as ``merge_views`` joins them.

    Args:
        sizes: (height, width) of each image, in whose pixels boxes are.
        threshold: see ``nms_threshold``.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], threshold: float) -> None:
        self.sizes, self.threshold = sizes, threshold
        self._views: list[list[Found]] = [[] for _ in sizes]
        self._most = 0

    def add(self, flip: Flip, found: Detections) -> None:
        """Take what was found in a view."""
        self._most = max(self._most, found.scores.shape[1])
        for row, size in enumerate(self.sizes):
            own = found_in(found, row)
            cells = None if own.cells is None else own.cells.flip(FLIPPED_DIMS[flip])
            self._views[row].append(own._replace(boxes=_back(own.boxes, size, flip), cells=cells))

    def result(self) -> list[Found]:
        """Of each image; at most as many as were found in a view."""
        return [merge_views(one, self.threshold).at(slice(self._most)) for one in self._views]


def _merged(model: DenseModel, batch: Batch, flips: Sequence[Flip], scales: Sequence[float]) -> list[Found]:
    """Of images without padding."""
    merged = MergedBoxes(batch.numbers(batch.original_sizes), nms_threshold(model))
    for flip, view in views(batch, flips, scales):
        merged.add(flip, _detect(model, view))
    return merged.result()


def _back(boxes: Tensor, size: Sequence[int], flip: Flip) -> Tensor:
    """Boxes on a flipped copy -> on the image of (height, width)."""
    x1, y1, x2, y2 = boxes.unbind(1)
    if -1 in FLIPPED_DIMS[flip]:
        x1, x2 = size[1] - x2, size[1] - x1
    if -2 in FLIPPED_DIMS[flip]:
        y1, y2 = size[0] - y2, size[0] - y1
    return torch.stack([x1, y1, x2, y2], 1)


def _detect(model: DenseModel, batch: Batch) -> Detections:
    found = model.predict(batch)
    assert isinstance(found, Detections)
    return found
