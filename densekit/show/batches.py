"""A training batch as the model sees it: its images after all transforms, with boxes, masks or classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from densekit.show.drawing import Image, as_rgb, draw_boxes, drawable, side_by_side, write_picture
from densekit.show.drawing_masks import overlay, tinted
from densekit.types import Batch, BoxTargets, Classes, Instance, InstanceMasks, Task

_MOST, _COLUMNS = 16, 4
_SIDE = 400  # pixels that a panel's long side has at most, and small images are enlarged to half of it
_GAP = 8


def draw_batch(batch: Batch, classes: Mapping[Task, Classes], path: Path) -> None:
    """Write a picture of up to 16 of a batch's images.

    Args:
        batch: on the host, with its targets.
        classes: of the model's heads, by their task.
        path: a .jpg or .png.
    """
    panels = [side_by_side([_panel(batch, classes, i)]) for i in range(min(_MOST, len(batch.ids)))]
    height, width = (max(panel.shape[axis] for panel in panels) + _GAP for axis in (0, 1))
    columns = min(_COLUMNS, len(panels))
    whole = np.full((-(-len(panels) // columns) * height, columns * width, 3), 255, np.uint8)
    for number, panel in enumerate(panels):
        top, left = number // columns * height, number % columns * width
        whole[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    write_picture(path, whole)


def _panel(batch: Batch, classes: Mapping[Task, Classes], index: int) -> tuple[str, Image]:
    height, width = batch.numbers(batch.sizes)[index]
    image = batch.images[index, :, :height, :width].permute(1, 2, 0).numpy()
    picture, scale = _scaled(image)
    caption, targets = str(batch.ids[index]), batch.targets
    if targets is None:
        return caption, picture
    if targets.masks is not None and (own := classes.get("segmentation")) is not None:
        mask = targets.masks[index, ..., :height, :width].numpy()
        labels = Classes(own.names, tuple(range(len(own))))
        picture = overlay(picture, _resized(mask, picture.shape[:2]), labels)
    if targets.boxes is not None and (own := classes.get("detection")) is not None:
        picture = _with_boxes(picture, targets.boxes, own, index, scale)
    if targets.labels is not None and (own := classes.get("classification")) is not None:
        label = targets.labels[index]
        weights = {int(label): 1.0} if label.dim() == 0 else dict(enumerate(label.tolist()))
        caption += ": " + _words(weights, drawable(own.names))
    return caption, picture


def _words(weights: dict[int, float], names: Sequence[str]) -> str:
    most = sorted(((w, k) for k, w in weights.items() if w > 0), reverse=True)[:3]
    return ", ".join(names[k] if w == 1 else f"{names[k]} {w:.2f}" for w, k in most)


def _scaled(image: npt.NDArray[np.generic]) -> tuple[Image, float]:
    """As RGB, large enough to be looked at and small enough for a page; and how many times its size."""
    picture, long = as_rgb(image), max(image.shape[:2])
    scale = _SIDE / long if long > _SIDE else float(max(1, _SIDE // 2 // long))
    size = (max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[0])))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, size, interpolation=method), np.uint8), scale


def _resized(mask: npt.NDArray[np.generic], size: Sequence[int]) -> npt.NDArray[np.uint8]:
    planes = [
        cv2.resize(plane.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
        for plane in mask.reshape(-1, *mask.shape[-2:])
    ]
    return np.asarray(planes[0] if mask.ndim == 2 else np.stack(planes), np.uint8)


def _with_boxes(picture: Image, boxes: BoxTargets, classes: Classes, index: int, scale: float) -> Image:
    valid = boxes.valid[index]
    labels, names = boxes.labels[index][valid].tolist(), drawable(classes.names)
    crowd = boxes.crowd[index][valid].tolist()
    texts = [f"{names[k]}{' (crowd)' * many}" for k, many in zip(labels, crowd)]
    if boxes.masks is not None:
        picture = tinted(picture, _cuts(boxes.masks, index, len(labels)), labels, scale=scale)
    return draw_boxes(picture, boxes.boxes[index][valid].numpy() * np.float32(scale), texts, labels)


def _cuts(masks: InstanceMasks, index: int, count: int) -> list[Instance]:
    """The masks of the first objects of one of a batch's images, on the host."""
    found = []
    for start, (x, y, width, height) in zip(masks.starts[index, :count].tolist(), masks.cuts[index, :count].tolist()):
        pixels = masks.pixels[start : start + width * height].reshape(height, width)
        found.append(Instance(x, y, pixels.numpy()))
    return found
