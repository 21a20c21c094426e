"""Samples to a batch: images, boxes and masks padded to the same shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data
from torch import Tensor

from densekit.types import IGNORE, Batch, BoxTargets, DensekitError, InstanceMasks, Sample, Targets

Size = tuple[int, int]
"""(height, width)."""

BOXES_MULTIPLE = 8
"""Padded numbers of boxes are multiples of this, so that few shapes occur."""


def collate(
    samples: Sequence[Sample],
    *,
    pad_to: int = 32,
    fixed_sizes: Sequence[Size] = (),
    max_objects: int | None = None,
) -> Batch:
    """Make a batch.

    Args:
        samples: at least one, all with the same kinds of targets.
        pad_to: height and width of the batch are multiples of this.
        fixed_sizes: what to pad to instead of the size of the largest image, see ``padded_size``.
        max_objects: number of boxes to pad to, instead of the largest number in the batch.

    Returns:
        A batch whose images are [B, C, H, W] laid out channels last, so nothing is transposed on the way to the model.

    Raises:
        DensekitError: an image fits in none of ``fixed_sizes``, or channel counts differ.
    """
    height, width = padded_size([_checked(s, fixed_sizes) for s in samples], pad_to, fixed_sizes)
    return Batch(
        images=_images(samples, height, width),
        sizes=torch.tensor([s.image.shape[:2] for s in samples], dtype=torch.int64),
        original_sizes=torch.tensor([s.original_size for s in samples], dtype=torch.int64),
        ids=[s.id for s in samples],
        seeds=torch.tensor([s.seed for s in samples], dtype=torch.int64),
        targets=_targets(samples, height, width, max_objects),
        truth=None if samples[0].truth is None else [torch.from_numpy(_truth(s)) for s in samples],
        maps=None if samples[0].maps is None else _maps(samples, height, width),
        pad_to=pad_to,
    )


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below ``number``."""
    return -(-number // multiple) * multiple


def _truth(sample: Sample) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    if sample.truth is None:
        raise DensekitError(f"image {sample.id!r} has no mask while others of its batch have; give each image one")
    return np.ascontiguousarray(sample.truth)


def padded_size(images: Sequence[Size], pad_to: int, fixed_sizes: Sequence[Size]) -> Size:
    """What a batch is padded to: the smallest of ``possible_sizes`` that holds its images.

    Args:
        images: sizes of at least one, each of which fits in one of ``fixed_sizes``.
        pad_to: multiple of both sides, where there are no fixed sizes.
        fixed_sizes: to choose from; empty: any.
    """
    largest = _around(images)
    if not fixed_sizes:
        return round_up(largest[0], pad_to), round_up(largest[1], pad_to)
    return min((size for size in possible_sizes(fixed_sizes) if _holds(size, largest)), key=math.prod)


def possible_sizes(fixed_sizes: Sequence[Size]) -> set[Size]:
    """All that batches are padded to: one more where a batch may mix images that fit in different ones alone."""
    return {*fixed_sizes, _around(fixed_sizes)}


def _around(sizes: Sequence[Size]) -> Size:
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _holds(size: Size, image: Size) -> bool:
    return size[0] >= image[0] and size[1] >= image[1]


def _checked(sample: Sample, fixed_sizes: Sequence[Size]) -> Size:
    """The size of an image that fits."""
    height, width = sample.image.shape[:2]
    if fixed_sizes and not any(_holds(size, (height, width)) for size in fixed_sizes):
        sizes = " and ".join(f"{w} x {h}" for h, w in fixed_sizes)
        raise DensekitError(
            f"image {sample.id!r} is {width} x {height} (width x height) after the transforms, larger than "
            f"fixed_size {sizes}; resize or crop in the transforms, or raise fixed_size"
        )
    return height, width


def _images(samples: Sequence[Sample], height: int, width: int) -> Tensor:
    channels = samples[0].image.shape[2]
    if samples[0].maps is not None:  # blank pixels that nobody looks at cost no memory
        return torch.zeros((), dtype=torch.uint8).expand(len(samples), channels, height, width)
    for sample in samples:
        if (c := sample.image.shape[2]) != channels:
            raise DensekitError(f"image {sample.id!r} has {c} channels, others of its batch {channels}; convert it")
    return stack_images([sample.image for sample in samples], height, width)


def stack_images(images: Sequence[npt.NDArray[Any]], height: int, width: int) -> Tensor:
    """Images of any sizes as one tensor, padded at the bottom and right with zeros.

    Args:
        images: [h, w, C] each, uint8 or float32; h and w at most ``height`` and ``width``.
        height: of the batch.
        width: of the batch.

    Returns:
        [B, C, height, width] laid out channels last; float32 where one of the images is, which holds the others' uint8
        exactly, so that no image depends on its neighbours.
    """
    dtype = np.uint8 if all(image.dtype == np.uint8 for image in images) else np.float32
    batch = torch.from_numpy(np.zeros((len(images), height, width, images[0].shape[2]), dtype))
    if torch.utils.data.get_worker_info() is not None:
        # Now, while all is zero, and not by a copy of the whole batch on its way out of the worker.
        batch.share_memory_()  # type: ignore[no-untyped-call]
    for row, image in zip(batch.numpy(), images):
        row[: image.shape[0], : image.shape[1]] = image
    return batch.permute(0, 3, 1, 2)


def _maps(samples: Sequence[Sample], height: int, width: int) -> dict[str, Tensor]:
    """Stored maps by level name, padded with zeros to the maps of a batch of [H, W] pixels."""
    first = samples[0].maps
    assert first is not None
    # The canvas of the model: padded to its coarsest stride, which a single stored level does not tell, or to 32.
    canvas = max(32, *(level.stride for level in first)) if first else 32
    height, width = round_up(height, canvas), round_up(width, canvas)
    stacked = {}
    for level in first:
        maps = [s.maps[level] for s in samples if s.maps is not None]
        shape = (len(samples), level.channels, height // level.stride, width // level.stride)
        if all(m.shape == shape[1:] for m in maps):
            stacked[level.name] = torch.stack(maps)
            continue
        padded = stacked[level.name] = maps[0].new_zeros(shape)
        for row, one in zip(padded, maps):
            row[:, : one.shape[1], : one.shape[2]] = one
    return stacked


def _targets(samples: Sequence[Sample], height: int, width: int, max_objects: int | None) -> Targets | None:
    first = samples[0]
    targets = Targets()
    if first.boxes is not None:
        targets.boxes = _boxes(samples, max_objects)
    if first.mask is not None:
        targets.masks = _masks(samples, height, width)
    if first.target is not None:
        targets.labels = torch.tensor([s.target for s in samples], dtype=torch.int64)
    return None if (targets.boxes, targets.masks, targets.labels) == (None, None, None) else targets


def _boxes(samples: Sequence[Sample], max_objects: int | None) -> BoxTargets:
    most = max(len(s.boxes) for s in samples if s.boxes is not None)
    if max_objects is not None and most > max_objects:
        raise DensekitError(f"an image has {most} boxes, more than max_objects {max_objects}; raise it")
    n = max(BOXES_MULTIPLE, round_up(most if max_objects is None else max_objects, BOXES_MULTIPLE))
    boxes = np.zeros((len(samples), n, 4), np.float32)
    labels = np.zeros((len(samples), n), np.int64)
    crowd, valid = np.zeros((len(samples), n), np.bool_), np.zeros((len(samples), n), np.bool_)
    for b, sample in enumerate(samples):
        assert sample.boxes is not None, f"image {sample.id!r} has no boxes while others of its batch have"
        assert sample.labels is not None, f"image {sample.id!r} has boxes and no labels"
        assert sample.crowd is not None, f"image {sample.id!r} has boxes and no crowd flags"
        k = len(sample.boxes)
        boxes[b, :k], labels[b, :k], crowd[b, :k], valid[b, :k] = sample.boxes, sample.labels, sample.crowd, True
    to = torch.from_numpy
    return BoxTargets(to(boxes), to(labels), to(crowd), to(valid), _instances(samples, n))


def _instances(samples: Sequence[Sample], n: int) -> InstanceMasks | None:
    """The cuts of all objects, for ``n`` objects an image."""
    if samples[0].instances is None:
        return None
    starts, cuts = np.zeros((len(samples), n), np.int64), np.zeros((len(samples), n, 4), np.int64)
    pixels, place = [], 0
    for b, sample in enumerate(samples):
        assert sample.instances is not None, f"image {sample.id!r} has no instance masks while others of its batch have"
        for i, one in enumerate(sample.instances):
            height, width = one.mask.shape
            starts[b, i], cuts[b, i] = place, (one.x, one.y, width, height)
            pixels.append(one.mask.reshape(-1))
            place += height * width
    flat = np.concatenate(pixels) if pixels else np.zeros(0, np.uint8)
    return InstanceMasks(*(torch.from_numpy(a) for a in (flat, starts, cuts)))


def _masks(samples: Sequence[Sample], height: int, width: int) -> Tensor:
    first = samples[0].mask
    assert first is not None
    single = first.ndim == 2
    shape = (len(samples), *first.shape[:-2], height, width)
    masks = np.full(shape, IGNORE, np.int64 if single else np.uint8)
    for row, sample in zip(masks, samples):
        assert sample.mask is not None, f"image {sample.id!r} has no mask while others of its batch have"
        h, w = sample.mask.shape[-2:]
        row[..., :h, :w] = sample.mask
    return torch.from_numpy(masks)
