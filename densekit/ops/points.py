"""Points on the grid of each feature map, which find the boxes around them (Tian et al. 2019, arXiv 1904.01355).

B images, N padded objects an image, A points an image (all levels).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from densekit.ops import boxes as box_ops
from densekit.ops.assignment import Assignment
from densekit.types import BoxTargets

NEAREST, FARTHEST = 4.0, 8.0
"""A level learns objects whose farthest side is this many strides away; the first and last have no limit outwards."""


class Points(NamedTuple):
    """The points of all levels.

    Attributes:
        places: [A, 2] float32 (x, y) in pixels.
        strides: [A] float32 unit of the distances of each.
        limits: [A, 2] float32 distances in pixels, of an object's farthest side, between which a point may learn it.
        per_level: number of points of each level.
    """

    places: Tensor
    strides: Tensor
    limits: Tensor
    per_level: tuple[int, ...]


def grid_points(
    grids: Sequence[tuple[int, int]],
    size: tuple[int, int],
    strides: Sequence[int],
    *,
    offset: float,
    device: torch.device,
) -> Points:
    """Lay the points of a pyramid out.

    Args:
        grids: (height, width) of each level, finest first.
        size: (height, width) of the padded images: the points of every level cover it.
        strides: nominal one of each level.
        offset: of a point in its cell, in cells.
        device: of the result.
    """
    places, units, limits = [], [], []
    for level, ((height, width), stride) in enumerate(zip(grids, strides)):
        y = (torch.arange(height, device=device, dtype=torch.float32) + offset) * (size[0] // height)
        x = (torch.arange(width, device=device, dtype=torch.float32) + offset) * (size[1] // width)
        y, x = torch.meshgrid(y, x, indexing="ij")
        places.append(torch.stack([x, y], dim=-1).reshape(-1, 2))
        units.append(torch.full_like(places[-1][:, 0], stride))
        low = 0.0 if level == 0 else NEAREST * stride
        high = torch.inf if level == len(grids) - 1 else FARTHEST * stride
        limits.append(torch.stack([torch.full_like(units[-1], low), torch.full_like(units[-1], high)], dim=-1))
    return Points(torch.cat(places), torch.cat(units), torch.cat(limits), tuple(p.shape[0] for p in places))


def sides(points: Points, boxes: Tensor) -> Tensor:
    """[..., A, 4] boxes -> [..., A, 4] distances in pixels from each point to its box's left, top, right and bottom."""
    return torch.cat([points.places - boxes[..., :2], boxes[..., 2:] - points.places], dim=-1)


def boxes_around(points: Points, distances: Tensor) -> Tensor:
    """[..., A, 4] distances in strides -> [..., A, 4] boxes: the inverse of ``sides``."""
    reach = distances * points.strides[:, None]
    return torch.cat([points.places - reach[..., :2], points.places + reach[..., 2:]], dim=-1)


def centerness(points: Points, boxes: Tensor) -> Tensor:
    """How near each point is to the middle of its box, 0 to 1 (eq. 3): [..., A, 4] boxes around them -> [..., A]."""
    left, top, right, bottom = sides(points, boxes).clamp(min=box_ops.SMALLEST_SIDE).unbind(-1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (across * down).sqrt()


@torch.no_grad()
def assign_points(points: Points, targets: BoxTargets, *, radius: float) -> Assignment:
    """Match points with the objects of their image (section 3.2, and center sampling of the authors' later version).

    A point learns the smallest object that it is inside of, whose centre is within ``radius`` strides in both
    directions, and whose farthest side is within the limits of its level. A point inside a crowd region is not taken as
    negative: what is there is not known.

    Args:
        points: A points that all images share.
        targets: N >= 1 objects an image, padding included.
        radius: in strides.
    """
    boxes = targets.boxes[:, :, None]  # [B, N, 1, 4]
    reach = sides(points, boxes)  # [B, N, A, 4]
    inside = reach.amin(-1) > 0
    farthest = reach.amax(-1)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    near = (points.places - centres).abs().amax(-1) < radius * points.strides
    fits = (farthest > points.limits[:, 0]) & (farthest < points.limits[:, 1])
    real = (targets.valid & ~targets.crowd)[:, :, None]
    areas = torch.where(inside & near & fits & real, box_ops.area(targets.boxes)[:, :, None], torch.inf)
    smallest, index = areas.min(dim=1)
    positive = smallest < torch.inf
    crowd = (inside & (targets.valid & targets.crowd)[:, :, None]).any(dim=1)
    return Assignment(index, positive, ~positive & ~crowd)
