"""Greedy suppression for GPUs: exact for chains of any length, of constant shape, without waiting for the host.

Which boxes are kept must be decided one after the other: whether a box stays depends on all better ones. Here eight
boxes (a tile) are decided at a time. Each tile has a table of what is kept of it for each of the 256 sets of boxes that
better tiles may have left alive, made for all tiles at once; so deciding a tile is one look into its table. What was
kept then hits the worse boxes by one product within a strip of 128 boxes, and by one more from strip to strip.

Four launches a tile and about 16 a strip, whatever the number of images and levels, which lie side by side: 1,200 for
2,000 boxes. Overlaps are computed once for each pair and are not kept.

R independent rows of boxes (images, levels), n boxes a row, T = 8 boxes a tile, m tiles a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.ops import boxes as box_ops

TILE, STRIP = 8, 128
"""Boxes that are decided together, and boxes between which the hits are passed on at once; eight bools are an int64."""


@torch.no_grad()
def tiled_nms(boxes: Tensor, valid: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Keep the boxes that no better kept box overlaps by more than ``threshold``.

    Args:
        boxes: [R, n, 4] float32, best first; empty where not valid.
        valid: [R, n] bool.
        groups: [R, n] integers: boxes of different groups ignore one another.
        threshold: IoU.

    Returns:
        [R, n] bool.
    """
    rows, count = valid.shape
    spare = -count % TILE
    boxes, valid, groups = F.pad(boxes, (0, 0, 0, spare)), F.pad(valid, (0, spare)), F.pad(groups, (0, spare))
    dtype = torch.float16 if boxes.is_cuda else torch.float32  # of counts, which only have to stay above zero
    tables, codes = _tables(boxes, valid, groups, threshold, dtype)
    row = torch.arange(rows, device=boxes.device)[:, None]
    hits = torch.zeros(rows, count + spare, dtype=dtype, device=boxes.device)
    kept: list[Tensor] = []
    for first in range(0, count, STRIP):
        strip, length = slice(first, first + STRIP), min(STRIP, count + spare - first)
        links = _links(boxes[:, strip], boxes[:, first:], groups[:, strip], groups[:, first:], threshold).to(dtype)
        found, of_strip = [], hits[:, None, strip]
        tiles = torch.split(hits[:, strip], TILE, 1), torch.split(links[..., :length], TILE, 1)
        for table, of_tile, inside in zip(tables[first // TILE :], *tiles):
            alive = (of_tile == 0).view(torch.int64)
            found.append(table[row, torch.searchsorted(codes, alive)])  # [R, 1, T]
            of_strip.baddbmm_(found[-1], inside)  # it hits better boxes too, which are decided already
        kept.append(torch.cat(found, 2))
        hits[:, None, first + length :].baddbmm_(kept[-1], links[:, :, length:])
    return torch.cat(kept, 2)[:, 0, :count] > 0


def _links(better: Tensor, worse: Tensor, of_better: Tensor, of_worse: Tensor, threshold: float) -> Tensor:
    """[..., a, 4] and [..., b, 4] boxes, [..., a] and [..., b] groups -> [..., a, b] bool: which ones clash."""
    return (box_ops.iou(better, worse) > threshold) & (of_better[..., :, None] == of_worse[..., None, :])


def _tables(
    boxes: Tensor, valid: Tensor, groups: Tensor, threshold: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What is kept of each tile, by what is left alive of it.

    Returns:
        [m, R, 256, T] of 0 and 1, and [256] int64: the sets of boxes in the order of the tables, in ascending order,
        each as eight bools read as one number.
    """
    bits = torch.arange(TILE, device=boxes.device, dtype=torch.uint8)
    boxes, groups, valid = (each.reshape(len(each), -1, TILE, *each.shape[2:]) for each in (boxes, groups, valid))
    links = _links(boxes, boxes, groups, groups, threshold).triu(1)  # [R, m, T, T]
    hit_by = (links.to(torch.uint8) << bits).sum(-1, dtype=torch.uint8)  # [R, m, T], a bit for each box
    sets = torch.arange(2**TILE, device=boxes.device, dtype=torch.uint8)
    alive = sets.expand(*hit_by.shape[:2], -1)
    for place in range(TILE):
        lives = (alive >> place) & 1
        alive = alive & ~(lives * hit_by[..., place, None])
    kept = (alive[..., None] >> bits) & valid[:, :, None]  # [R, m, 256, T]
    each = (sets[:, None] >> bits) & 1
    return kept.transpose(0, 1).to(dtype), each.view(torch.int64)[:, 0]
