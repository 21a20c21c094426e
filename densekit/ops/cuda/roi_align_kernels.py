"""RoIAlign in Triton: all levels and images in one launch, maps read and gradients written as they lie.

A pixel's weight in a sampling point is a tent over the distance between the two along each side, so a patch is

    weights(box, height) @ map @ weights(box, width).T        with max(0, 1 - |pixel - point|), the mean over S points

and the gradient of a map is the same product from the other side. The backward goes by pixels, not by boxes: a program
owns a tile of 8 x 8 pixels and adds what each box that reaches it gives, in the order of the boxes. So there are no
atomic additions: each run gives the same bits, sums stay in float32, and each gradient is written once, in the dtype of
its map.

B images, R boxes, C channels, L levels, P output size, S sampling points a bin and direction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8
"""Side of the pixels that one program of the backward owns."""

CHUNK = 32
"""Boxes whose reach is looked at together, a bit for each."""


@triton.jit
def _step(start, end, SIZE: tl.constexpr, ALIGNED: tl.constexpr):
    """The length of a bin of a box from one cell to another."""
    length = end - start
    if not ALIGNED:
        length = tl.maximum(length, 1.0)
    return length / SIZE


@triton.jit
def _at(start, step, bins, point, SAMPLES: tl.constexpr):
    """Where the sampling point of a number lies in each bin."""
    return start + bins * step + (point + 0.5) * (step / SAMPLES)


@triton.jit
def _neighbours(at, length):
    """The cell before each point and the one after it, and the weights of both; none beyond the map."""
    inside = (at >= -1.0) & (at <= length)
    at = tl.minimum(tl.maximum(tl.where(inside, at, 0.0), 0.0), length - 1.0)
    low = at.to(tl.int32)
    after = at - low
    return low, tl.minimum(low + 1, length - 1), tl.where(inside, 1.0 - after, 0.0), tl.where(inside, after, 0.0)


@triton.jit
def _share(cells, place, weight, channel, channels, wanted):
    """What one corner gives to each bin: [K] cells and weights, [C] channels -> [K, C]."""
    values = tl.load(cells + (place * channels)[:, None] + channel[None, :], wanted, 0.0)
    return weight[:, None] * values.to(tl.float32)


@triton.jit(do_not_specialize=["heights", "widths"])
def _pool(
    maps, heights, widths, scales, boxes, images, levels, pooled, channels,
    SIZE: tl.constexpr, SAMPLES: tl.constexpr, ALIGNED: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some bins and channels of one box."""
    box = tl.program_id(0)
    level = tl.load(levels + box)
    cells, height, width, scale = maps[0], heights[0], widths[0], scales[0]
    for other in tl.static_range(1, len(maps)):
        here = level == other
        cells, scale = tl.where(here, maps[other], cells), tl.where(here, scales[other], scale)
        height, width = tl.where(here, heights[other], height), tl.where(here, widths[other], width)
    shift = 0.5 if ALIGNED else 0.0
    left, top = tl.load(boxes + box * 4) * scale - shift, tl.load(boxes + box * 4 + 1) * scale - shift
    x_step = _step(left, tl.load(boxes + box * 4 + 2) * scale - shift, SIZE, ALIGNED)
    y_step = _step(top, tl.load(boxes + box * 4 + 3) * scale - shift, SIZE, ALIGNED)
    bins, channel = tl.program_id(1) * BINS + tl.arange(0, BINS), tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    wanted = (bins < SIZE * SIZE)[:, None] & (channel < channels)[None, :]
    first = tl.load(images + box) * height  # int64: a batch of maps may hold more numbers than an int32 counts
    total = tl.full([BINS, BLOCK], 0.0, tl.float32)
    for y_point in tl.static_range(SAMPLES):
        y_low, y_high, above, below = _neighbours(_at(top, y_step, bins // SIZE, y_point, SAMPLES), height)
        for x_point in tl.static_range(SAMPLES):
            x_low, x_high, before, after = _neighbours(_at(left, x_step, bins % SIZE, x_point, SAMPLES), width)
            upper, lower = (first + y_low) * width, (first + y_high) * width
            total += _share(cells, upper + x_low, above * before, channel, channels, wanted)
            total += _share(cells, upper + x_high, above * after, channel, channels, wanted)
            total += _share(cells, lower + x_low, below * before, channel, channels, wanted)
            total += _share(cells, lower + x_high, below * after, channel, channels, wanted)
    place = (box.to(tl.int64) * SIZE * SIZE + bins) * channels
    total = total / (SAMPLES * SAMPLES)
    tl.store(pooled + place[:, None] + channel[None, :], total.to(pooled.dtype.element_ty), wanted)


@triton.jit
def _reaches(start, end, first, length, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    """Whether points between two cells have a weight in the pixels ``first`` to ``first + TILE``."""
    if not ALIGNED:
        end = tl.maximum(end, start + 1.0)
    begin = tl.minimum(tl.maximum(tl.minimum(start, end), 0.0), length - 1.0)
    last = tl.minimum(tl.maximum(tl.maximum(start, end), 0.0), length - 1.0)
    return (last > first - 1.0) & (begin < first + TILE)


@triton.jit
def _tents(pixels, start, step, bins, length, SAMPLES: tl.constexpr):
    """Weights of pixels [T] in bins [K] along one side: [T, K]."""
    total = tl.full([pixels.shape[0], bins.shape[0]], 0.0, tl.float32)
    for point in tl.static_range(SAMPLES):
        at = _at(start, step, bins, point, SAMPLES)
        inside = (at >= -1.0) & (at <= length)
        at = tl.minimum(tl.maximum(at, 0.0), length - 1.0)
        tent = tl.maximum(1.0 - tl.abs(pixels[:, None] - at[None, :]), 0.0)
        total += tl.where(inside[None, :], tent, 0.0)
    return total / SAMPLES


@triton.jit(do_not_specialize=["heights", "widths", "first_tiles"])
def _gradients(
    maps, heights, widths, scales, first_tiles, boxes, order, starts, gradient, channels,
    SIZE: tl.constexpr, SAMPLES: tl.constexpr, ALIGNED: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of TILE x TILE pixels of one level and image, from ``boxes`` in order of image and level."""
    tile, level = tl.program_id(0), 0
    cells, height, width, scale, first = maps[0], heights[0], widths[0], scales[0], first_tiles[0]
    for other in tl.static_range(1, len(maps)):
        here = tile >= first_tiles[other]
        cells, scale = tl.where(here, maps[other], cells), tl.where(here, scales[other], scale)
        height, width = tl.where(here, heights[other], height), tl.where(here, widths[other], width)
        first, level = tl.where(here, first_tiles[other], first), tl.where(here, other, level)
    rows, columns = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    tile = tile - first
    image, top, left = tile // (rows * columns), tile // columns % rows * TILE, tile % columns * TILE
    y, x = top + tl.arange(0, TILE), left + tl.arange(0, TILE)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.full([TILE * TILE, BLOCK], 0.0, tl.float32)
    shift = 0.5 if ALIGNED else 0.0
    run = image * len(maps) + level
    end = tl.load(starts + run + 1)
    for chunk in range(tl.load(starts + run), end, CHUNK):
        box = chunk + tl.arange(0, CHUNK)
        real = box < end
        corner = boxes + box * 4
        x1, y1 = tl.load(corner, real, 0.0) * scale - shift, tl.load(corner + 1, real, 0.0) * scale - shift
        x2, y2 = tl.load(corner + 2, real, 0.0) * scale - shift, tl.load(corner + 3, real, 0.0) * scale - shift
        reached = _reaches(y1, y2, top, height, ALIGNED, TILE) & _reaches(x1, x2, left, width, ALIGNED, TILE)
        word = tl.sum((real & reached).to(tl.int64) << tl.arange(0, CHUNK), 0)
        while word != 0:
            lowest = (word & -word).to(tl.float32)  # a power of two: its exponent says which bit
            one = chunk + (lowest.to(tl.int32, bitcast=True) >> 23) - 127
            word = word & (word - 1)
            start_x, start_y = tl.load(boxes + one * 4) * scale - shift, tl.load(boxes + one * 4 + 1) * scale - shift
            x_step = _step(start_x, tl.load(boxes + one * 4 + 2) * scale - shift, SIZE, ALIGNED)
            y_step = _step(start_y, tl.load(boxes + one * 4 + 3) * scale - shift, SIZE, ALIGNED)
            patch = gradient + tl.load(order + one) * SIZE * SIZE * channels
            for first_bin in tl.static_range(0, SIZE * SIZE, BINS):
                bins = first_bin + tl.arange(0, BINS)
                given = (bins < SIZE * SIZE)[:, None] & (channel < channels)[None, :]
                values = tl.load(patch + bins[:, None] * channels + channel[None, :], given, 0.0)
                of_rows = _tents(y, start_y, y_step, bins // SIZE, height, SAMPLES)
                of_columns = _tents(x, start_x, x_step, bins % SIZE, width, SAMPLES)
                weights = tl.reshape(of_rows[:, None, :] * of_columns[None, :, :], [TILE * TILE, BINS])
                total = tl.dot(weights.to(values.dtype), values, total, input_precision="ieee")
    pixel = tl.arange(0, TILE * TILE)
    y, x = top + pixel // TILE, left + pixel % TILE
    place = ((image.to(tl.int64) * height + y) * width + x)[:, None] * channels + channel[None, :]
    inside = ((y < height) & (x < width))[:, None] & (channel < channels)[None, :]
    tl.store(cells + place, total.to(cells.dtype.element_ty), inside)


def pool(
    maps: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    size: int,
    samples: int,
    aligned: bool,
) -> Tensor:
    """Maps [B, H, W, C] of any floating dtype -> patches [R, P, P, C] of it; see ``roi_align.py``."""
    maps = [
        m.contiguous() for m in maps
    ]  # nothing is copied where they lie so; a compiler may have laid them otherwise
    boxes, images, levels = boxes.contiguous(), images.contiguous(), levels.contiguous()
    channels = maps[0].shape[3]
    pooled = maps[0].new_empty(len(boxes), size, size, channels)
    if not pooled.numel():
        return pooled
    bins, block = min(64, triton.next_power_of_2(size * size)), _block(channels, maps[0].dtype)
    with torch.cuda.device_of(boxes):
        _pool[(len(boxes), triton.cdiv(size * size, bins), triton.cdiv(channels, block))](
            tuple(maps),
            tuple(m.shape[1] for m in maps),
            tuple(m.shape[2] for m in maps),
            tuple(1.0 / stride for stride in strides),
            boxes, images, levels, pooled, channels,
            SIZE=size, SAMPLES=samples, ALIGNED=aligned, BINS=bins, BLOCK=block, enable_fp_fusion=True,
        )  # fmt: skip
    return pooled


def gradients(
    gradient: Tensor,
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    shapes: Sequence[Sequence[int]],
    strides: Sequence[int],
    samples: int,
    aligned: bool,
) -> list[Tensor]:
    """Gradient [R, P, P, C] of the patches -> those of the maps, of ``shapes`` [B, H, W] and its dtype."""
    gradient = gradient.contiguous()
    size, channels = gradient.shape[1], gradient.shape[3]
    keys, order = torch.sort(images * len(shapes) + levels, stable=True)
    runs = torch.arange(shapes[0][0] * len(shapes) + 1, device=keys.device)
    starts = torch.searchsorted(keys, runs, out_int32=True)
    maps = [gradient.new_empty(*shape, channels) for shape in shapes]
    tiles = [b * triton.cdiv(h, TILE) * triton.cdiv(w, TILE) for b, h, w in shapes]
    block = max(16, _block(channels, gradient.dtype))  # no product of matrices is smaller
    with torch.cuda.device_of(boxes):
        _gradients[(sum(tiles), triton.cdiv(channels, block))](
            tuple(maps),
            tuple(shape[1] for shape in shapes),
            tuple(shape[2] for shape in shapes),
            tuple(1.0 / stride for stride in strides),
            tuple(sum(tiles[:level]) for level in range(len(tiles))),
            boxes.contiguous()[order], order, starts, gradient, channels,
            SIZE=size, SAMPLES=samples, ALIGNED=aligned, TILE=TILE, CHUNK=CHUNK, BLOCK=block,
            BINS=max(16, min(64, triton.next_power_of_2(size * size))), enable_fp_fusion=True,
        )  # fmt: skip
    return maps


def _block(channels: int, dtype: torch.dtype) -> int:
    """Channels that a program takes: 128 bytes of them, which is one line of the cache."""
    return int(min(128 // dtype.itemsize, triton.next_power_of_2(channels)))
