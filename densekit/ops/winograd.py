"""3x3 convolutions in float32 with a quarter of the products (Lavin & Gray 2016, arXiv 1509.09308, F(4x4, 3x3)).

Four by four output pixels come from a tile of six by six input pixels. Both are turned by small constant matrices into
a space of 36 points in which the convolution is a product of matrices at each point: 36 products a tile, input channel
and output channel instead of 144. The turning costs passes over memory, so it pays where there are many channels.

The results differ from a direct convolution's by float32 rounding, about four times as much of it.

Letters: B images, C channels, O output channels, H, W size of the map, T tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TILE, POINTS = 4, 36
"""Output pixels on a side of a tile, points of the space in which the products are made (six by six)."""

LEAST_TILES = 32
"""With fewer the weights' way into the space of points costs more than the products saved."""

CHUNK = 16 << 20
"""Bytes that one round of tiles takes at the most: neither large maps nor many images need much memory, and what was
just written is still in the processor's cache."""

# The interpolation points are 0, 1, -1, 2, -2 and infinity: the article's section 4.3.
_INPUT: Sequence[Sequence[float]] = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_KERNEL: Sequence[Sequence[float]] = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_OUTPUT: Sequence[Sequence[float]] = [
    [1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
]
_CONSTANT = 7
"""The point (1, 1): what is added there is added to each pixel of the tile."""


def pays(x: Tensor, weight: Tensor, *, learning: bool = False) -> bool:
    """Whether this is the faster way for a 3x3 convolution of stride 1, padding 1, no dilation and no groups.

    Measured on AVX2 cores against oneDNN: from about 120 channels on in the forward pass alone (1.5 to 2.3 times as
    fast), from 64 on where gradients follow. CPUs with wider vectors, other devices and other layouts keep their own.

    Args:
        x: [B, C, H, W].
        weight: [O, C, 3, 3].
        learning: gradients of input and weight follow.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    if torch.is_autocast_enabled("cpu") or not _faster_here() or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    (images, channels), out, (down, across) = x.shape[:2], weight.shape[0], _grid(x)
    return images * down * across >= LEAST_TILES and channels * out >= (30 if learning else 60) * (channels + out)


def _faster_here() -> bool:
    """Whether products, not memory, hold this CPU's convolutions back."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution with padding 1 and no gradient, by the faster way: [B, C, H, W] -> [B, O, H, W]."""
    if pays(x, weight):
        return convolve(x, turn_weight(weight), bias)
    return F.conv2d(x, weight, bias, padding=1)


def turn_weight(weight: Tensor) -> Tensor:
    """[O, C, 3, 3] -> [36, O, C] in the space of points; no copy comes first where channels lie last."""
    out, channels = weight.shape[:2]
    return torch.matmul(_kernel(), weight.permute(0, 2, 3, 1).reshape(out, 9, channels)).transpose(0, 1)


def convolve(x: Tensor, turned: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """The convolution with padding 1.

    Args:
        x: [B, C, H, W] float32, channels last.
        turned: [36, O, C] of ``turn_weight``.
        bias: [O].
        relu: whether the result goes through a ReLU.

    Returns:
        [B, O, H, W], channels last.
    """
    (images, channels, height, width), out = x.shape, turned.shape[1]
    down, across = _grid(x)
    y = torch.empty((images, out, down * TILE, across * TILE), memory_format=torch.channels_last)
    places = y.permute(0, 2, 3, 1).view(images, down, TILE, across, TILE, out)
    for some, rows in _rounds(images, down, 4 * POINTS * (channels + out) * across):
        products = torch.bmm(_points(_tiles(x, some, rows)), turned.transpose(1, 2))
        if bias is not None:
            products[_CONSTANT] += bias
        part = torch.matmul(_output(), products.transpose(0, 1))  # [T, 16, O]
        place = places[some, rows].transpose(2, 3)
        place.copy_((part.clamp_min_(0.0) if relu else part).view(place.shape))
    if y.shape[2:] == x.shape[2:]:
        return y  # itself, not a view of it, so that what follows may write over it
    return y[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


def gradients(x: Tensor, turned: Tensor, gradient: Tensor, *, of_input: bool = True) -> tuple[Tensor | None, Tensor]:
    """The gradients of input and weight: each step of ``convolve`` backwards.

    Args:
        x: [B, C, H, W] float32, channels last.
        turned: [36, O, C] of ``turn_weight``.
        gradient: [B, O, H, W] of the output.
        of_input: whether the input's is asked for.

    Returns:
        [B, C, H, W], channels last, or None; and [O, C, 3, 3].
    """
    (images, channels, height, width), out = x.shape, turned.shape[1]
    down, across = _grid(x)
    gradient = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, across * TILE - width, 0, down * TILE - height))
    gradient = gradient.reshape(images, down, TILE, across, TILE, out)
    before = x.new_empty(images, height, width, channels) if of_input else None
    learned: Tensor | None = None
    for some, rows in _rounds(images, down, 4 * POINTS * (channels + out) * across):
        part = gradient[some, rows].transpose(2, 3).reshape(-1, TILE**2, out)
        products = torch.matmul(_output().t(), part).transpose(0, 1)  # [36, T, O]
        tiles = _tiles(x, some, rows)
        pair = products.transpose(1, 2), _points(tiles)
        learned = torch.bmm(*pair) if learned is None else learned.baddbmm_(*pair)
        if before is not None:
            part = torch.matmul(_input().t(), torch.bmm(products, turned).transpose(0, 1))  # [T, 36, C]
            _put(before[some], rows, part.view(tiles.shape))
    assert learned is not None, "a batch has at least one tile"
    weight = torch.matmul(_kernel().t(), learned.transpose(0, 1)).view(out, 3, 3, channels).permute(0, 3, 1, 2)
    return None if before is None else before.permute(0, 3, 1, 2), weight


def _grid(x: Tensor) -> tuple[int, int]:
    """Rows of tiles, and tiles in a row, that cover a map [B, C, H, W]."""
    return -(-x.shape[2] // TILE), -(-x.shape[3] // TILE)


def _tiles(x: Tensor, some: slice, rows: slice) -> Tensor:
    """Rows of tiles of some images, [B, C, H, W] -> [b, down, across, 6, 6, C]; they overlap by two pixels.

    Only these rows are copied, into zeros around them; the tiles lie over one another in the copy.
    """
    (height, width), across = x.shape[2:], _grid(x)[1]
    top, bottom = rows.start * TILE - 1, rows.stop * TILE + 1
    part = x.permute(0, 2, 3, 1)[some, max(0, top) : bottom]
    part = F.pad(part, (0, 0, 1, across * TILE - width + 1, max(0, -top), max(0, bottom - height)))
    return _as_tiles(part, rows.stop - rows.start, across, (6, 6))


def _as_tiles(x: Tensor, down: int, across: int, size: tuple[int, int]) -> Tensor:
    """[B, H, W, C] -> [B, down, across, *size, C]: what begins at every fourth pixel, in the same memory."""
    image, row, pixel, channel = x.stride()
    shape = (x.shape[0], down, across, *size, x.shape[3])
    return x.as_strided(shape, (image, TILE * row, TILE * pixel, row, pixel, channel), x.storage_offset())


def _points(tiles: Tensor) -> Tensor:
    """[B, down, across, 6, 6, C] -> [36, T, C] in the space of points."""
    return torch.matmul(_input(), tiles.reshape(-1, POINTS, tiles.shape[-1])).transpose(0, 1)


def _put(x: Tensor, rows: slice, tiles: Tensor) -> None:
    """Put sums of tiles [B, down, across, 6, 6, C] into their rows of a map [B, H, W, C].

    Two rows are shared with the rows of tiles above, which were put there before. Tiles overlap, so they are added in
    four parts within which none does: their first four pixels and their last two, both ways.
    """
    images, down, across, _, _, channels = tiles.shape
    whole = tiles.new_zeros(images, down * TILE + 2, across * TILE + 2, channels)
    for y, y_end in ((0, TILE), (TILE, 6)):
        for left, right in ((0, TILE), (TILE, 6)):
            place = _as_tiles(whole[:, y:, left:], down, across, (y_end - y, right - left))
            place += tiles[:, :, :, y:y_end, left:right]
    height, width = x.shape[1:3]
    top, skip = rows.start * TILE - 1, 2 if rows.start else 1  # above the map's first row lies one of zeros
    whole = whole[:, :, 1 : width + 1]
    if rows.start:
        x[:, top : top + 2] += whole[:, : min(2, height - top)]
    x[:, top + skip : rows.stop * TILE + 1] = whole[:, skip : height - top]


def _rounds(images: int, down: int, bytes_a_row: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of tiles, as many at a time as ``CHUNK`` holds: several images, or a part of one."""
    count = _even(images, CHUNK // (bytes_a_row * down))
    height = down if count > 1 else _even(down, CHUNK // bytes_a_row)
    for image in range(0, images, count):
        for row in range(0, down, height):
            yield slice(image, image + count), slice(row, min(row + height, down))


def _even(whole: int, most: int) -> int:
    """The size of parts that are alike, none above ``most`` unless that is none."""
    return -(-whole // -(-whole // max(1, most)))


def _both_ways(matrix: Sequence[Sequence[float]]) -> Tensor:
    """The matrix for rows and columns at once: of a tile whose pixels lie in one row."""
    with torch.inference_mode(False):  # kept for later calls, which may be others
        one = torch.tensor(matrix, dtype=torch.float64)
        return torch.kron(one, one).float()


# Made at the first use, not at import.
@functools.cache
def _input() -> Tensor:
    return _both_ways(_INPUT)


@functools.cache
def _kernel() -> Tensor:
    return _both_ways(_KERNEL)


@functools.cache
def _output() -> Tensor:
    return _both_ways(_OUTPUT)
