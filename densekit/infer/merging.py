"""Detections of one image from several views or tiles, made one.

Letters: n boxes, V views, M cells along a side of a box.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

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
        cells: [n, M, M] how probably each of M x M equal cells of a box belongs to its object; None from heads that
            find boxes alone.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    cells: Tensor | None = None

    def at(self, places: Tensor | slice) -> Found:
        """Some of them."""
        chosen: list[Any] = [None if values is None else values[places] for values in self]
        return Found(*chosen)


def together(several: Sequence[Found]) -> Found:
    """All boxes of several, one after the other."""
    columns: list[Any] = [None if values[0] is None else torch.cat(values) for values in zip(*several)]
    return Found(*columns)


def merge_views(views: Sequence[Found], threshold: float) -> Found:
    """The mean over views of one image.

    Boxes of one class that overlap are the same object. Its box is their mean, weighted by the scores, and so is its
    mask; its score is the mean over all views, 0 from those that did not find it.

    Args:
        views: what each found, in the same pixels.
        threshold: IoU above which boxes are the same object.

    Returns:
        The objects, best first.
    """
    every = together(views)
    view = torch.cat([torch.full((len(v.scores),), number) for number, v in enumerate(views)])
    order = every.scores.argsort(descending=True, stable=True)
    every, view = every.at(order), view[order]
    same = (iou(every.boxes, every.boxes) > threshold) & (every.labels[:, None] == every.labels)
    same.fill_diagonal_(True)
    free = torch.ones_like(view, dtype=torch.bool)
    found = []
    for best in range(len(view)):
        if not free[best]:
            continue
        members = same[best] & free
        free &= ~members
        own = every.at(members)
        weights = own.scores.clamp(min=1e-9) / own.scores.clamp(min=1e-9).sum()
        box = (own.boxes * weights[:, None]).sum(0)
        each = torch.zeros(len(views)).scatter_reduce(0, view[members], own.scores, "amax")
        cells = None if own.cells is None else (moved_cells(own.cells, own.boxes, box) * weights[:, None, None]).sum(0)
        found.append(Found(box, each.mean(), own.labels[0], cells))
    if not found:
        return every
    merged = _stacked(found)
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
    each other across a seam become one box around both, with the masks of both.

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
    return _suppressed(together([whole, joined]), threshold)


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
        cells = None if own.cells is None else moved_cells(own.cells, own.boxes, box).amax(0)
        found.append(Found(box, own.scores.amax(), own.labels[0], cells))
    return _stacked(found) if found else parts.found


def _stacked(each: Sequence[Found]) -> Found:
    """Single boxes, without the first dimension, as several."""
    columns: list[Any] = [None if values[0] is None else torch.stack(values) for values in zip(*each)]
    return Found(*columns)


def moved_cells(cells: Tensor, boxes: Tensor, onto: Tensor) -> Tensor:
    """The masks of boxes as cells of another box: bilinear between the centres of their own, 0 outside of them.

    Args:
        cells: [k, M, M].
        boxes: [k, 4] that they are of.
        onto: [4] the other box.
    """
    rows, columns = (_shares(boxes[:, axis::2], onto[axis::2], cells.shape[-1]) for axis in (1, 0))
    return rows @ cells @ columns.transpose(1, 2)


def _shares(sides: Tensor, onto: Tensor, count: int) -> Tensor:
    """[k, count, count] how much of each of its cells along a side [k, 2] every cell of the side ``onto`` [2] takes."""
    centres = onto[0] + (torch.arange(count) + 0.5) / count * (onto[1] - onto[0])
    places = (centres - sides[:, :1]) / (sides[:, 1:] - sides[:, :1]).clamp(min=1e-9) * count - 0.5
    inside = (places >= -0.5) & (places <= count - 0.5)
    near = places.clamp(0, count - 1)
    return (1 - (near[:, :, None] - torch.arange(count)).abs()).clamp(min=0) * inside[:, :, None]


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
