"""Nine images of a data set with their labels drawn, spread over its splits."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from densekit.data.formats.masks.files import read_values
from densekit.doctor.coco.rows import AnnotationRow, CocoRows
from densekit.doctor.examine import Report
from densekit.doctor.masks.checks import MaskQuestion
from densekit.doctor.split import ImageEntry, Split
from densekit.errors import DensekitError
from densekit.files import printable
from densekit.show.drawing import draw_boxes, drawable
from densekit.show.drawing_masks import overlay
from densekit.types import Classes

COUNT = 9
SIDE = 640
"""Pixels of a sample's long side at most."""

Picture = npt.NDArray[np.uint8]
Draw = Callable[[Picture], Picture]


def samples(report: Report, encoded: Callable[[ImageEntry, Draw], str]) -> str:
    """Figures of nine images at most, taken evenly from what each split has.

    Args:
        report: of the examination.
        encoded: a JPEG in base64 of an image file, read as training reads it and then drawn upon; empty where the file
            can't be shown.
    """
    splits = [split for split in report.splits if split.images]
    figures = []
    for number, split in enumerate(splits[:COUNT]):
        share = COUNT // len(splits) + (number < COUNT % len(splits))
        for entry, draw in _chosen(split, max(1, share)):
            if picture := encoded(entry, draw):
                where = f"{entry.path.parent.name}/{entry.path.name}"  # of a classifier's images the class
                figures.append(figure([picture], printable(f"{split.name}: {where}" if split.name else where)))
    return f"<h3>Samples</h3>{''.join(figures)}" if figures else ""


def figure(pictures: Sequence[str], caption: str) -> str:
    """Pictures that open to their full size, and words below."""
    images = "".join(
        f'<details class="zoom"><summary><img alt="" src="data:image/jpeg;base64,{picture}"></summary></details>'
        for picture in pictures
    )
    return f"<figure>{images}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _chosen(split: Split, count: int) -> list[tuple[ImageEntry, Draw]]:
    """Images with labels before those without, spread over the set."""
    if split.rows is not None:
        return _of_rows(split, split.rows, count)
    if split.masks:
        masks = {question.image: question for question in split.masks}
        return [(entry, _with_mask(masks.get(entry.path))) for entry in _spread(split.images, count)]
    return [(entry, lambda image: _fitted(image)[0]) for entry in _spread(split.images, count)]


def _of_rows(split: Split, rows: CocoRows, count: int) -> list[tuple[ImageEntry, Draw]]:
    boxes: defaultdict[int | str, list[AnnotationRow]] = defaultdict(list)
    for annotation in rows.annotations:
        boxes[annotation.image_id].append(annotation)
    labelled = [entry for entry in split.images if entry.row is not None and entry.row.id in boxes]
    names = {category.id: category.name for category in rows.categories}
    chosen = _spread(labelled or split.images, count)
    return [(e, _with_boxes(boxes[e.row.id] if e.row is not None else [], e, names)) for e in chosen]


def _spread(entries: Sequence[ImageEntry], count: int) -> list[ImageEntry]:
    count = min(count, len(entries))
    return [entries[i * len(entries) // count] for i in range(count)]


def _with_boxes(annotations: Sequence[AnnotationRow], entry: ImageEntry, names: dict[int, str]) -> Draw:
    places = {category: place for place, category in enumerate(names)}
    words = dict(zip(names, drawable(list(names.values()))))

    def draw(image: Picture) -> Picture:
        picture, scale = _fitted(image)
        good = [a for a in annotations if all(map(math.isfinite, a.box)) and max(map(abs, a.box)) < 2**20]
        xywh = np.array([a.box for a in good], np.float32).reshape(-1, 4)
        corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1) * np.float32(scale)
        texts = [words.get(a.category_id, str(a.category_id)) for a in good]
        return draw_boxes(picture, corners, texts, [places.get(a.category_id, 0) for a in good])

    return draw


def _with_mask(question: MaskQuestion | None) -> Draw:
    def draw(image: Picture) -> Picture:
        picture, _ = _fitted(image)
        if question is None:
            return picture
        try:
            labels, classes = _labels(question)
        except (DensekitError, ValueError, MemoryError):
            return picture
        size = (picture.shape[1], picture.shape[0])
        layers = labels.reshape(-1, *labels.shape[-2:])
        planes = [cv2.resize(layer, size, interpolation=cv2.INTER_NEAREST_EXACT) for layer in layers]
        return overlay(picture, planes[0] if labels.ndim == 2 else np.stack(planes), classes)

    return draw


def _labels(question: MaskQuestion) -> tuple[Picture, Classes]:
    """Labels [H, W] or layers [K, H, W], and classes that have them as ids; values are classes where none are known."""
    if question.code is not None:
        labels, names = question.code.read(question.mask, question.max_pixels), question.code.classes.names
        return labels, Classes(names, tuple(range(len(names))))
    values = read_values(question.mask, question.max_pixels)
    if values.ndim != 2:
        raise DensekitError(f"{question.mask}: {values.shape} is no mask of values; name its classes")
    numbers, places = np.unique(values, return_inverse=True)
    named = ["background" if number == 0 else f"value {number}" for number in numbers[:255].tolist()]
    return places.reshape(values.shape).clip(max=255).astype(np.uint8), Classes(tuple(named), tuple(range(len(named))))


def _fitted(image: Picture) -> tuple[Picture, float]:
    """An image at the size of a sample, and how many times its own that is."""
    long = max(image.shape[:2])
    scale = SIDE / long if long > SIDE else float(max(1, SIDE // 2 // long))
    size = (max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[0])))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8), scale
