"""Masks of objects as COCO's run lengths, from their cuts alone: an image-sized mask is never made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.types import Instance

Runs = npt.NDArray[np.int64]


def encoded(instance: Instance, size: Sequence[int]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask, as ``pycocotools.mask.encode`` gives them of the whole image's.

    Args:
        instance: inside of the image.
        size: (height, width) of the image.

    Returns:
        ``{"size": [height, width], "counts": text}``.
    """
    return compressed(runs_of(instance, size), size)


def compressed(runs: Runs, size: Sequence[int]) -> dict[str, Any]:
    """Run lengths, column by column and of zeros first, in COCO's compressed form."""
    from pycocotools import mask as coco

    height, width = size
    counts = coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)["counts"]
    return {"size": [int(height), int(width)], "counts": counts.decode("ascii")}


def runs_of(instance: Instance, size: Sequence[int]) -> Runs:
    """Run lengths of a mask in an image of ``size``, column by column, of zeros first."""
    height, width = size
    x, y, mask = instance
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    columns[:, 1:-1] = mask.T
    column, row = np.nonzero(np.diff(columns, axis=1))
    edges = (x + column) * height + y + row  # a run's first place and the place behind its last one, in turn
    goes_on = np.zeros(len(edges), np.bool_)  # from a column's last row to the next one's first
    goes_on[1:-1:2] = edges[1:-1:2] == edges[2::2]
    goes_on[2::2] = goes_on[1:-1:2]
    runs = np.diff(np.concatenate(([0], edges[~goes_on], [height * width])))
    return np.asarray(runs[:-1] if len(runs) > 1 and not runs[-1] else runs, np.int64)


def cut_out(runs: Runs, height: int) -> Instance:
    """The mask that run lengths describe, cut to what they fill.

    Args:
        runs: column by column, of zeros first; none is negative.
        height: of the image.
    """
    ends = runs.cumsum()
    filled = np.flatnonzero(runs[1::2]) * 2 + 1
    if not len(filled):
        return NO_MASK
    (left, top), (right, bottom) = (
        np.divmod(place, height) for place in (ends[filled] - runs[filled], ends[filled] - 1)
    )
    x, width = int(left[0]), int(right[-1] - left[0]) + 1
    # A run that goes on in the next column spans all rows.
    y, last = (int(top.min()), int(bottom.max())) if (left == right).all() else (0, height - 1)
    side = last + 1 - y
    steps = np.zeros(width * side + 1, np.int8)
    steps[(left - x) * side + top - y] = 1
    steps[(right - x) * side + bottom + 1 - y] -= 1
    columns = steps[:-1].cumsum(dtype=np.int8).view(np.uint8).reshape(width, side)
    if side == height:
        rows = np.flatnonzero(columns.any(0))
        columns, y = columns[:, rows[0] : rows[-1] + 1], int(rows[0])
    return Instance(x, y, np.ascontiguousarray(columns.T))


NO_MASK = Instance(0, 0, np.zeros((0, 0), np.uint8))
"""Of an object without a mask, or of which nothing is left."""
