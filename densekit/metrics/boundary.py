"""Boundary AP: COCO's average precision by how well the outlines of masks agree.

Bowen Cheng et al. 2021, Boundary IoU (arXiv 2103.16562): of each mask only what lies within a distance of its outline
counts, and an object is as near to a detection as the lesser of this IoU and that of the masks (section 5). hotcoco
does not know this overlap, so pycocotools matches and accumulates here, in Python: much slower than the rest.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco
from pycocotools.cocoeval import COCOeval

from densekit.metrics.coco_masks import Rle

DISTANCE = 0.02
"""Of the outline, as a part of the image's diagonal: what the paper takes for COCO (section 5)."""


def boundary(mask: Rle) -> Rle:
    """What of a mask lies within the distance of its outline; the image's border is outline too.

    Args:
        mask: compressed run lengths of an image.
    """
    height, width = mask["size"]
    distance = max(1, round(DISTANCE * float(np.hypot(height, width))))
    x, y, w, h = coco.toBbox(mask).astype(int)
    pixels = coco.decode(mask)
    cut = np.pad(pixels[y : y + h, x : x + w], 1)  # what lies around it is not of the mask, or not of the image
    inner = cv2.erode(cut, np.ones((3, 3), np.uint8), iterations=distance, borderValue=0)
    pixels[y : y + h, x : x + w] -= inner[1:-1, 1:-1]
    found: Rle = coco.encode(pixels)
    return found


@dataclasses.dataclass(slots=True)
class Settings:
    """Those of an evaluation, by hotcoco's names.

    Attributes:
        img_ids: images to evaluate.
        max_dets: detections of an image and class that count.
        area_rng: ranges of areas. iou_thrs: thresholds.
    """

    img_ids: list[int]
    max_dets: list[int]
    area_rng: list[list[float]]
    iou_thrs: npt.NDArray[np.float64]


class BoundaryEvaluation:
    """Detections matched to objects by their outlines; answers what is asked of hotcoco's evaluation.

    Args:
        objects: dictionaries with ``image_id`` and ``category_id`` (both from 1 on), ``segmentation`` (compressed run
            lengths), ``area`` and ``iscrowd``.
        found: likewise, with ``score`` for the last two.
        images: how many there are.
        classes: how many there are.
        most: best detections of each image and class that count.
    """

    def __init__(
        self,
        objects: Sequence[dict[str, Any]],
        found: Sequence[dict[str, Any]],
        *,
        images: int,
        classes: int,
        most: int,
    ) -> None:
        # One by one: of more than 255 masks at once pycocotools 2.0.11 gives no areas with numpy 2.
        areas = [float(coco.area(row["segmentation"])) for row in found]
        self._inner = _Evaluation(
            _with_boundaries([{**row, "ignore": row["iscrowd"]} for row in objects]),
            _with_boundaries([{**row, "area": area} for row, area in zip(found, areas)]),
        )
        settings = self._inner.params
        settings.catIds = list(range(1, classes + 1))
        settings.maxDets = sorted({min(1, most), min(10, most), most})
        self.params = Settings(list(range(1, images + 1)), settings.maxDets, settings.areaRng, settings.iouThrs)
        self.eval_imgs: list[dict[str, Any] | None] = []
        self.eval: dict[str, Any] | None = None

    def evaluate(self) -> None:
        """Match in the images of ``params``."""
        self._inner.params.imgIds = self.params.img_ids
        with contextlib.redirect_stdout(io.StringIO()):
            self._inner.evaluate()
        self.eval_imgs = [
            own
            and {
                **own,
                "dtMatched": own["dtMatches"] > 0,
                "gtInDenominator": [not ignored for ignored in own["gtIgnore"]],
            }
            for own in self._inner.evalImgs
        ]

    def accumulate(self) -> None:
        """Precision over recall from what was matched."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._inner.accumulate()
        self.eval = self._inner.eval


class _Evaluation(COCOeval):  # type: ignore[misc]  # pycocotools ships no types
    """pycocotools' own, on rows in place of files, with another overlap."""

    def __init__(self, objects: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> None:
        super().__init__(iouType="segm")
        self._rows = objects, found

    def _prepare(self) -> None:
        self._gts, self._dts = (_by_place(rows) for rows in self._rows)

    def computeIoU(self, imgId: int, catId: int) -> Any:
        """Of the detections that count and all objects, [D, G]."""
        objects, found = self._gts[imgId, catId], self._dts[imgId, catId]
        order = np.argsort([-row["score"] for row in found], kind="mergesort")[: self.params.maxDets[-1]]
        if not objects or not len(order):
            return []
        crowd = [row["iscrowd"] for row in objects]
        masks, outlines = (
            coco.iou([found[i][part] for i in order], [row[part] for row in objects], crowd)
            for part in ("segmentation", "boundary")
        )
        return np.where(crowd, masks, np.minimum(masks, outlines))  # a crowd has no outline of its objects


def _by_place(rows: Sequence[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    found = collections.defaultdict(list)
    for row in rows:
        found[row["image_id"], row["category_id"]].append(row)
    return found


def _with_boundaries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "id": number, "boundary": boundary(row["segmentation"])} for number, row in enumerate(rows, 1)]
