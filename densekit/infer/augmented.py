"""Test-time augmentation of a segmenter: the mean of the predictions on flipped and scaled copies.

Letters: B images, C channels, K classes, H, W size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.canvases import alone
from densekit.errors import DensekitError, nearest
from densekit.model import DenseModel
from densekit.types import Batch, Segmentation

Flip = Literal["none", "horizontal", "vertical", "both"]

FLIPS: tuple[Flip, ...] = ("none", "horizontal", "vertical", "both")
"""All of them: what the tools' ``--flips`` averages over."""

FLIPPED_DIMS: dict[str, tuple[int, ...]] = {"none": (), "horizontal": (-1,), "vertical": (-2,), "both": (-2, -1)}


def check_augmentation(flips: Sequence[str], scales: Sequence[float]) -> None:
    """Refuse what can't be averaged.

    Raises:
        DensekitError: an unknown flip, a scale that is not above zero, or an empty list.
    """
    for flip in flips:
        if flip not in FLIPPED_DIMS:
            raise DensekitError(f"there is no flip {flip!r}; {nearest(flip, FLIPPED_DIMS)}")
    for scale in scales:
        if not 0 < scale < 100:
            raise DensekitError(f"scale {scale} must lie between 0 and 100; 1 is the image as it is")
    if not (flips and scales):
        raise DensekitError("give at least one flip ('none' is the image as it is) and one scale (1.0)")


def is_plain(flips: Sequence[str], scales: Sequence[float]) -> bool:
    """Whether nothing is averaged: the image as it is, once."""
    return tuple(flips) == ("none",) and tuple(scales) == (1.0,)


@torch.inference_mode()
def predict_augmented(
    model: DenseModel,
    batch: Batch,
    *,
    flips: Sequence[Flip] = ("none",),
    scales: Sequence[float] = (1.0,),
    head: str | None = None,
) -> Segmentation:
    """Average the probabilities over every flip at every scale.

    Args:
        model: in evaluation mode, with a segmentation head.
        batch: on the model's device.
        flips: each of ``none``, ``horizontal``, ``vertical``, ``both``.
        scales: factors on the size of the batch's images (bilinear, with smoothing where they shrink).
        head: which head; None takes the first.

    Returns:
        Probabilities and masks in the pixels of the original images, as ``DenseModel.predict`` gives them; for one
        scale of 1 and no flip exactly those.

    Raises:
        DensekitError: as ``check_augmentation``; the head is no segmentation head, or the batch brings stored maps.
    """
    check_augmentation(flips, scales)
    if model.head(head).task != "segmentation":
        raise DensekitError("flips, scales and windows need a segmentation head; this one is for another task")
    if is_plain(flips, scales):
        return _predict(model, batch, head)
    check_pixels(batch)
    return joined([_averaged(model, part, flips, scales, head) for part in without_padding(batch)])


def joined(parts: Sequence[Segmentation]) -> Segmentation:
    """Parts of a batch, one after the other."""
    return Segmentation([p for part in parts for p in part.probabilities], [m for part in parts for m in part.masks])


class MeanMasks:
    """The mean of a segmenter's probabilities over the views of some images.

    Args:
        ids: [K] of the classes.
    """

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        self._sums: list[Tensor] = []
        self._count, self._multi_label = 0, False

    def add(self, flip: Flip, found: Segmentation) -> None:
        """Take what was found in a view."""
        back = [p.flip(FLIPPED_DIMS[flip]) for p in found.probabilities]
        self._sums = [s + b for s, b in zip(self._sums, back)] if self._sums else back
        self._multi_label = found.masks[0].dim() == 3
        self._count += 1

    def result(self) -> Segmentation:
        """The mean, and the classes that follow from it."""
        means = [s / self._count for s in self._sums]
        return Segmentation(means, [classes_of(mean, self.ids, self._multi_label) for mean in means])


def classes_of(probabilities: Tensor, ids: Tensor, multi_label: bool) -> Tensor:
    """From [K, H, W] probabilities to the data set's ids [H, W], or to layers of 0 and 1 [K, H, W] uint8."""
    # max, not argmax: the same labels, and 50 times faster over the first dimension on the CPU.
    return (probabilities >= 0.5).to(torch.uint8) if multi_label else ids[probabilities.max(0).indices]


def _averaged(
    model: DenseModel, batch: Batch, flips: Sequence[Flip], scales: Sequence[float], head: str | None
) -> Segmentation:
    mean = MeanMasks(model.class_ids(head))
    for flip, view in views(batch, flips, scales):
        mean.add(flip, _predict(model, view, head))
    return mean.result()


def _predict(model: DenseModel, batch: Batch, head: str | None) -> Segmentation:
    found = model.predict(batch, head)
    assert isinstance(found, Segmentation)
    return found


def check_pixels(batch: Batch) -> None:
    """Refuse a batch without images.

    Raises:
        DensekitError: it brings stored maps.
    """
    if batch.maps is not None:
        raise DensekitError(
            "stored features can't be flipped or scaled; leave out --flips and --scales, or give the images themselves "
            "to the checkpoint that tools/join_head.py writes"
        )


def views(batch: Batch, flips: Sequence[Flip], scales: Sequence[float]) -> Iterator[tuple[Flip, Batch]]:
    """Every flip at every scale of images without padding."""
    for scale in scales:
        larger = scaled(batch, scale)
        for flip in flips:
            yield flip, dataclasses.replace(larger, images=larger.images.flip(FLIPPED_DIMS[flip]))


def without_padding(batch: Batch) -> Iterator[Batch]:
    """The batch, or its images one by one where some are padded: a flip would move the padding before the image."""
    size = list(batch.images.shape[-2:])
    sizes = batch.numbers(batch.sizes)
    if all(s == size for s in sizes):
        yield batch
        return
    for row in range(len(sizes)):
        yield alone(batch, row)


def scaled(batch: Batch, scale: float) -> Batch:
    """The batch with its images, all without padding, at a factor of their size."""
    if scale == 1:
        return batch
    height, width = (max(1, round(side * scale)) for side in batch.images.shape[-2:])
    images = F.interpolate(batch.images.float(), size=(height, width), mode="bilinear", antialias=scale < 1)
    sizes = torch.stack([torch.full_like(batch.sizes[:, 0], side) for side in (height, width)], 1)
    host = (*batch.host, (sizes, [[height, width]] * len(batch.ids)))
    return dataclasses.replace(batch, images=images, sizes=sizes, host=host)
