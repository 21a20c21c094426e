"""The range of a set's deep images (those of more than 8 bits): measured once, from the images that are learned from.

A range is a property of the whole set, never of one image: the same brightness must be the same number in every image,
in training, evaluation and prediction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from densekit import machine
from densekit.data.images.pixel_values import Pixels, Range, check_finite
from densekit.data.images.read import ImageReader, read_pixels
from densekit.errors import DensekitError

_FAINT = 1 / 16
"""Images whose values use less of a range than this look black, or all the same."""

_SIDE = 256  # rows and columns that percentiles are taken from


@dataclasses.dataclass(frozen=True, slots=True)
class Values:
    """The values of deep images.

    Attributes:
        kind: numpy's name of their type, or several with a slash between.
        low: the least of all.
        high: the greatest of all.
        usual: (low, high) between which all but a thousandth at each end lie; of several images the median.
        middle: half of them lie below; of several images the median.
        images: how many.
    """

    kind: str
    low: float
    high: float
    usual: Range
    middle: float
    images: int = 1

    def range(self) -> Range:
        """What is to be black and white: the whole of the smallest usual scale that holds all values.

        Without values below 0 that is 0..1 (floats), or 0 to all ones of 8, 9, ... bits: the highest value that the
        camera can give is a better white than the highest that happens to occur. With values below 0 there is no usual
        scale, and it is the least and the greatest value.
        """
        if self.low < 0:
            return self.low, self.high if self.high > self.low else self.low + 1
        if self.high <= 1 and "float" in self.kind:
            return 0.0, 1.0
        return 0.0, 2.0 ** max(8, math.ceil(math.log2(self.high + 1))) - 1

    def usual_option(self) -> str:
        """``usual`` as an option, in as few figures as tell its ends apart."""
        for figures in (3, 6):
            low, high = (float(f"{end:.{figures}g}") for end in self.usual)
            if low < high:
                return as_option((low, high))
        return as_option((self.low, self.low + 1))

    def faint(self, value_range: Range) -> bool:
        """Whether next to nothing of a range is used."""
        return self.usual[1] - self.usual[0] < _FAINT * (value_range[1] - value_range[0])

    def dark(self, value_range: Range) -> bool:
        """Whether next to all of them are near the black of a range."""
        return self.usual[1] < value_range[0] + _FAINT * (value_range[1] - value_range[0])

    def white(self, value_range: Range) -> bool:
        """Whether more than half of them lie beyond the white of a range."""
        return self.middle > value_range[1]


def values_of(pixels: Pixels) -> Values:
    """The values of one image [H, W, C]."""
    step = max(1, -(-max(pixels.shape[:2]) // _SIDE))
    low, middle, high = (float(v) for v in np.percentile(pixels[::step, ::step], (0.1, 50, 99.9)))
    return Values(str(pixels.dtype), float(pixels.min()), float(pixels.max()), (low, high), middle)


def pooled(values: Sequence[Values]) -> Values:
    """The values of several images."""
    return Values(
        "/".join(sorted({v.kind for v in values})),
        min(v.low for v in values),
        max(v.high for v in values),
        (float(np.median([v.usual[0] for v in values])), float(np.median([v.usual[1] for v in values]))),
        float(np.median([v.middle for v in values])),
        len(values),
    )


def measure(paths: Sequence[Path], reader: ImageReader) -> Values | None:
    """The values of deep images; those that cannot be read are left out, and None is left where none can.

    Args:
        paths: the files.
        reader: for channels and the largest number of pixels.
    """

    def look(path: Path) -> Values | None:
        try:
            pixels = read_pixels(path, channels=reader.channels, max_pixels=reader.max_pixels)
            check_finite(pixels, path)
        except DensekitError:  # told by whoever comes to learn from it
            return None
        return values_of(pixels)

    with ThreadPoolExecutor(min(8, machine.cores())) as pool:
        found = [values for values in pool.map(look, paths) if values is not None]
    return pooled(found) if found else None


def as_option(value_range: Range) -> str:
    """A range as it is written in a config or on the command line."""
    return f"[{value_range[0]:g}, {value_range[1]:g}]"
