"""Detections on an image of any size, tile by tile: small objects keep their pixels, and memory stays bounded."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densekit.data.loading.batching import collate
from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError
from densekit.infer.augmented import Flip
from densekit.infer.augmented_boxes import detect_augmented, found_in, nms_threshold, padded
from densekit.infer.merging import TileBoxes, merge_tiles, together
from densekit.infer.sliding_window import positions
from densekit.model import DenseModel
from densekit.types import Batch, Dataset, Detections, Sample

EDGE = 0.01
"""A box that ends closer than this share of a tile's side to the tile's edge may be cut there; 2 px at least."""

Corners = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class TileDetector:
    """Detects on whole images; one that fits into a tile is predicted as ever.

    Attributes:
        model: in evaluation mode, with a detection head.
        transforms: of the evaluation; each tile is resized as an image of its own.
        side: of the tiles, in pixels of the image.
        overlap: least part of a tile that its neighbour covers too, 0 to below 1. Objects up to that size lie in some
            tile as a whole.
        flips: see ``detect_augmented``, as for ``scales``.
        scales: factors on the tiles' size after ``transforms``.
        pad_to: as in evaluation.
        batch_size: tiles at once.
    """

    model: DenseModel
    transforms: Pipeline
    side: int
    overlap: float = 0.25
    flips: tuple[Flip, ...] = ("none",)
    scales: tuple[float, ...] = (1.0,)
    pad_to: int = 32
    batch_size: int = 4

    def __post_init__(self) -> None:
        check_tiles(self.side, self.overlap)

    def fits(self, size: Sequence[int]) -> bool:
        """Whether an image of (height, width) is one tile."""
        return max(size) <= self.side

    @torch.inference_mode()
    def __call__(self, image: npt.NDArray[Any]) -> Detections:
        """The boxes of one image [H, W, C], in its pixels: [1, n], the data set's own ids.

        Raises:
            DensekitError: an empty image.
        """
        if image.ndim != 3 or image.size == 0:
            raise DensekitError(f"an image is [height, width, channels] with at least one pixel, not {image.shape}")
        height, width = image.shape[:2]
        if self.fits((height, width)):
            sample = Sample(image, id=0, original_size=(height, width), seed=0)
            return self._detect([self.transforms(sample, np.random.default_rng(0))])
        tiles = list(corners(height, width, self.side, self.overlap))
        image = self.transforms.recoloured(image)
        found, numbers, cuts = [], [], []
        for start in range(0, len(tiles), self.batch_size):
            batch = tiles[start : start + self.batch_size]
            detections = self._detect([self._sample(image, tile) for tile in batch])
            for row, tile in enumerate(batch):
                own = found_in(detections, row)
                cuts.append(_cut(own.boxes, tile, (height, width)))
                numbers.append(torch.full((len(own.scores),), start + row))
                found.append(own._replace(boxes=own.boxes + torch.tensor([*tile[:2], *tile[:2]])))
        merged = merge_tiles(TileBoxes(together(found), torch.cat(numbers), torch.cat(cuts)), nms_threshold(self.model))
        return padded([merged])

    def _sample(self, image: npt.NDArray[Any], tile: Corners) -> Sample:
        left, top, right, bottom = tile
        cut = np.ascontiguousarray(image[top:bottom, left:right])
        return self.transforms.resized(Sample(cut, id=0, original_size=(bottom - top, right - left), seed=0))

    def _detect(self, samples: Sequence[Sample]) -> Detections:
        batch: Batch = collate(samples, pad_to=self.pad_to).to(self.model.mean.device)
        return detect_augmented(self.model, batch, flips=self.flips, scales=self.scales)


def detect_batch(detect: TileDetector, batch: Batch) -> Detections:
    """The boxes of a batch of images at their own size, on the host; see ``untouched``."""
    images = [
        batch.images[row, :, :height, :width].permute(1, 2, 0).numpy()
        for row, (height, width) in enumerate(batch.numbers(batch.sizes))
    ]
    return padded([found_in(detect(image), 0) for image in images])


def untouched(data: Dataset) -> Dataset:
    """A data set with its images at their own size, without transforms.

    Raises:
        DensekitError: it has no images, but stored features.
    """
    inner: Any = getattr(data, "inner", data)  # matched by name: the data set behind it transforms
    if not isinstance(getattr(inner, "transforms", None), Pipeline):
        raise DensekitError(
            "stored features can't be cut into tiles; leave out --tiles, or give the images themselves to the "
            "checkpoint that tools/join_head.py writes"
        )
    plain = copy.copy(inner)
    plain.transforms = Pipeline((), training=False)
    if inner is data:
        return plain  # type: ignore[no-any-return]
    outer: Any = copy.copy(data)
    outer.inner = plain
    return outer  # type: ignore[no-any-return]


def check_tiles(side: int, overlap: float) -> None:
    """Refuse tiles that can't be.

    Raises:
        DensekitError: too small ones, or an overlap out of range.
    """
    if side < 32:
        raise DensekitError(f"tiles of {side} pixels are too small; give at least 32, several times the objects' size")
    if not 0 <= overlap < 1:
        raise DensekitError(f"overlap {overlap} must lie between 0 and below 1, such as 0.25")


def corners(height: int, width: int, side: int, overlap: float) -> Iterator[Corners]:
    """(left, top, right, bottom) of the tiles of an image, row by row; they are of one size and cover it."""
    (tops, tall), (lefts, wide) = positions(height, side, overlap), positions(width, side, overlap)
    for top in tops:
        for left in lefts:
            yield left, top, left + wide, top + tall


def _cut(boxes: Tensor, tile: Corners, size: tuple[int, int]) -> Tensor:
    """[n, 4] bool, see ``TileBoxes``; boxes are in the tile's pixels."""
    left, top, right, bottom = tile
    wide, tall = right - left, bottom - top
    near_x, near_y = max(2.0, EDGE * wide), max(2.0, EDGE * tall)
    inner = torch.tensor([left > 0, top > 0, right < size[1], bottom < size[0]])
    gaps = torch.stack([boxes[:, 0], boxes[:, 1], wide - boxes[:, 2], tall - boxes[:, 3]], 1)
    return (gaps <= torch.tensor([near_x, near_y, near_x, near_y])) & inner
