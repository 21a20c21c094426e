"""Mosaic: four images side by side."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pydantic

from densekit.data.transforms.geometry import keep_boxes
from densekit.data.transforms.instances import taken
from densekit.data.transforms.mixing import Mixing, Others, Part, Probability, pixels_alike, shifted, with_objects_of
from densekit.data.transforms.resize import Side
from densekit.types import IGNORE, Sample

Place = tuple[slice, slice]
"""Rows and columns."""


class Mosaic(Mixing):
    """Four images that meet at a point (Bochkovskiy et al. 2020, arXiv 2004.10934, section 3.3).

    The point is drawn in the middle of a canvas of ``size``. Each image lies with its inner corner there, at the size
    that the transforms before give it; what reaches over the canvas's edge is cut off with its boxes and masks, and a
    box of which less than a pixel a side is left is dropped. A ``Resize`` before makes the images alike; a
    ``ScaleJitter`` behind makes one training image of the canvas, as YOLO's random affine does.

    Args:
        size: (height, width) of the canvas.
        p: probability; an image that is not mixed keeps its own size.
        centre: (smallest, largest) place of the point, as a part of each side.
        fill: value of the canvas where no image lies; masks get the ignored label there.
        until: part of the run's epochs after which nothing is mixed any more.
    """

    @pydantic.validate_call
    def __init__(
        self,
        *,
        size: tuple[Side, Side],
        p: Probability = 1.0,
        centre: tuple[Probability, Probability] = (0.25, 0.75),
        fill: Annotated[int, pydantic.Field(ge=0, le=255)] = 128,
        until: Part = 1.0,
    ) -> None:
        if centre[0] > centre[1]:
            raise ValueError(f"centre is (smallest, largest), not {centre}")
        self.size, self.p, self.centre, self.fill, self.until = size, p, centre, fill, until

    def most_objects(self, most: int) -> int:
        """See ``Mixing``."""
        return 4 * most

    def __call__(self, sample: Sample, random: np.random.Generator, others: Others) -> Sample:
        """The sample at the top left, with three others."""
        point = [round(random.uniform(*self.centre) * side) for side in self.size]
        samples = [sample, *(others.draw() for _ in range(3))]
        places = [_places(s.image.shape[:2], point, self.size, corner) for corner, s in enumerate(samples)]
        first, *rest = (_moved(s, seen, place, self.size) for s, (seen, place) in zip(samples, places))
        first = with_objects_of(first, *rest)
        images = pixels_alike([s.image for s in samples])
        image = np.full((*self.size, sample.image.shape[2]), self.fill, images[0].dtype)
        for one, (seen, place) in zip(images, places):
            image[place] = one[seen]
        return dataclasses.replace(first, image=image, mask=self._mask(samples, places))

    def _mask(self, samples: list[Sample], places: list[tuple[Place, Place]]) -> npt.NDArray[np.uint8] | None:
        if samples[0].mask is None:
            return None
        mask = np.full((*samples[0].mask.shape[:-2], *self.size), IGNORE, np.uint8)
        for sample, (seen, place) in zip(samples, places):
            assert sample.mask is not None
            mask[..., place[0], place[1]] = sample.mask[..., seen[0], seen[1]]
        return mask


def _places(size: tuple[int, ...], point: list[int], canvas: tuple[int, int], corner: int) -> tuple[Place, Place]:
    """What is seen of an image of ``size``, and where on the canvas; corners are numbered row by row."""
    behind = (corner >= 2, corner % 2 == 1)
    (rows, down), (columns, across) = map(_along, size, point, canvas, behind)
    return (rows, columns), (down, across)


def _along(length: int, point: int, canvas: int, behind: bool) -> tuple[slice, slice]:
    """The same along one side: before the point, or behind it."""
    if behind:
        seen = min(length, canvas - point)
        return slice(0, seen), slice(point, point + seen)
    seen = min(length, point)
    return slice(length - seen, length), slice(point - seen, point)


def _moved(sample: Sample, seen: Place, place: Place, canvas: tuple[int, int]) -> Sample:
    """The sample with its boxes and instances where they are on the canvas; image and mask as they were."""
    if sample.boxes is None:
        return sample
    x, y = place[1].start, place[0].start
    inside = taken(sample.instances, *(np.arange(s.start, s.stop) for s in seen))
    offset = np.array([x - seen[1].start, y - seen[0].start] * 2, np.float32)
    moved = dataclasses.replace(sample, instances=shifted(inside, x, y))
    return keep_boxes(moved, sample.boxes + offset, canvas)
