"""Detections of one image from several views or tiles, made one.

Letters: n boxes, V views.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from densekit.ops.boxes import area, intersection, iou
from densekit.ops.nms import greedy_nms

SWALLOWED = 0.5
"""Share of a cut box from which on it counts as a part of a larger one that covers it."""

ALIGNED = 0.5
"""Overlap (IoU along a seam) from which on two boxes that are cut there are halves of one object."""


class Found(NamedTuple):
    """Boxes on the CPU.

    Attributes:
        boxes: [n, 4] xyxy.
        scores: [n].
        labels: [n].
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def at(self, places: Tensor) -> Found:
        """Some of them."""
        return Found(*(values[places] for values in self))


def merge_views(views: Sequence[Found], threshold: float) -> Found:
    """The mean over views of one image.

    Boxes of one class that overlap are the same object. Its box is their mean, weighted by the scores; its score is
    the mean over all views, 0 from those that did not find it.

    Args:
        views: what each found, in the same pixels.
        threshold: IoU above which boxes are the same object.

    Returns:
        The objects, best first.
    """
    every = Found(*(torch.cat(values) for values in zip(*views)))
    view = torch.cat([torch.full((len(v.scores),), number) for number, v in enumerate(views)])
    order = every.scores.argsort(descending=True, stable=True)
    every, view = every.at(order), view[order]
    same = (iou(every.boxes, every.boxes) > threshold) & (every.labels[:, None] == every.labels)
    same.fill_diagonal_(True)
    free = torch.ones_like(view, dtype=torch.bool)
    boxes, scores, labels = [], [], []
    for best in range(len(view)):
        if not free[best]:
            continue
        members = same[best] & free
        free &= ~members
        weights = every.scores[members].clamp(min=1e-9)
        boxes.append((every.boxes[members] * weights[:, None]).sum(0) / weights.sum())
        each = torch.zeros(len(views)).scatter_reduce(0, view[members], every.scores[members], "amax")
        scores.append(each.mean())
        labels.append(every.labels[best])
    if not boxes:
        return every
    merged = Found(torch.stack(boxes), torch.stack(scores), torch.stack(labels))
    return merged.at(merged.scores.argsort(descending=True, stable=True))


@dataclasses.dataclass(frozen=True, slots=True)
class TileBoxes:
    """Boxes of all tiles of an image.

    Attributes:
        found: in the pixels of the image.
        tiles: [n] the number of each one's tile.
        cut: [n, 4] bool: left, top, right, bottom: it ends where its tile does, and the image goes on there.
    """

    found: Found
    tiles: Tensor
    cut: Tensor


def merge_tiles(given: TileBoxes, threshold: float) -> Found:
    """Each object once, and whole.

    Whole boxes suppress one another as in any detector. A cut box loses to a whole one that covers most of it,
    whatever the scores. Cut ones that are left are halves of an object that fits into no tile: those that lie against
    each other across a seam become one box around both.

    Args:
        given: boxes of the same class from tiles that overlap.
        threshold: IoU of the suppression.

    Returns:
        Boxes, best first.
    """
    is_cut = given.cut.any(1)
    whole = _suppressed(given.found.at(~is_cut), threshold)
    parts = TileBoxes(given.found.at(is_cut), given.tiles[is_cut], given.cut[is_cut])
    lost = _covered(parts.found, whole)
    parts = TileBoxes(parts.found.at(~lost), parts.tiles[~lost], parts.cut[~lost])
    joined = _without_parts(_joined(parts))
    return _suppressed(Found(*(torch.cat(values) for values in zip(whole, joined))), threshold)


def _suppressed(found: Found, threshold: float) -> Found:
    found = found.at(found.scores.argsort(descending=True, stable=True))
    if not len(found.scores):
        return found
    valid = torch.ones(1, len(found.scores), dtype=torch.bool)
    kept = greedy_nms(found.boxes[None], valid, threshold, groups=found.labels[None].long(), method="kernel")
    return found.at(kept[0])


def _covered(parts: Found, others: Found) -> Tensor:
    """[n] which parts lie for the most part in one of the others of their class."""
    shares = intersection(parts.boxes, others.boxes) / area(parts.boxes).clamp(min=1e-9)[:, None]
    return ((shares > SWALLOWED) & (parts.labels[:, None] == others.labels)).any(1)


def _without_parts(found: Found) -> Found:
    """Without those that lie for the most part in a larger one of their class."""
    kept = found.at(area(found.boxes).argsort(descending=True, stable=True))
    shares = intersection(kept.boxes, kept.boxes) / area(kept.boxes).clamp(min=1e-9)[:, None]
    inside = (shares > SWALLOWED) & (kept.labels[:, None] == kept.labels)
    return kept.at(~inside.tril(-1).any(1))


def _joined(parts: TileBoxes) -> Found:
    """Halves that lie against each other across a seam, each group as the box around it with the best of its scores."""
    boxes = parts.found.boxes
    across = _halves(boxes, parts.cut, 0) | _halves(boxes, parts.cut, 1)
    across &= (parts.found.labels[:, None] == parts.found.labels) & (parts.tiles[:, None] != parts.tiles)
    group = _components(across | across.T)
    found = []
    for number in sorted(set(group.tolist())):
        own = parts.found.at(group == number)
        box = torch.cat([own.boxes[:, :2].amin(0), own.boxes[:, 2:].amax(0)])
        found.append((box, own.scores.amax(), own.labels[0]))
    return Found(*(torch.stack(list(values)) for values in zip(*found))) if found else parts.found


def _halves(boxes: Tensor, cut: Tensor, axis: int) -> Tensor:
    """[n, n] whether box i ends at its tile's far edge along an axis and box j, behind it, begins at its near one."""
    other = 1 - axis
    start, end = boxes[:, axis], boxes[:, axis + 2]
    touching = (start <= end[:, None]) & (start > start[:, None]) & (end > end[:, None])
    low, high = boxes[:, other], boxes[:, other + 2]
    shared = torch.minimum(high, high[:, None]) - torch.maximum(low, low[:, None])
    whole = torch.maximum(high, high[:, None]) - torch.minimum(low, low[:, None])
    return cut[:, axis + 2, None] & cut[:, axis] & touching & (shared > ALIGNED * whole)


def _components(linked: Tensor) -> Tensor:
    """[n, n] symmetric -> [n] the smallest place that each one is linked to, over any number of links."""
    count = len(linked)
    reach = linked | torch.eye(count, dtype=torch.bool)
    group = torch.arange(count)
    while count:
        smallest = torch.where(reach, group[None], count).amin(1)
        if (smallest == group).all():
            break
        group = smallest
    return group
