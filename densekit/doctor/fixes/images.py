"""What ``--fix`` does about names and sizes of images: what the files say, before an image goes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from densekit.doctor.coco.rows import AnnotationRow, ImageRow
from densekit.doctor.defects import Defect
from densekit.doctor.fixes.correction import Correction
from densekit.doctor.fixes.masks import run_lengths_of
from densekit.doctor.images.checks import Question, look

_ROUNDED = 0.02  # relative difference of two scales that are one, and of a box that reaches beyond its image

Size = tuple[int, int]


def drop_image(c: Correction, defect: Defect) -> None:
    """The image and its annotations go."""
    if defect.row in c.images:
        c.drop_image(c.images[defect.row], defect)


def rename(c: Correction, defect: Defect) -> None:
    """The name of the file that is meant; the image goes where there is none."""
    image = c.images.get(defect.row)
    if image is not None and image.row in c.rows.spelled:
        c.set("images", image.row, "file_name", c.rows.spelled[image.row], defect)
    elif image is not None:
        c.drop_image(image, defect)


def write_size(c: Correction, defect: Defect) -> None:
    """The size that was read from the file."""
    image = c.images.get(defect.row)
    if image is not None:
        _set_size(c, image, (image.width, image.height), defect)


def correct_size(c: Correction, defect: Defect) -> None:
    """The file's own size; its objects follow where the images were resized after they were annotated.

    Where objects neither fit the file nor can be scaled to it, the image goes.
    """
    image = c.images.get(defect.row)
    size = None if image is None else _file_size(c, image)
    if image is None or size is None:
        return
    if c.resized is None:
        c.resized = _were_resized(c)
    if c.resized and _is_scaled(image, size):
        for annotation in c.own(image.id):
            _scale(c, annotation, image, size, defect)
        _set_size(c, image, size, defect)
    elif _reach(c, image, size) <= 1 and not _has_runs(c, image, size):
        _set_size(c, image, size, defect)
    else:
        c.drop_image(image, defect)


def _set_size(c: Correction, image: ImageRow, size: Size, defect: Defect) -> None:
    c.set("images", image.row, "width", size[0], defect)
    c.set("images", image.row, "height", size[1], defect)


def _file_size(c: Correction, image: ImageRow) -> Size | None:
    if image.row not in c.file_sizes:
        place = c.rows.place(image)
        c.file_sizes[image.row] = None if place is None else look(Question(place, None, c.max_pixels)).size
    return c.file_sizes[image.row]


def _is_scaled(image: ImageRow, size: Size) -> bool:
    """Whether the file has the shape that the json gives, in another size."""
    across, down = size[0] / image.width, size[1] / image.height
    return abs(across - down) <= _ROUNDED * max(across, down) and size != (image.width, image.height)


def _reach(c: Correction, image: ImageRow, size: Size) -> float:
    """How far the boxes of an image reach, as a part of a size."""
    boxes = np.array([a.box for a in c.own(image.id)], np.float64).reshape(-1, 4)
    boxes = boxes[np.isfinite(boxes).all(1)]
    return float(((boxes[:, :2] + boxes[:, 2:]) / size).max(initial=0.0))


def _has_runs(c: Correction, image: ImageRow, size: Size) -> bool:
    """Whether an annotation has run lengths of another size."""
    segmentations = [a.segmentation for a in c.own(image.id) if isinstance(a.segmentation, dict)]
    return any(s.get("size") != [size[1], size[0]] for s in segmentations)


def _were_resized(c: Correction) -> bool:
    """Whether boxes lie in images of the size that the json gives, not of the files', over all that differ by a scale.

    Boxes that reach beyond an image cannot be its own; where they fit both, the one that they fill better is theirs.
    """
    said, found = [0.0], [0.0]
    for row in {d.row for d in c.defects if d.code == "image_size"} & set(c.images):
        image = c.images[row]
        size = _file_size(c, image)
        if size is not None and _is_scaled(image, size):
            said.append(_reach(c, image, (image.width, image.height)))
            found.append(_reach(c, image, size))
    return max(said) <= 1 + _ROUNDED and (max(found) > 1 + _ROUNDED or max(said) >= max(found))


def _scale(c: Correction, annotation: AnnotationRow, image: ImageRow, size: Size, defect: Defect) -> None:
    """An object in the pixels of the file."""
    by = np.array([size[0] / image.width, size[1] / image.height])
    box = (np.array(annotation.box).reshape(2, 2) * by).round(4).ravel().tolist()
    c.set("annotations", annotation.row, "bbox", box, defect)
    if annotation.area is not None:
        c.set("annotations", annotation.row, "area", round(annotation.area * float(by.prod()), 4), defect)
    if annotation.segmentation:
        c.set("annotations", annotation.row, "segmentation", _scaled(c, annotation, by, size), defect)
    points = c.entry("annotations", annotation.row).get("keypoints")
    if isinstance(points, list) and len(points) % 3 == 0 and _are_numbers(points):
        three = np.array(points, np.float64).reshape(-1, 3) * [*by, 1]
        c.set("annotations", annotation.row, "keypoints", three.round(4).ravel().tolist(), defect)


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(v, int | float) for v in values)


def _scaled(c: Correction, annotation: AnnotationRow, by: Any, size: Size) -> Any:
    value = annotation.segmentation
    if isinstance(value, list) and all(isinstance(p, list) and len(p) % 2 == 0 and _are_numbers(p) for p in value):
        return [(np.array(p, np.float64).reshape(-1, 2) * by).round(4).ravel().tolist() for p in value]
    mask = c.mask(annotation)
    if mask is None:
        return value
    resized = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return {"size": [size[1], size[0]], "counts": run_lengths_of(resized).tolist()}
