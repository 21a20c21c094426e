"""Masks of objects through transforms: each stays cut to its object, and comes out as an image-sized one would."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from densekit.data.transforms.deep import leaves
from densekit.data.transforms.geometry import select_boxes
from densekit.ops.run_lengths import NO_MASK
from densekit.types import IGNORE, Instance, Sample

Places = npt.NDArray[np.int64]


def nearest(source: int, target: int) -> Places:
    """[target] the pixel of ``source`` that ``resize_mask`` takes for each pixel of a resized side."""
    ramp = np.arange(source, dtype=np.float32)[None]
    if source == target:
        return np.arange(source)
    return np.asarray(cv2.resize(ramp, (target, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0], np.int64)


def taken(instances: Sequence[Instance] | None, rows: Places, columns: Places) -> list[Instance] | None:
    """Masks in an image that is made of some rows and columns of the old one: cut out, or resized.

    Args:
        instances: in the old image.
        rows: the old row of each new one, none before the one above.
        columns: likewise.
    """
    if instances is None:
        return None
    moved = []
    for x, y, mask in instances:
        height, width = mask.shape
        left, right = np.searchsorted(columns, (x, x + width))
        top, bottom = np.searchsorted(rows, (y, y + height))
        mask = mask.take(rows[top:bottom] - y, 0).take(columns[left:right] - x, 1)
        moved.append(Instance(int(left), int(top), mask) if mask.any() else NO_MASK)
    return moved


def mirrored(instances: Sequence[Instance] | None, axis: int, length: int) -> list[Instance] | None:
    """Masks in an image that is mirrored along an axis (0: top and bottom) of so many pixels."""
    if instances is None:
        return None
    moved = []
    for x, y, mask in instances:
        height, width = mask.shape
        x, y = (length - x - width, y) if axis else (x, length - y - height)
        moved.append(Instance(x, y, np.flip(mask, axis)) if mask.size else NO_MASK)
    return moved


def trimmed(instance: Instance) -> Instance:
    """The mask cut anew to what it fills."""
    x, y, mask = instance
    across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(across):
        return NO_MASK
    inner = mask[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
    return Instance(x + int(across[0]), y + int(down[0]), np.ascontiguousarray(inner))


def boxes_from_masks(sample: Sample) -> Sample:
    """The sample with the boxes around what is left of its objects' masks; those without any are dropped.

    A crowd without a mask keeps its box, since it says where nothing is to be learned.
    """
    assert sample.boxes is not None
    assert sample.crowd is not None
    assert sample.instances is not None
    boxes = sample.boxes.copy()
    found = np.zeros(len(boxes), np.bool_)
    for row, (x, y, mask) in enumerate(map(trimmed, sample.instances)):
        if mask.size:
            boxes[row] = x, y, x + mask.shape[1], y + mask.shape[0]
            found[row] = True
    kept = np.flatnonzero(found | sample.crowd)
    return select_boxes(sample, kept, boxes[kept])


class LabelMaps(NamedTuple):
    """Masks of objects painted into as few maps as they overlap, for transforms that take image-sized masks.

    Attributes:
        maps: [H, W] uint8 each: 0, or one more than the place among the map's objects.
        objects: for each map the numbers of its objects.
        total: number of all objects.
    """

    maps: list[npt.NDArray[np.uint8]]
    objects: list[list[int]]
    total: int


def painted(instances: Sequence[Instance], size: tuple[int, int]) -> LabelMaps:
    """Paint masks into maps of ``size``, none over another."""
    maps: list[npt.NDArray[np.uint8]] = []
    objects: list[list[int]] = []
    for number, (x, y, mask) in enumerate(instances):
        if not mask.size:
            continue
        height, width = mask.shape
        filled = mask.view(np.bool_)
        for one, own in zip(maps, objects):
            place = one[y : y + height, x : x + width]
            if len(own) < IGNORE - 1 and not place[filled].any():
                break
        else:
            maps.append(np.zeros(size, np.uint8))
            objects.append(own := [])
            place = maps[-1][y : y + height, x : x + width]
        own.append(number)
        place[filled] = len(own)
    return LabelMaps(maps, objects, len(instances))


def found_in(painted: LabelMaps) -> list[Instance]:
    """The masks of all objects that were painted, cut out again."""
    found = [NO_MASK] * painted.total
    for one, own in zip(painted.maps, painted.objects):
        down, across = np.nonzero(one)
        labels = one[down, across]
        order = np.argsort(labels, kind="stable")
        known, first = np.unique(labels[order], return_index=True)
        ends = [reduce.reduceat(v[order], first) for v in (across, down) for reduce in (np.minimum, np.maximum)]
        for label, left, right, top, bottom in zip(known.tolist(), *(e.tolist() for e in ends)):
            if label != IGNORE:
                cut = one[top : bottom + 1, left : right + 1] == label
                found[own[label - 1]] = Instance(left, top, cut.view(np.uint8))
    return found


def for_label_maps(transforms: Sequence[Any]) -> list[Any]:
    """Copies of albumentations transforms that keep a map's labels unmixed; what is filled in is of no object."""
    copies = copy.deepcopy(list(transforms))
    for transform in leaves(copies):
        if getattr(transform, "fill_mask", None) is not None:
            transform.fill_mask = IGNORE
        if hasattr(transform, "mask_interpolation"):
            transform.mask_interpolation = cv2.INTER_NEAREST
    return copies
