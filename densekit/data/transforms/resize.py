"""Our own transforms: those that a loader spends its time in, exact on boxes, with one pass over the pixels."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import cv2
import numpy as np
import pydantic

from densekit.data.transforms.geometry import keep_boxes, resize_image, resize_mask
from densekit.data.transforms.instances import mirrored, nearest, taken
from densekit.types import IGNORE, Sample

Side = Annotated[int, pydantic.Field(ge=1, le=2**16)]
Scale = Annotated[float, pydantic.Field(gt=0, le=100, allow_inf_nan=False)]
Probability = Annotated[float, pydantic.Field(ge=0, le=1)]


class Resize:
    """Resize to a fixed size, or by the short or long side with the aspect ratio kept.

    Args:
        short: length that the short side gets; of several, one is drawn for each image (training only).
        long: the most that the long side may get; alone: the length that the long side gets.
        height: fixed height, together with ``width``; the aspect ratio is not kept.
        width: fixed width.
    """

    @pydantic.validate_call
    def __init__(
        self,
        *,
        short: Side | tuple[Side, ...] | None = None,
        long: Side | None = None,
        height: Side | None = None,
        width: Side | None = None,
    ) -> None:
        fixed, sided = (height, width).count(None), short is None and long is None
        if fixed == 1 or (fixed == 2) == sided:
            raise ValueError("takes height and width, or short, or long, or short and long")
        if short == ():
            raise ValueError("short lists no length")
        self.short = (short,) if isinstance(short, int) else short
        self.long = long
        self.fixed = None if height is None or width is None else (height, width)

    @property
    def is_random(self) -> bool:
        """Whether the size is drawn."""
        return self.short is not None and len(self.short) > 1

    def largest(self, size: tuple[int, int]) -> tuple[int, int]:
        """The largest (height, width) that an image of ``size`` can get."""
        return self._target(size, max(self.short) if self.short else None)

    def __call__(self, sample: Sample, random: np.random.Generator, source: tuple[int, int] | None = None) -> Sample:
        """Resize image, mask and boxes.

        Args:
            sample: to be resized.
            random: draws the short side, where there are several.
            source: (height, width) of the pixels that boxes and instances are in, where it is not the image's own: an
                image that was decoded at a fraction of its size (``Pipeline.reduction``) has them in the file's pixels.
        """
        short = None
        if self.short:
            short = self.short[int(random.integers(len(self.short)))] if self.is_random else self.short[0]
        source = source or sample.image.shape[:2]
        target = self._target(source, short)
        moved = dataclasses.replace(
            sample,
            image=resize_image(sample.image, target),
            mask=None if sample.mask is None else resize_mask(sample.mask, target),
            instances=taken(sample.instances, *(nearest(s, t) for s, t in zip(source, target))),
        )
        if sample.boxes is None:
            return moved
        ratio = np.array([target[1] / source[1], target[0] / source[0]] * 2, np.float32)
        return keep_boxes(moved, sample.boxes * ratio, target)

    def _target(self, size: tuple[int, int], short: int | None) -> tuple[int, int]:
        if self.fixed:
            return self.fixed
        scale = np.inf if short is None else short / min(size)
        if self.long is not None:
            scale = min(scale, self.long / max(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


class ScaleJitter:
    """Large-scale jitter (Ghiasi et al. 2021, arXiv 2012.07177, section 3): scale, then cut or pad to a fixed size.

    The image is fitted into ``size`` and scaled by a factor drawn from ``scale``; a random window of ``size`` is cut
    out of what is larger, and what is smaller is padded at the bottom and right. Only the window is ever resized.

    Args:
        scale: (smallest, largest) factor, drawn uniformly; 1 fits the image into ``size``.
        size: (height, width) of the result.
        fill: value of the padding; masks are padded with the ignored label.
    """

    @pydantic.validate_call
    def __init__(
        self,
        *,
        size: tuple[Side, Side],
        scale: tuple[Scale, Scale] = (0.1, 2.0),
        fill: Annotated[int, pydantic.Field(ge=0, le=255)] = 128,
    ) -> None:
        if scale[0] > scale[1]:
            raise ValueError(f"scale is (smallest, largest), not {scale}")
        self.scale, self.size, self.fill = scale, size, fill

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """Scale, cut and pad image, mask and boxes."""
        source = sample.image.shape[:2]
        factor = random.uniform(*self.scale) * min(t / s for t, s in zip(self.size, source))
        window = [min(s, max(1, round(t / factor))) for t, s in zip(self.size, source)]
        start = [int(random.integers(s - w + 1)) for s, w in zip(source, window)]
        inner = [min(t, max(1, round(w * factor))) for t, w in zip(self.size, window)]
        rows, columns = (slice(a, a + w) for a, w in zip(start, window))

        image = np.full((*self.size, sample.image.shape[2]), self.fill, sample.image.dtype)
        image[: inner[0], : inner[1]] = resize_image(sample.image[rows, columns], (inner[0], inner[1]))
        mask = None
        if sample.mask is not None:
            mask = np.full((*sample.mask.shape[:-2], *self.size), IGNORE, np.uint8)
            mask[..., : inner[0], : inner[1]] = resize_mask(sample.mask[..., rows, columns], (inner[0], inner[1]))
        places = (a + nearest(w, i) for a, w, i in zip(start, window, inner))
        moved = dataclasses.replace(sample, image=image, mask=mask, instances=taken(sample.instances, *places))
        if sample.boxes is None:
            return moved
        offset = np.array([start[1], start[0]] * 2, np.float32)
        ratio = np.array([inner[1] / window[1], inner[0] / window[0]] * 2, np.float32)
        return keep_boxes(moved, (sample.boxes - offset) * ratio, (inner[0], inner[1]))


class HorizontalFlip:
    """Mirror left and right with probability ``p``."""

    @pydantic.validate_call
    def __init__(self, *, p: Probability = 0.5) -> None:
        self.p = p

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """Mirror image, mask and boxes, or none of them."""
        if random.random() >= self.p:
            return sample
        return _flipped(sample, axis=1)


class VerticalFlip:
    """Mirror top and bottom with probability ``p``."""

    @pydantic.validate_call
    def __init__(self, *, p: Probability = 0.5) -> None:
        self.p = p

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """Mirror image, mask and boxes, or none of them."""
        if random.random() >= self.p:
            return sample
        return _flipped(sample, axis=0)


def _flipped(sample: Sample, axis: int) -> Sample:
    boxes = sample.boxes
    if boxes is not None:
        low, high, length = 1 - axis, 3 - axis, sample.image.shape[axis]
        boxes = boxes.copy()
        boxes[:, low], boxes[:, high] = length - boxes[:, high], length - boxes[:, low].copy()
    mask = None if sample.mask is None else np.flip(sample.mask, axis=axis - 2)
    image = cv2.flip(sample.image, axis).reshape(sample.image.shape)  # several times faster than numpy
    instances = mirrored(sample.instances, axis, sample.image.shape[axis])
    return dataclasses.replace(sample, image=image, mask=mask, boxes=boxes, instances=instances)
