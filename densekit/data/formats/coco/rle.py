"""COCO's segmentations as masks: run lengths decoded with every number checked, polygons as COCO's own code draws them.

Run lengths are decoded here and not by pycocotools, whose C code trusts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Runs = npt.NDArray[np.int64]
Box = tuple[float, float, float, float]
"""(x, y, width, height)."""

FEW = 1000
"""Characters of compressed run lengths from which on they are decoded all at once."""


class SegmentationError(ValueError):
    """What is wrong with one segmentation; the caller adds the file and the annotation."""


def segmentation_mask(segmentation: Any, height: int, width: int) -> Mask:
    """Draw one COCO segmentation.

    Args:
        segmentation: a list of polygons, or ``{"size": [height, width], "counts": ...}`` with counts as a list of run
            lengths or COCO's compressed string.
        height: of the image.
        width: of the image.

    Returns:
        [height, width].

    Raises:
        SegmentationError: it is empty, of another size, or breaks the format.
    """
    return decode_runs(segmentation_runs(segmentation, height, width), height, width)


def segmentation_runs(segmentation: Any, height: int, width: int) -> Runs:
    """The run lengths of ``segmentation_mask``, which are checked and add up to the image; raises what that does."""
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        if size != [height, width]:
            raise SegmentationError(f"its run lengths are for {size}, the image is [{height}, {width}]")
        return _checked(run_lengths(segmentation.get("counts")), height, width)
    if isinstance(segmentation, list) and segmentation:
        return polygons_runs(segmentation, height, width)
    raise SegmentationError(
        "it has no segmentation" if not segmentation else f"{segmentation!r} is no segmentation"[:200]
    )


def run_lengths(counts: Any) -> npt.NDArray[np.int64]:
    """Run lengths, of zeros first, from a list of them or from COCO's compressed string.

    The string holds five bits a character, lowest first; bit 5 says that more follow, bit 4 of the last one is the
    sign; from the fourth number on each is the difference to the one before the last (maskApi.c, rleToString).

    Raises:
        SegmentationError: neither of the two, or a number out of range.
    """
    if isinstance(counts, str):
        return _few(counts) if len(counts) < FEW else _many(counts)
    if not isinstance(counts, list) or not all(
        type(c) in (int, float) and 0 <= c < 2**40 and c % 1 == 0 for c in counts
    ):
        raise SegmentationError("its run lengths are neither a string nor a list of whole numbers")
    return np.array(counts, np.int64)


def decode_runs(runs: npt.NDArray[np.int64], height: int, width: int) -> Mask:
    """Fill a mask column by column with runs of False and True in turn.

    Raises:
        SegmentationError: a run is negative, or they don't add up to the image.
    """
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, _checked(runs, height, width)).reshape(width, height).T


def _checked(runs: Runs, height: int, width: int) -> Runs:
    if (runs < 0).any() or runs.sum() != height * width:
        raise SegmentationError(f"its run lengths add up to {runs.sum()}, the image has {height * width} pixels")
    return runs


def polygons_mask(polygons: Sequence[Any], height: int, width: int) -> Mask:
    """Union of polygons, each a flat list x1, y1, x2, y2, ..., as COCO's own code fills them.

    Raises:
        SegmentationError: fewer than three points, an odd count, or a coordinate far outside of the image.
    """
    return decode_runs(polygons_runs(polygons, height, width), height, width)


def polygons_runs(polygons: Sequence[Any], height: int, width: int) -> npt.NDArray[np.int64]:
    """The run lengths of ``polygons_mask``; raises what that does."""
    from pycocotools import mask as coco

    for polygon in polygons:
        _check_polygon(polygon, height, width)
    runs = coco.frPyObjects([[float(v) for v in polygon] for polygon in polygons], height, width)
    return run_lengths((runs[0] if len(runs) == 1 else coco.merge(runs))["counts"].decode())


def segmentation_box(segmentation: Any) -> Box:
    """The box around a segmentation, for annotations that have none of their own.

    Returns:
        Around the points of polygons, or around the pixels of run lengths.

    Raises:
        SegmentationError: it is empty or breaks the format.
    """
    if isinstance(segmentation, dict):
        size, runs = segmentation.get("size"), run_lengths(segmentation.get("counts"))
        if not isinstance(size, list) or len(size) != 2 or not all(type(side) in (int, float) for side in size):
            raise SegmentationError(f"the size of its run lengths is {size!r}"[:120])
        if (runs < 0).any() or size[0] * size[1] != runs.sum():
            raise SegmentationError(f"its run lengths add up to {runs.sum()}, which is not {size[0]} x {size[1]}")
        box = extent(runs, int(size[0]))
        if box is None:
            raise SegmentationError("its run lengths fill nothing")
        return box
    if not isinstance(segmentation, list) or not segmentation:
        raise SegmentationError("it has no segmentation")
    for polygon in segmentation:
        _check_points(polygon)
    points = np.concatenate([np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation])
    (x, y), (width, height) = points.min(0), np.ptp(points, 0)
    return float(x), float(y), float(width), float(height)


def extent(runs: Runs, height: int) -> Box | None:
    """The box around what the runs, column by column, fill; None where that is nothing."""
    ends = runs.cumsum()
    filled = np.flatnonzero(runs[1::2]) * 2 + 1
    if not len(filled):
        return None
    first, last = ends[filled] - runs[filled], ends[filled] - 1
    x, right = int(first[0] // height), int(last[-1] // height) + 1
    y, bottom = 0, height
    if (first // height == last // height).all():  # a run that goes on in the next column spans all rows
        y, bottom = int((first % height).min()), int((last % height).max()) + 1
    return float(x), float(y), float(right - x), float(bottom - y)


def _check_points(polygon: Any) -> None:
    if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
        raise SegmentationError("a polygon is not a list of numbers")
    if not all(map(math.isfinite, polygon)):
        raise SegmentationError(f"a polygon holds {next(v for v in polygon if not math.isfinite(v))}, no finite number")
    if len(polygon) < 6 or len(polygon) % 2:
        raise SegmentationError(f"a polygon has {len(polygon)} numbers; it needs x and y of three points or more")


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    _check_points(polygon)
    # Such points draw nothing, and the time that COCO's code takes grows with their distance.
    limit = 10 * max(height, width)
    if max(map(abs, polygon)) > limit:
        raise SegmentationError(f"a polygon goes to {max(polygon, key=abs)}, far outside of {width} x {height} pixels")


_NO_MEANING = "its compressed run lengths hold a character that has no meaning there"
_TOO_LARGE = "its compressed run lengths hold a number of more than 40 bits"


def _few(text: str) -> Runs:
    """Of a short string, such as one object's: there a loop is done before numpy has begun."""
    values: list[int] = []
    value = places = 0
    for letter in text.encode("latin-1", "replace"):
        digit = letter - 48
        if not 0 <= digit <= 63:
            raise SegmentationError(_NO_MEANING)
        if places > 35:
            raise SegmentationError(_TOO_LARGE)
        value |= (digit & 31) << places
        places += 5
        if not digit & 32:
            value -= (digit >> 4 & 1) << places
            values.append(value + (values[-2] if len(values) > 2 else 0))
            value = places = 0
    if places:
        raise SegmentationError(_NO_MEANING)
    return np.array(values, np.int64)


def _many(text: str) -> Runs:
    digits = np.frombuffer(text.encode("latin-1", "replace"), np.uint8).astype(np.int64) - 48
    if ((digits < 0) | (digits > 63)).any() or (len(digits) and digits[-1] & 32):
        raise SegmentationError(_NO_MEANING)
    last = np.flatnonzero(digits & 32 == 0)
    first = np.concatenate(([0], last[:-1] + 1)) if len(last) else last
    places = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    if places.max(initial=0) > 7:
        raise SegmentationError(_TOO_LARGE)
    values = np.add.reduceat((digits & 31) << (5 * places), first) if len(last) else last
    negative = digits[last] & 16 > 0
    values = values - (negative.astype(np.int64) << (5 * (places[last] + 1)))
    # Differences to the number before the last one, from the fourth on.
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return np.asarray(values)
