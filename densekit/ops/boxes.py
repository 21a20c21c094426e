"""Boxes: areas, overlaps, clipping and the coding of one box relative to another.

Boxes are (x1, y1, x2, y2) in continuous pixels; everything is computed in float32, whatever the precision of the run:
bfloat16 has 8 bits of mantissa, so that a corner at 1000 px would move by up to 4 px.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

MAX_SCALE_LOG = math.log(1000.0 / 16)
"""Largest log of a decoded size relative to its reference: keeps ``exp`` from overflowing."""

SMALLEST_SIDE = 1e-4
"""Sides below this (padding) count as this in the coding; real proposals are at least ten times longer."""

Weights = tuple[float, float, float, float]
IoUKind = Literal["iou", "giou", "diou", "ciou"]


def area(boxes: Tensor) -> Tensor:
    """[..., 4] boxes -> [...] areas in square pixels."""
    boxes = boxes.float()
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Common area of every pair: [..., N, 4] and [..., M, 4] -> [..., N, M]; leading dimensions broadcast."""
    ax1, ay1, ax2, ay2 = a.float()[..., :, None, :].unbind(-1)
    bx1, by1, bx2, by2 = b.float()[..., None, :, :].unbind(-1)
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    return width.mul_(height)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair: [..., N, 4] and [..., M, 4] -> [..., N, M]; leading dimensions broadcast.

    Two empty boxes give NaN, which no threshold passes.
    """
    common = intersection(a, b)
    return common / (area(a)[..., :, None] + area(b)[..., None, :] - common)


def aligned_iou(a: Tensor, b: Tensor, kind: IoUKind = "iou", eps: float = 1e-7) -> Tensor:
    """Overlap of each box with its partner, differentiable: [..., 4] and [..., 4] -> [...].

    Args:
        a: predicted boxes.
        b: their targets.
        kind: ``iou``; ``giou`` (Rezatofighi et al. 2019, eq. 3); ``diou`` and ``ciou`` (Zheng et al. 2020, eq. 6, 10).
        eps: keeps divisions by empty areas finite.
    """
    a, b = a.float(), b.float()
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    common = width * height  # not prod, whose backward asks the device for zeros
    union = area(a) + area(b) - common
    overlap = common / (union + eps)
    if kind == "iou":
        return overlap
    sides = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])  # the box around both
    if kind == "giou":
        around = sides[..., 0] * sides[..., 1]
        return overlap - (around - union) / (around + eps)
    centers = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    distance = overlap - (centers**2).sum(-1) / ((sides**2).sum(-1) + eps)
    return distance if kind == "diou" else distance - _shape_penalty(a, b, overlap, eps)


def _shape_penalty(a: Tensor, b: Tensor, overlap: Tensor, eps: float) -> Tensor:
    """The aspect-ratio term of CIoU (Zheng et al. 2020, eq. 8, 9 and 11); its weight takes no gradient."""
    angle = [torch.atan((x[..., 2] - x[..., 0]) / (x[..., 3] - x[..., 1]).clamp(min=eps)) for x in (a, b)]
    shape = 4 / math.pi**2 * (angle[1] - angle[0]) ** 2
    weight = (shape / (1 - overlap + shape + eps)).detach()
    return weight * shape


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Cut boxes to their image.

    Args:
        boxes: [B, ..., 4].
        sizes: [B, 2] (height, width).
    """
    limit = sizes.flip(-1).repeat(1, 2).to(boxes.dtype)  # [B, 4]: width, height, width, height
    limit = limit.reshape(limit.shape[0], *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)


def longer_than(boxes: Tensor, side: float) -> Tensor:
    """[..., 4] boxes -> [...] bool: both sides are at least ``side`` pixels."""
    return (boxes[..., 2] - boxes[..., 0] >= side) & (boxes[..., 3] - boxes[..., 1] >= side)


def encode(boxes: Tensor, references: Tensor, weights: Weights) -> Tensor:
    """Deltas that ``decode`` turns into ``boxes`` (Girshick et al. 2014, appendix C).

    Args:
        boxes: [..., 4].
        references: [..., 4] anchors or proposals.
        weights: factors of the deltas (x, y, width, height): about one over their spread.

    Returns:
        [..., 4] float32: dx, dy, dw, dh.
    """
    centers, sides = _center_form(boxes)
    reference_centers, reference_sides = _center_form(references)
    wx, wy, ww, wh = weights
    shift = (centers - reference_centers) / reference_sides
    scale = torch.log(sides / reference_sides)
    return torch.stack([wx * shift[..., 0], wy * shift[..., 1], ww * scale[..., 0], wh * scale[..., 1]], dim=-1)


def decode(deltas: Tensor, references: Tensor, weights: Weights) -> Tensor:
    """Boxes that ``deltas`` mean relative to ``references``: the inverse of ``encode``; float32.

    Args:
        deltas: [..., 4].
        references: [..., 4]; leading dimensions broadcast.
        weights: as given to ``encode``.
    """
    wx, wy, ww, wh = weights
    x1, y1, x2, y2 = references.float().unbind(-1)
    width, height = x2 - x1, y2 - y1
    dx, dy, dw, dh = deltas.float().unbind(-1)
    x, y = dx / wx * width + (x1 + 0.5 * width), dy / wy * height + (y1 + 0.5 * height)
    half_width = 0.5 * torch.exp((dw / ww).clamp(max=MAX_SCALE_LOG)) * width
    half_height = 0.5 * torch.exp((dh / wh).clamp(max=MAX_SCALE_LOG)) * height
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)


def _center_form(boxes: Tensor) -> tuple[Tensor, Tensor]:
    boxes = boxes.float()
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=SMALLEST_SIDE)
    return boxes[..., :2] + 0.5 * sides, sides
