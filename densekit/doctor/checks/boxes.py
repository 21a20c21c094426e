"""Boxes of a COCO file: numbers, sizes, places, and two boxes on one object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from densekit.data.rle import SegmentationError, segmentation_mask
from densekit.doctor.overlaps import near_pairs
from densekit.doctor.reader import AnnotationEntry, CocoContent
from densekit.doctor.report import Defect, shown

NEAR_DUPLICATE = 0.8
"""IoU from which on two boxes of a class are one object: the published BCCD boxes have 8 pairs from 0.83 to 0.93 that
are, and none between 0.6 and 0.83; in 100 images of COCO two objects of a class reach 0.78."""

SAME_PLACE = 0.97
"""IoU from which on boxes of two classes are told; a person on a motorbike reaches 0.92 in COCO."""

_SLACK = 0.1  # pixels over the edge that are rounding, not a defect


def check_boxes(content: CocoContent) -> Iterator[Defect]:
    """Whatever is wrong with boxes; each box gets one code at most, beside pairs."""
    good = []
    for annotation in content.annotations:
        defect = _defect(content, annotation)
        if defect is not None:
            yield defect
        if defect is None or defect.about.severity == "warning":
            good.append(annotation)
    yield from _pairs(content, [a for a in good if content.image(a) is not None and not a.crowd])


def has_usable_box(content: CocoContent, annotation: AnnotationEntry) -> bool:
    """Whether a box can be learned from (cut at the edge if need be)."""
    defect = _defect(content, annotation)
    return defect is None or defect.about.severity == "warning"


def _defect(content: CocoContent, annotation: AnnotationEntry) -> Defect | None:
    found = _numbers(annotation) or _place(content, annotation)
    if found is None:
        return None
    image = content.image(annotation)
    code, message = found
    return Defect(
        code,
        image.name if image else str(content.path),
        f"box {shown(annotation.written_box, 80)} (x, y, width, height) {message}",
        annotation.id,
        boxes=(annotation.xyxy,) if annotation.box is not None else (),
    )


def _numbers(annotation: AnnotationEntry) -> tuple[str, str] | None:
    if annotation.box is None:
        return "box-malformed", "is not a list of four numbers"
    if not np.isfinite(annotation.box).all():
        return "box-not-finite", "holds NaN or infinity"
    sides = dict(zip(("width", "height"), annotation.box[2:]))
    negative, zero = [n for n, s in sides.items() if s < 0], [n for n, s in sides.items() if s == 0]
    if negative:
        return "box-negative-size", f"has a negative {' and '.join(negative)}"
    if zero:
        return "box-zero-size", f"has no {' and no '.join(zero)}"
    return None


def _place(content: CocoContent, annotation: AnnotationEntry) -> tuple[str, str] | None:
    assert annotation.box is not None
    image = content.image(annotation)
    x1, y1, x2, y2 = annotation.xyxy
    if image is not None and image.width is not None and image.height is not None:
        where = f"the image of {image.width} x {image.height}"
        if x2 <= 0 or y2 <= 0 or x1 >= image.width or y1 >= image.height:
            return "box-outside", f"lies outside of {where}"
        over = {"left": -x1, "top": -y1, "right": x2 - image.width, "bottom": y2 - image.height}
        edge = max(over, key=lambda e: over[e])
        if over[edge] > 1 + 1e-6:
            return "box-partly-outside", f"reaches {over[edge]:g} pixels over the {edge} edge of {where}"
        if over[edge] > _SLACK:
            return "box-off-by-one", f"reaches {over[edge]:g} pixel over the {edge} edge of {where}"
    if min(annotation.box[2:]) < 1:
        return "box-under-one-pixel", "is thinner than a pixel"
    return None


def box_columns(
    content: CocoContent, annotations: Sequence[AnnotationEntry]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """[n] place of the image, [n] number of the class, [n, 4] xyxy of annotations with a known image."""
    classes: dict[object, int] = {}
    images, labels = [], []
    for annotation in annotations:
        image = content.image(annotation)
        assert image is not None
        images.append(image.place)
        labels.append(classes.setdefault(annotation.category_id, len(classes)))
    boxes = np.array([a.xyxy for a in annotations], np.float64).reshape(-1, 4)
    return np.array(images, np.int64), np.array(labels, np.int64), boxes


def _pairs(content: CocoContent, annotations: Sequence[AnnotationEntry]) -> Iterator[Defect]:
    """Each later box of a pair once, with the first box that it repeats."""
    images, labels, boxes = box_columns(content, annotations)
    kinds = int(labels.max(initial=0)) + 1
    told: set[int] = set()
    for first, second, overlap in zip(*near_pairs(images * kinds + labels, boxes, NEAR_DUPLICATE)):
        a, b = annotations[first], annotations[second]
        if int(second) not in told and _masks_agree(content, a, b):
            told.add(int(second))
            yield _pair("box-near-duplicate", content, a, b, f"repeats annotation {shown(a.id)}: IoU {overlap:.2f}")
    for first, second, overlap in zip(*near_pairs(images, boxes, SAME_PLACE)):
        if labels[first] != labels[second] and int(second) not in told:
            told.add(int(second))
            a, b = annotations[first], annotations[second]
            names = [_class_name(content, x) for x in (a, b)]
            message = f"is {names[1]}, annotation {shown(a.id)} at the same place is {names[0]}: IoU {overlap:.2f}"
            yield _pair("box-two-classes", content, a, b, message)


def _class_name(content: CocoContent, annotation: AnnotationEntry) -> str:
    category = content.category_of.get(annotation.category_id)
    return shown(category.name) if category else f"category {shown(annotation.category_id)}"


def _pair(code: str, content: CocoContent, a: AnnotationEntry, b: AnnotationEntry, message: str) -> Defect:
    image = content.image(b)
    assert image is not None
    text = f"box {shown(b.written_box, 80)} {message} with {shown(a.written_box, 80)}"
    return Defect(code, image.name, text, b.id, boxes=(a.xyxy, b.xyxy))


def _masks_agree(content: CocoContent, a: AnnotationEntry, b: AnnotationEntry) -> bool:
    """Two objects that embrace have nearly the same box and different masks; they are no duplicates."""
    image = content.image(a)
    if not (a.segmentation and b.segmentation) or image is None or image.width is None or image.height is None:
        return True
    if image.width * image.height > 2**26:
        return True
    try:
        one, two = (segmentation_mask(x.segmentation, image.height, image.width) for x in (a, b))
    except SegmentationError:
        return True
    return bool((one & two).sum() >= 0.5 * (one | two).sum())
