"""Resizing images, masks and boxes together (numpy and OpenCV, for the loader's workers)."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from densekit.types import Sample

Boxes = npt.NDArray[np.float32]

MIN_SIDE = 1.0
"""A box whose side a transform leaves shorter than this, in pixels, is dropped: it has nothing left to show."""


def resize_image(image: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Resize [H, W, C] to ``size``: averaging areas where it shrinks, bilinear where it grows."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    # OpenCV averages areas of four channels at most.
    parts = [image[:, :, c : c + 4] for c in range(0, image.shape[2], 4)]
    resized = [cv2.resize(p, (width, height), interpolation=method).reshape(height, width, -1) for p in parts]
    return np.asarray(resized[0] if len(resized) == 1 else np.concatenate(resized, axis=2))


def resize_mask(mask: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Resize a [H, W] or [K, H, W] mask to ``size``: the value of the nearest pixel centre."""
    if mask.shape[-2:] == tuple(size):
        return mask
    planes = [
        cv2.resize(np.ascontiguousarray(plane), (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
        for plane in mask.reshape(-1, *mask.shape[-2:])
    ]
    return np.asarray(planes[0] if mask.ndim == 2 else np.stack(planes))


def keep_boxes(sample: Sample, boxes: Boxes, size: tuple[int, int], min_side: float = MIN_SIDE) -> Sample:
    """Put moved boxes into a sample: cut at the image's edge; dropped with all that is theirs where too little is left.

    Args:
        sample: whose labels, crowd flags and instances belong to ``boxes``, row by row.
        boxes: [n, 4] xyxy.
        size: (height, width) to cut at.
        min_side: shortest side to keep.
    """
    limits = np.array([size[1], size[0]] * 2, np.float32)
    cut = np.clip(boxes, 0, limits).astype(np.float32, copy=False)
    kept = ((cut[:, 2:] - cut[:, :2]) >= min_side).all(1)
    return select_boxes(sample, np.flatnonzero(kept), cut[kept])


def select_boxes(sample: Sample, rows: npt.NDArray[np.int64], boxes: Boxes) -> Sample:
    """The sample with ``boxes``, which are what is left of its box rows ``rows``."""
    assert sample.labels is not None
    assert sample.crowd is not None
    instances = None if sample.instances is None else [sample.instances[i] for i in rows.tolist()]
    return dataclasses.replace(
        sample, boxes=boxes, labels=sample.labels[rows], crowd=sample.crowd[rows], instances=instances
    )


def xywh_to_xyxy(boxes: npt.NDArray[np.float64], size: npt.NDArray[Any]) -> Boxes:
    """COCO's [n, 4] (x, y, width, height) to xyxy, cut at the edge of an image of ``size`` (height, width)."""
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)
    limits = np.array([size[1], size[0]] * 2, np.float64)
    return np.clip(corners, 0, limits).astype(np.float32)
