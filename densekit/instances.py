"""Masks of single objects, each cut to a rectangle around its object: one of a sample, and all of a batch.

B images in a batch, N padded objects an image.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor


class Instance(NamedTuple):
    """The mask of one object, cut to a rectangle around it.

    Attributes:
        x: column of the cut's first pixel in the image.
        y: its row.
        mask: [h, w] uint8, 0 or 1; outside of the cut all is 0. Without pixels where an object has no mask.
    """

    x: int
    y: int
    mask: npt.NDArray[np.uint8]


@dataclasses.dataclass(slots=True)
class InstanceMasks:
    """The masks of a batch's objects, each cut to a rectangle around it: memory follows the objects, not the images.

    Attributes:
        pixels: [T] uint8, 0 or 1: the cuts one after another, each row by row.
        starts: [B, N] int64 place of each cut's first pixel.
        cuts: [B, N, 4] int64 (x, y, width, height) of each cut in the pixels of ``Batch.images``; zeros where there is
            none.
    """

    pixels: Tensor
    starts: Tensor
    cuts: Tensor
