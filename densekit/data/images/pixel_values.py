"""What the values of an image file become: the one place that knows files of more than 8 bits.

The model takes 0 (black) to 255 (white). uint8 files are on that scale already and stay uint8. Every other type
("deep" images: uint16, int16, int32, floats, ...) becomes float32 there, linearly, so that no two values fall
together: the two ends of a range become 0 and 255, and what lies beyond them is cut off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.errors import DensekitError

Pixels = npt.NDArray[Any]

Range = tuple[float, float]
"""The values of deep images that become black and white."""

MOST = 1e30
"""Floats from here on stand for "no data" (GDAL's is -3.4e38), as NaN does."""


def on_scale(values: Pixels, value_range: Range | None, path: Path) -> Pixels:
    """The values of an image file on the scale of the model.

    Args:
        values: [H, W, C] as stored.
        value_range: of deep images; uint8 takes no notice of it. None: 0..65535 for uint16, and other types must be on
            the 0..255 scale already.
        path: of the file, for messages.

    Returns:
        uint8 as it is, bool as 0 and 255, any other type as float32 in 0..255.

    Raises:
        DensekitError: NaN, infinity or no-data values; without a range, values that are not on the 0..255 scale.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    check_finite(values, path)
    low, high = value_range or _usual_range(values, path)
    exact = np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64
    scaled: Pixels = np.subtract(values, low, dtype=exact)
    scaled *= 255 / (high - low)
    return np.clip(scaled, 0, 255, out=scaled).astype(np.float32, copy=False)


def _usual_range(values: Pixels, path: Path) -> Range:
    if values.dtype == np.uint16:
        return 0, 65535
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 255:
        raise DensekitError(
            f"{path}: its values go from {low:g} to {high:g} ({values.dtype}), which says nothing about black and "
            f"white; give the two as data.range, such as data.range=[{low:g},{high:g}]"
        )
    return 0, 255


def check_finite(values: Pixels, path: Path) -> None:
    """Refuse an image with values that mean nothing: one of them makes every number that it meets meaningless.

    Args:
        values: [H, W, C] of any type; whole numbers pass.
        path: of the file, for the message.

    Raises:
        DensekitError: NaN, infinity, or a float of ``MOST`` and more; says how many.
    """
    if bad := count_not_finite(values):
        raise DensekitError(
            f"{path}: {bad} of its {values.shape[0] * values.shape[1]} pixels are NaN, infinite or a no-data value "
            f"({MOST:g} and more); fill them in, with the darkest value for instance"
        )


def count_not_finite(values: Pixels) -> int:
    """How many pixels of [H, W, C] are NaN, infinite, or as large as no-data values are."""
    if values.dtype.kind != "f" or not values.size:
        return 0
    with np.errstate(invalid="ignore"):
        if float(values.min()) > -MOST and float(values.max()) < MOST:  # neither is true of NaN
            return 0
        good = np.abs(values.astype(np.float64)) < MOST
    return int((~good.all(axis=2)).sum())


def stretched(values: Pixels) -> npt.NDArray[np.uint8]:
    """An image to look at: uint8 as it is, other types with their least value black and their greatest white."""
    if values.dtype == np.uint8:
        return values
    wide = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = float(wide.min()), float(wide.max())
    return ((wide - low) * (255 / max(high - low, 1e-30))).astype(np.uint8)
