"""What the values of an image file may be, before they become what the model sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.errors import DensekitError

Pixels = npt.NDArray[Any]

MOST = 1e30
"""Floats from here on stand for "no data" (GDAL's is -3.4e38), as NaN does."""


def check_finite(values: Pixels, path: Path) -> None:
    """Refuse an image with values that mean nothing: one of them makes every number that it meets meaningless.

    Args:
        values: of any type; whole numbers pass.
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
    wide = values.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    return ((wide - low) * (255 / max(high - low, 1e-30))).astype(np.uint8)
