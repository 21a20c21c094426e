"""From the cells of a box to the pixels of an image: how a detector's M x M masks become masks of objects.

M cells along a side of a box, H, W image, h, w pixels that a box covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from densekit.ops.run_lengths import NO_MASK
from densekit.types import Instance

Floats = npt.NDArray[np.float32]

MASK_THRESHOLD = 0.5
"""Probability from which on a pixel belongs to an object."""


class Pasted(NamedTuple):
    """The probabilities of the pixels in a box.

    Attributes:
        x: column of the first pixel.
        y: its row.
        probabilities: [h, w].
    """

    x: int
    y: int
    probabilities: Floats


def paste(cells: Floats, box: Sequence[float], size: Sequence[int]) -> Pasted:
    """The probabilities of the pixels whose centres lie in a box and in the image.

    Bilinear between the centres of the cells, and towards 0 beyond the outermost ones, as ``grid_sample`` reads them
    without ``align_corners`` (Detectron2's ``paste_masks_in_image``): the pixel in column c has the place
    ``u = (c + 0.5 - x1) / (x2 - x1) * M - 0.5`` among the cells and takes ``max(0, 1 - |u - m|)`` of cell m; likewise
    along the columns. Both are one product of small matrices, so memory follows the box.

    Args:
        cells: [M, M] probabilities of the equal cells of the box.
        box: xyxy, continuous.
        size: (height, width) of the image.
    """
    x1, y1, x2, y2 = box
    (y, rows), (x, columns) = (
        _shares(low, high, count, limit)
        for low, high, count, limit in zip((y1, x1), (y2, x2), cells.shape, size, strict=True)
    )
    return Pasted(x, y, np.asarray(rows @ cells @ columns.T, np.float32))


def pasted_mask(cells: Floats, box: Sequence[float], size: Sequence[int]) -> Instance:
    """The pixels that belong to the object of a box: those whose probability is at least ``MASK_THRESHOLD``.

    Outside of the box none is: there the outermost cells count for less than half.
    """
    x, y, probabilities = paste(cells, box, size)
    mask = probabilities >= MASK_THRESHOLD
    return Instance(x, y, mask.view(np.uint8)) if mask.any() else NO_MASK


def _shares(low: float, high: float, count: int, limit: int) -> tuple[int, Floats]:
    """The first pixel along a side, and [pixels, count] how much of each cell each pixel takes."""
    first, behind = max(0, int(np.ceil(low - 0.5))), min(limit, int(np.floor(high - 0.5)) + 1)
    if not (high > low and behind > first):
        return first, np.zeros((0, count), np.float32)
    places = (np.arange(first, behind) + 0.5 - low) * (count / (high - low)) - 0.5
    shares = 1 - np.abs(places[:, None] - np.arange(count))
    return first, np.maximum(shares, 0).astype(np.float32)
