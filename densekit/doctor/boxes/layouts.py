"""How the boxes of a set are written: as COCO has them, or in another way that fits all of them where COCO's does not.

COCO writes x, y, width, height in pixels. One box can hardly be told from another way of writing; a whole set can: read
the wrong way, a large part of it reaches beyond its images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from densekit.doctor.boxes.boxes import overlaps

Floats = npt.NDArray[np.float64]

ALL = 0.98
"""Part of the boxes that a way of writing must fit: a set may have a few that are wrong by themselves."""

PARTS = 1.05
"""The largest number that parts of an image (0..1) may have."""

_FEWEST = 3  # boxes that do not fit as they are written, below which nothing is suspected
_SHARES = (0.2, 0.002, 0.01)  # their part of all boxes: to suspect corners, centres, swapped axes
_SLACK, _SLACK_SHARE = (
    2.0,
    0.005,
)  # that a box may reach beyond its image: pixels; of parts of an image, part of its side
_BETTER = 10  # times that the misfits of one way must outnumber those of another to be ruled out
_SMALLEST_SIDE = 8  # pixels of images from which on boxes within 0..1 are no boxes of pixels
_OUTSIDE = 0.1  # part of the boxes with their centre outside of the image, from which on the images had another size
_LIES_ON = 0.5  # IoU from which on a box belongs to a mask
_CORNER = 20  # boxes that must lie in the corner of their images to be suspected of percents


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A way of writing a box.

    Attributes:
        words: for people.
        order: [n, 4] as written -> (x, y, width, height).
        whole: number that stands for the image's whole side; 0: pixels.
    """

    words: str
    order: Callable[[Floats], Floats]
    whole: int = 0

    def as_coco(self, boxes: Floats, sizes: Floats) -> Floats:
        """[n, 4] as written and [n, 2] (height, width) of their images -> (x, y, width, height) in pixels."""
        boxes = self.order(boxes)
        return boxes * np.tile(sizes[:, ::-1], 2) / self.whole if self.whole else boxes


def _corners(boxes: Floats) -> Floats:
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)


def _centres(boxes: Floats) -> Floats:
    return np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]), 1)


def _turned(order: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    return lambda boxes: order(boxes[:, [1, 0, 3, 2]])


def _as_is(boxes: Floats) -> Floats:
    return boxes


_PLAIN: tuple[tuple[str, Callable[[Floats], Floats]], ...] = (
    ("x, y, width, height", _as_is),
    ("x1, y1, x2, y2 (corners)", _corners),
    ("x, y of the centre, width, height", _centres),
)
_UNITS = {1: "parts of the image (0..1)", 100: "percent of the image", 1000: "thousandths of the image"}

COCO = Layout("x, y, width, height in pixels", _as_is)
PIXELS = tuple(Layout(f"{words} in pixels", order) for words, order in _PLAIN[1:])
TURNED = tuple(
    Layout(f"{words} in pixels", _turned(order))
    for words, (_, order) in zip(("y, x, height, width", "y1, x1, y2, x2", "y, x of the centre, height, width"), _PLAIN)
)


def relative(whole: int) -> tuple[Layout, ...]:
    """Ways of writing boxes in parts of their image's sides."""
    return tuple(Layout(f"{words} in {_UNITS[whole]}", order, whole) for words, order in _PLAIN)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """How boxes seem to be written.

    Attributes:
        layouts: ways that fit all of them; none: they belong to images of another size.
        misfits: boxes that do not fit their images as they are written.
        sure: False where COCO's way fits too, but is unlikely.
        reach: how far the boxes go, in widths and heights of their images.
    """

    layouts: tuple[Layout, ...]
    misfits: int
    sure: bool = True
    reach: tuple[float, float] = (1.0, 1.0)


def judge_layout(boxes: Floats, sizes: Floats, around: Floats | None = None) -> Verdict | None:
    """How the boxes of a set are written; None where it is COCO's way as far as can be seen.

    Args:
        boxes: [n, 4] as written.
        sizes: [n, 2] (height, width) of each box's image.
        around: [n, 4] (x, y, width, height) around each object's mask, NaN where there is none.
    """
    finite = np.isfinite(boxes).all(1)
    boxes, sizes = boxes[finite], sizes[finite]
    if not len(boxes):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        known = np.zeros(len(boxes), np.bool_) if around is None else np.isfinite(around[finite]).all(1)
        if around is not None and known.sum() >= _FEWEST:
            return _by_masks(boxes[known], sizes[known], around[finite][known])
        return _by_fit(boxes, sizes)


def misfits(layout: Layout, boxes: Floats, sizes: Floats) -> int:
    """How many boxes, read in this way, have no area or reach beyond their images."""
    limits = sizes[:, ::-1]
    slack = np.maximum(_SLACK, _SLACK_SHARE * limits) if layout.whole else _SLACK
    read = layout.as_coco(boxes, sizes)
    low, high = read[:, :2], read[:, :2] + read[:, 2:]
    good = ((read[:, 2:] > 0) & (low >= -slack) & (high <= limits + slack)).all(1)
    return len(boxes) - int(good.sum())


def _by_fit(boxes: Floats, sizes: Floats) -> Verdict | None:
    wrong, count = misfits(COCO, boxes, sizes), len(boxes)
    if (np.abs(boxes).max(1) <= PARTS).mean() >= ALL and np.median(sizes.min(1)) >= _SMALLEST_SIDE:
        found = _fitting(relative(1), boxes, sizes, count)
        return Verdict(found, wrong) if found else None
    corners, centres, turned = (wrong >= max(_FEWEST, share * count) for share in _SHARES)
    plain = _fitting([layout for layout, asked in zip(PIXELS, (corners, centres)) if asked], boxes, sizes, wrong)
    found = plain or _fitting(TURNED if corners else TURNED[::2] if turned else (), boxes, sizes, wrong)
    if not found and corners and _reaches(1000, boxes) and _reaches(1000, boxes[_on_small_images(sizes)]):
        found = _fitting(relative(1000), boxes, sizes, wrong)
    if found:
        return Verdict(found, wrong)
    return _in_the_corner(boxes, sizes, wrong) or _of_other_images(boxes, sizes)


def _fitting(layouts: Sequence[Layout], boxes: Floats, sizes: Floats, wrong: int) -> tuple[Layout, ...]:
    """The ways that fit nearly all boxes, much better than COCO's, and none much better than they."""
    counts = [misfits(layout, boxes, sizes) for layout in layouts]
    least = min(counts, default=0)
    if least > min((1 - ALL) * len(boxes), wrong / _BETTER):
        return ()
    return tuple(layout for layout, n in zip(layouts, counts) if n < max(_FEWEST, _BETTER * least))


def _reaches(whole: int, boxes: Floats) -> bool:
    """Whether the boxes end just where ``whole`` stands for the image's side."""
    ends = (boxes[:, :2] + boxes[:, 2:]).max(0)
    return bool((ends >= 0.9 * whole).all() and (ends <= 1.01 * whole).all())


def _on_small_images(sizes: Floats) -> npt.NDArray[np.bool_]:
    areas = sizes.prod(1)
    return np.asarray(areas <= np.median(areas))


def _in_the_corner(boxes: Floats, sizes: Floats, wrong: int) -> Verdict | None:
    """Boxes that all lie within 100 or 1000 pixels, and reach just there, of images that are much larger."""
    for whole in (100, 1000):
        if len(boxes) >= _CORNER and _reaches(whole, boxes) and (sizes.min(1) >= 2 * whole).mean() >= ALL:
            return Verdict(relative(whole)[:1], wrong, sure=False)
    return None


def _of_other_images(boxes: Floats, sizes: Floats) -> Verdict | None:
    """Boxes whose centres lie outside: their images had another size when they were drawn."""
    limits = sizes[:, ::-1]
    centres = (boxes[:, :2] + boxes[:, 2:] / 2) / limits
    outside = int(((centres < 0) | (centres > 1)).any(1).sum())
    if outside < max(_FEWEST, _OUTSIDE * len(boxes)):
        return None
    reach = np.quantile((boxes[:, :2] + boxes[:, 2:]) / limits, 0.99, axis=0)
    return Verdict((), outside, reach=(float(reach[0]), float(reach[1])))


def _by_masks(boxes: Floats, sizes: Floats, masks: Floats) -> Verdict | None:
    """Masks show where the objects are: the way that lies on them is the right one."""
    apart = overlaps(boxes, masks) < _LIES_ON
    if apart.mean() < 0.5:
        return None
    layouts = (*PIXELS, *TURNED, *relative(1), *relative(100), *relative(1000))
    shares = [(overlaps(layout.as_coco(boxes, sizes), masks) >= _LIES_ON).mean() for layout in layouts]
    best = int(np.argmax(shares))
    return Verdict((layouts[best],), int(apart.sum())) if shares[best] >= 0.9 else None
