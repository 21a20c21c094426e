"""Contrast that does not depend on the exposure: for training and for evaluation alike."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import cv2
import numpy as np
import numpy.typing as npt
import pydantic

from densekit.types import Sample

Percent = Annotated[float, pydantic.Field(ge=0, le=100, allow_inf_nan=False)]


class ContrastStretch:
    """Stretch an image so that two of its percentiles become black and white: 0 and 255.

    The usual first step on micrographs, whose brightness says little (StarDist and Cellpose normalise so). It draws
    nothing, so it may stand in an evaluation's transforms too; put it before anything that cuts the image.

    Args:
        low: percentile that becomes 0; what is darker is 0 as well.
        high: percentile that becomes 255; what is brighter is 255 as well.
        each_channel: take the percentiles of each channel alone, as stains or fluorophores need it; together they keep
            the colours.
    """

    @pydantic.validate_call
    def __init__(self, *, low: Percent = 0.5, high: Percent = 99.8, each_channel: bool = False) -> None:
        if low >= high:
            raise ValueError(f"low lies below high, not {low} and {high}")
        self.low, self.high, self.each_channel = low, high, each_channel

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """Stretch the image; an image of one value becomes 0."""
        image = sample.image
        if self.each_channel:
            image = np.dstack([self._stretched(image[:, :, c : c + 1]) for c in range(image.shape[2])])
        else:
            image = self._stretched(image)
        return dataclasses.replace(sample, image=image)

    def _stretched(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        floats = image.dtype != np.uint8
        if floats:
            low, high = (float(v) for v in np.percentile(image, (self.low, self.high)))  # so that floats stay 4 bytes
        else:  # the same numbers from 256 counts
            low, high = _percentiles(_counts(image), (self.low, self.high))
        values = image if floats else np.arange(256, dtype=np.float32)
        stretched: npt.NDArray[Any] = ((values - low) * (255 / max(high - low, 1e-6))).clip(0, 255).astype(np.float32)
        if not floats:
            stretched = cv2.LUT(image, np.rint(stretched).astype(np.uint8)).reshape(image.shape)
        return stretched


def _counts(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """How often each of 256 values occurs; part by part, since numpy counts 8 bytes a pixel."""
    counts = np.zeros(256, np.int64)
    for rows in np.array_split(image, -(-image.size // 2**22)):
        counts += np.bincount(rows.ravel(), minlength=256)
    return counts


def _percentiles(counts: npt.NDArray[np.int64], percents: tuple[float, ...]) -> tuple[float, ...]:
    """``np.percentile`` of the values 0, 1, ... that occur so often, linear between neighbours."""
    ends, last = np.cumsum(counts), int(counts.sum()) - 1
    found = []
    for percent in percents:
        place = percent / 100 * last
        below, above = np.searchsorted(ends, (int(place), min(int(place) + 1, last)), side="right")
        found.append(float(below + (above - below) * (place - int(place))))
    return tuple(found)
