"""MixUp: another image shines through, and its objects are learned too."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import cv2
import numpy as np
import numpy.typing as npt
import pydantic

from densekit.data.transforms.geometry import keep_boxes
from densekit.data.transforms.instances import taken
from densekit.data.transforms.mixing import Mixing, Others, Part, Probability, pixels_alike, with_objects_of
from densekit.types import Sample


class MixUp(Mixing):
    """Blend another image into the sample's (Zhang et al. 2019, arXiv 1902.04103, section 3.1).

    The sample's own share of the pixels is drawn from Beta(alpha, alpha), the larger of the two parts. The other image
    lies at the top left and is cut at the sample's edge; where it does not reach, the pixels stay.

    The sample gets the boxes and masks of both images' objects. Of maps with a layer a class it gets what either has,
    ignored where either is; a map with one class a pixel stays the sample's own, whose image is the clearer one.

    Args:
        alpha: the larger, the nearer the shares are to one half.
        p: probability.
        until: part of the run's epochs after which nothing is mixed any more.
    """

    @pydantic.validate_call
    def __init__(
        self,
        *,
        alpha: Annotated[float, pydantic.Field(gt=0, le=1000)] = 1.5,
        p: Probability = 0.5,
        until: Part = 1.0,
    ) -> None:
        self.alpha, self.p, self.until = alpha, p, until

    def most_objects(self, most: int) -> int:
        """See ``Mixing``."""
        return 2 * most

    def __call__(self, sample: Sample, random: np.random.Generator, others: Others) -> Sample:
        """Blend with another image."""
        share = random.beta(self.alpha, self.alpha)
        other = others.draw()
        size = sample.image.shape[:2]
        height, width = (min(a, b) for a, b in zip(size, other.image.shape[:2]))
        image = _blended(sample.image, other.image, max(share, 1 - share), height, width)
        mask = sample.mask
        if mask is not None and mask.ndim == 3:
            assert other.mask is not None
            mask, inner = mask.copy(), other.mask[:, :height, :width]
            mask[:, :height, :width] = np.maximum(mask[:, :height, :width], inner)  # the ignored label is the largest
        mixed = dataclasses.replace(sample, image=image, mask=mask)
        if other.boxes is None:
            return mixed
        inside = taken(other.instances, np.arange(height), np.arange(width))
        return with_objects_of(mixed, keep_boxes(dataclasses.replace(other, instances=inside), other.boxes, size))


def _blended(
    image: npt.NDArray[Any], other: npt.NDArray[Any], share: float, height: int, width: int
) -> npt.NDArray[Any]:
    image, other = pixels_alike((image, other))
    image = image.copy()
    inner = np.ascontiguousarray(image[:height, :width])
    blended = cv2.addWeighted(inner, share, np.ascontiguousarray(other[:height, :width]), 1 - share, 0)
    image[:height, :width] = blended.reshape(inner.shape)
    return image
