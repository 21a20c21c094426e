"""What a detector's numbers are made of: precision over recall, the best score to cut at, and what is taken for what.

K classes, R levels of recall. All at an IoU of 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import hotcoco
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

IOU = 0.5
_CUTS = np.arange(1, 100) / 100
_ANY_CUT = 0.5  # where there is no object to choose one by


class Curves(NamedTuple):
    """Precision over recall, as COCO's evaluation counts it.

    Attributes:
        recall: [R] from 0 to 1.
        precision: [R, K] the best precision at that recall or more; 0 beyond the last detection, -1 in all of a class
            without an object.
        scores: [R, K] of the detection that reaches the recall.
    """

    recall: Floats
    precision: Floats
    scores: Floats

    def best_cut(self) -> tuple[float | None, float]:
        """The highest F1 (its mean over the classes that have objects; None without any), and from which score on."""
        known = (self.precision > -1).any(0)
        if not known.any():
            return None, _ANY_CUT
        precision, scores = self.precision[:, known], self.scores[:, known]
        reached = ((scores[None] >= _CUTS[:, None, None]) & (precision[None] > 0)).sum(1)  # [cuts, K] levels of recall
        at = np.maximum(reached - 1, 0)
        p, r = np.take_along_axis(precision, at, 0), self.recall[at]
        f1 = np.where(reached > 0, 2 * p * r / np.maximum(p + r, 1e-12), 0.0).mean(1)
        best = int(f1.argmax())
        return float(f1[best]), float(_CUTS[best])


class Objects(NamedTuple):
    """The objects of an image: boxes [N, 4] (x, y, width, height), labels [N] and whether each is a crowd [N]."""

    boxes: Floats
    labels: Labels
    crowd: npt.NDArray[np.bool_]


class Found(NamedTuple):
    """What was found in an image: boxes [D, 4] (x, y, width, height), scores [D], labels [D]."""

    boxes: Floats
    scores: Floats
    labels: Labels


Image = tuple[Objects, Found]


def confusion(images: Sequence[Image], count: int, cut: float) -> npt.NDArray[np.int64]:
    """What was found for what: [K + 1, K + 1] true by predicted classes, the last of both being the background.

    The best detection first, each one takes the object of its own class that it covers best; those that are left take
    an object of another class. Objects that nothing took are in the last column, detections that took nothing in the
    last row, but for those inside a crowd of their class, which count nowhere: so the diagonal is what AP calls found.

    Args:
        images: objects and what was found.
        count: K.
        cut: detections below this score are left out.
    """
    matrix = np.zeros((count + 1, count + 1), np.int64)
    for objects, found in images:
        kept = np.flatnonzero(found.scores >= cut)
        order = kept[np.argsort(-found.scores[kept], kind="stable")]
        for true, predicted in _pairs(objects, found.boxes[order], found.labels[order], count):
            matrix[true, predicted] += 1
    return matrix


def _pairs(objects: Objects, boxes: Floats, labels: Labels, nothing: int) -> list[tuple[int, int]]:
    """(true, predicted) classes, ``nothing`` for the background; detections come best first."""
    shares = overlaps(boxes, objects.boxes, objects.crowd)
    covers = shares >= IOU
    shares = np.where(covers & ~objects.crowd, shares, 0.0)
    alike = labels[:, None] == objects.labels
    free = ~objects.crowd
    pairs: list[tuple[int, int]] = []
    left: list[int] = []
    for own in (True, False):
        for d in range(len(boxes)) if own else left.copy():
            open_to = shares[d] * free * (alike[d] if own else 1)
            if open_to.any():
                best = int(open_to.argmax())
                free[best] = False
                pairs.append((int(objects.labels[best]), int(labels[d])))
                if not own:
                    left.remove(d)
            elif own:
                left.append(d)
    in_crowd = (covers & alike & objects.crowd).any(1)
    pairs += [(nothing, int(labels[d])) for d in left if not in_crowd[d]]
    return pairs + [(int(label), nothing) for label in objects.labels[free]]


def overlaps(boxes: Floats, others: Floats, crowd: npt.NDArray[np.bool_]) -> Floats:
    """[D, N] IoU of boxes (x, y, width, height); with a crowd, the share of the first box that lies in it."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], others[None, :, :2] + others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    first, second = boxes[:, 2:].prod(1)[:, None], others[:, 2:].prod(1)[None]
    whole: Floats = np.where(crowd, first, first + second - shared)
    share: Floats = shared / np.maximum(whole, 1e-12)
    return share


def curves(images: Sequence[Image], count: int, most: int) -> Curves:
    """Precision over recall of each class, as COCO's evaluation counts it.

    Args:
        images: objects and what was found, in the order that breaks ties between equal scores.
        count: K.
        most: best detections of each image and class that count.
    """
    owners = [np.full(len(objects.labels), i) for i, (objects, _) in enumerate(images, 1)]
    joined = Objects(*(np.concatenate(part) for part in zip(*(objects for objects, _ in images))))
    truth = hotcoco.COCO.from_arrays(
        images=[{"id": i} for i in range(1, len(images) + 1)],
        categories=[{"id": k, "name": str(k)} for k in range(1, count + 1)],
        image_ids=np.concatenate(owners),
        category_ids=joined.labels + 1,
        boxes=joined.boxes,
        area=joined.boxes[:, 2:].prod(1),
        iscrowd=joined.crowd.astype(np.int64),
    )
    rows = [
        np.column_stack((np.full(len(found.scores), i, np.float64), found.boxes, found.scores, found.labels + 1.0))
        for i, (_, found) in enumerate(images, 1)
    ]
    evaluation = hotcoco.COCOeval(truth, truth.load_res(np.concatenate(rows)), "bbox")
    evaluation.params.iou_thrs, evaluation.params.max_dets = [IOU], [most]
    evaluation.evaluate()
    evaluation.accumulate()
    counted = evaluation.eval
    assert counted is not None
    recall = np.asarray(evaluation.params.rec_thrs, np.float64)
    return Curves(recall, counted["precision"][0, :, :, 0, -1], counted["scores"][0, :, :, 0, -1])


def box_errors(images: Sequence[Image], names: Sequence[str], most: int) -> dict[str, Any]:
    """All of it in numbers for a file.

    Args:
        images: objects and what was found, in the order that breaks ties between equal scores.
        names: of the classes.
        most: best detections of each image and class that count.

    Returns:
        ``F1`` and ``F1_threshold``, see ``Curves.best_cut``; ``curves``: ``recall`` and by class the ``precision``,
        None where the class has no object; ``confusion`` of the detections from that score on.
    """
    counted = curves(images, len(names), most)
    best, cut = counted.best_cut()
    precision = {
        name: None if (counted.precision[:, k] < 0).all() else counted.precision[:, k].tolist()
        for k, name in enumerate(names)
    }
    return {
        "F1": best,
        "F1_threshold": cut,
        "curves": {"recall": counted.recall.tolist(), "precision": precision},
        "confusion": confusion(images, len(names), cut).tolist(),
    }
