"""Greedy suppression in Triton: first who hits whom, a bit each, then one walk over each run of boxes.

Overlaps are found for tiles of 64 x 64 boxes by as many programs, each a word of 64 bits for a box and 64 better ones.
Then one program for each image and run goes from tile to tile: a box is kept if its words have no bit in common with
the words of what is kept so far. That is exact for chains of any length, and nobody waits for the host.

B images, n boxes an image, in runs (levels) that ignore one another, W words of a box.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BITS = 64
"""Of a word, and boxes that are looked at together."""

LOOKED_AT = 2048
"""Words that the walk reads at once."""


@triton.jit(do_not_specialize=["firsts", "lengths", "count", "total"])
def _hits(boxes, groups, words, firsts, lengths, count, total, threshold, GROUPED: tl.constexpr, BITS: tl.constexpr):
    """Which of 64 better boxes overlap each of 64 boxes by more than the threshold."""
    image, run = tl.program_id(2) // len(firsts), tl.program_id(2) % len(firsts)
    first, length = firsts[0], lengths[0]
    for other in tl.static_range(1, len(firsts)):
        first, length = tl.where(run == other, firsts[other], first), tl.where(run == other, lengths[other], length)
    first += image.to(tl.int64) * count
    tile, better_tile = tl.program_id(0), tl.program_id(1)
    if (better_tile <= tile) & (tile * BITS < length):
        bit = tl.arange(0, BITS)
        worse, better = tile * BITS + bit, better_tile * BITS + bit
        corner, of_better = boxes + (first + worse) * 4, boxes + (first + better) * 4
        x1, y1 = tl.load(corner, worse < length, 0.0), tl.load(corner + 1, worse < length, 0.0)
        x2, y2 = tl.load(corner + 2, worse < length, 0.0), tl.load(corner + 3, worse < length, 0.0)
        left, top = tl.load(of_better, better < length, 0.0), tl.load(of_better + 1, better < length, 0.0)
        right, bottom = tl.load(of_better + 2, better < length, 0.0), tl.load(of_better + 3, better < length, 0.0)
        w = tl.maximum(tl.minimum(x2[:, None], right[None, :]) - tl.maximum(x1[:, None], left[None, :]), 0.0)
        h = tl.maximum(tl.minimum(y2[:, None], bottom[None, :]) - tl.maximum(y1[:, None], top[None, :]), 0.0)
        common = w * h
        both = ((x2 - x1) * (y2 - y1))[:, None] + ((right - left) * (bottom - top))[None, :]
        hit = (tl.div_rn(common, both - common) > threshold) & (better[None, :] < worse[:, None])
        if GROUPED:
            own = tl.load(groups + first + worse, worse < length, 0)
            hit = hit & (own[:, None] == tl.load(groups + first + better, better < length, 0)[None, :])
        word = tl.sum(hit.to(tl.int64) << bit[None, :].to(tl.int64), 1)
        tl.store(words + better_tile.to(tl.int64) * total + first + worse, word, worse < length)


@triton.jit(do_not_specialize=["firsts", "lengths", "count", "total"])
def _walk(
    words, valid, kept, firsts, lengths, count, total, BITS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """What is kept of one run of one image, 64 boxes after 64 boxes."""
    image, run = tl.program_id(0) // len(firsts), tl.program_id(0) % len(firsts)
    first, length = firsts[0], lengths[0]
    for other in tl.static_range(1, len(firsts)):
        first, length = tl.where(run == other, firsts[other], first), tl.where(run == other, lengths[other], length)
    first += image.to(tl.int64) * count
    of_tile, one = words + first, tl.full([], 1, tl.int64)
    word = tl.arange(0, WIDTH)
    so_far = tl.full([WIDTH], 0, tl.int64)
    for tile in range(0, (length + BITS - 1) // BITS):
        alive = tl.full([], 0, tl.int64)
        for row in range(0, BITS, ROWS):
            bit = row + tl.arange(0, ROWS)
            box = tile * BITS + bit
            known = (box < length)[:, None] & (word < tile)[None, :]
            place = words + word[None, :].to(tl.int64) * total + (first + box)[:, None]
            hit = tl.max(((tl.load(place, known, 0) & so_far[None, :]) != 0).to(tl.int32), 1)
            lives = (hit == 0) & (tl.load(valid + first + box, box < length, 0) != 0)
            alive |= tl.sum(lives.to(tl.int64) << bit.to(tl.int64), 0)
        own = tl.full([], 0, tl.int64)
        for bit in tl.static_range(BITS):
            hit_by = tl.load(of_tile + tile * BITS + bit, tile * BITS + bit < length, 0)
            own |= tl.where((hit_by & own) == 0, alive & (one << bit), 0)
        so_far, of_tile = tl.where(word == tile, own, so_far), of_tile + total
        bit = tl.arange(0, BITS)
        stays = ((own >> bit.to(tl.int64)) & 1).to(tl.int8)
        tl.store(kept + first + tile * BITS + bit, stays, tile * BITS + bit < length)


def suppress(boxes: Tensor, valid: Tensor, groups: Tensor | None, parts: Sequence[int], threshold: float) -> Tensor:
    """[B, n, 4] float32 boxes, best first, [B, n] bool, [B, n] int64 -> [B, n] bool; see ``suppression.py``."""
    kept = torch.zeros_like(valid, memory_format=torch.contiguous_format)
    images, count = valid.shape
    if not valid.numel():
        return kept
    width = triton.cdiv(max(parts), BITS)
    words = torch.empty(width, images, count, dtype=torch.int64, device=boxes.device)
    runs = (tuple(sum(parts[:run]) for run in range(len(parts))), tuple(parts), count, images * count)
    boxes, valid, rows = boxes.contiguous(), valid.contiguous(), images * len(parts)
    wide = max(16, triton.next_power_of_2(width))
    with torch.cuda.device_of(boxes):
        _hits[(width, width, rows)](
            boxes, None if groups is None else groups.contiguous(), words, *runs, threshold,
            GROUPED=groups is not None, BITS=BITS, enable_fp_fusion=False,
        )  # fmt: skip
        _walk[(rows,)](
            words, valid.view(torch.uint8), kept.view(torch.uint8), *runs,
            BITS=BITS, WIDTH=wide, ROWS=max(1, min(BITS, LOOKED_AT // wide)), enable_fp_fusion=False,
        )  # fmt: skip
    return kept
