"""COCO's numbers on many draws of the images, from one matching.

A detection is right or wrong whatever the other images are: only its rank among the detections of all images, and so
the precision there, follows from the draw. So all images are matched once, by hotcoco, and each draw is weighted sums
along the detections in the order of their scores. Precision falls between two detections that are right, so that only
the places of these have to be looked at. The numbers are those that COCO's evaluation gives of a data set in which an
image stands as often as it was drawn.

I images, S draws, D detections of a class, T thresholds of IoU, K classes, A ranges of areas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from densekit.console import track
from densekit.metrics.coco_numbers import AREAS, IOU_50, IOU_75
from densekit.metrics.intervals import Floats, Name, Weights, mean_of_defined

Bools = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]

_LEVELS = np.linspace(0, 1, 101)  # of recall, at which COCO takes the precision
_AT_ONCE = 4_000_000  # detections times draws
_IMAGES_AT_ONCE = 500


class Matches(NamedTuple):
    """The detections of a class in all images, best first, against the objects of one range of areas.

    Those that count at no threshold are left out.

    Attributes:
        images: [D] whose detection it is.
        scores: [D] in falling order.
        ranks: [D] among the detections of the class in its image.
        right: [T, D] whether it found an object. ignored: [T, D] whether it counts nowhere.
        objects: [I] that are to be found.
    """

    images: Positions
    scores: Floats
    ranks: Positions
    right: Bools
    ignored: Bools
    objects: Positions


class CocoResampler:
    """COCO's numbers of boxes, and of masks where there are some.

    Args:
        images: ids, in the order of the evaluations' own, which are 1, 2, ...
        evaluations: matched by hotcoco, by what stands before the names of their numbers.
        names: of the classes.
    """

    def __init__(self, images: Sequence[int | str], evaluations: dict[str, Any], names: Sequence[str]) -> None:
        self.images, self.names = images, names
        self._limits = {prefix: list(evaluation.params.max_dets) for prefix, evaluation in evaluations.items()}
        self._matches = {
            prefix: matches(evaluation, len(names), len(images)) for prefix, evaluation in evaluations.items()
        }

    def boxes(self) -> list[Matches]:
        """[K] of each class, over all areas."""
        return [row[0] for row in self._matches[""]]

    def numbers(self, weights: Weights) -> dict[Name, Floats]:
        """[S] values of each number that ``CocoMetric.compute`` gives; see ``Resampler``."""
        found: dict[Name, Floats] = {}
        for prefix, table in self._matches.items():
            for name, values in self._of_kind(weights, table, self._limits[prefix]).items():
                found[*name[:-1], prefix + name[-1]] = values
        return found

    def _of_kind(self, weights: Weights, table: list[list[Matches]], limits: Sequence[int]) -> dict[Name, Floats]:
        precision = np.stack([[average_precision(m, weights) for m in row] for row in table])  # [K, A, T, S]
        recall = np.stack([[best_recall(m, weights, limits[-1]) for m in row] for row in table])
        found: dict[Name, Floats] = {("AP",): mean_of_defined(precision[:, 0], (0, 1))}
        for name, t in (("AP50", IOU_50), ("AP75", IOU_75)):
            found[(name,)] = mean_of_defined(precision[:, 0, t])
        for a, area in list(enumerate(AREAS))[1:]:
            found[(f"AP_{area}",)] = mean_of_defined(precision[:, a], (0, 1))
        for limit in limits:
            own = np.stack([best_recall(row[0], weights, limit) for row in table])
            found[(f"AR{limit}",)] = mean_of_defined(own, (0, 1))
        for a, area in list(enumerate(AREAS))[1:]:
            found[(f"AR_{area}",)] = mean_of_defined(recall[:, a], (0, 1))
        for k, name in enumerate(self.names):
            found["per_class", name, "AP"] = mean_of_defined(precision[k, 0])
            found["per_class", name, "AP50"] = precision[k, 0, IOU_50]
            found["per_class", name, "AP75"] = precision[k, 0, IOU_75]
            found["per_class", name, "AR"] = mean_of_defined(recall[k, 0])
        return found


def matches(evaluation: Any, classes: int, images: int) -> list[list[Matches]]:
    """What hotcoco matches, [K][A]; some images at a time, for it tells of each in Python's lists."""
    areas = {tuple(area): a for a, area in enumerate(evaluation.params.area_rng)}
    thresholds = len(evaluation.params.iou_thrs)
    rows: list[list[list[_Rows]]] = [[[] for _ in areas] for _ in range(classes)]
    starts = range(1, images + 1, _IMAGES_AT_ONCE)
    for start in track(starts, "matching each image", len(starts), shown=len(starts) > 1):
        evaluation.params.img_ids = list(range(start, min(start + _IMAGES_AT_ONCE, images + 1)))
        evaluation.evaluate()
        for own in evaluation.eval_imgs:
            if own is not None and (own["dtScores"] or own["gtInDenominator"]):
                rows[own["category_id"] - 1][areas[tuple(own["aRng"])]].append(_Rows.of(own, thresholds))
    return [[_joined(sorted(own, key=_Rows.place), images, thresholds) for own in of_class] for of_class in rows]


class _Rows(NamedTuple):
    """The detections of a class in one image that count at any threshold, and how many objects are to be found."""

    image: int
    objects: int
    scores: Floats
    ranks: Positions
    right: Bools
    ignored: Bools

    @classmethod
    def of(cls, own: Any, thresholds: int) -> _Rows:
        shape = (thresholds, len(own["dtScores"]))
        ignored = np.array(own["dtIgnore"], np.bool_).reshape(shape)
        kept = np.flatnonzero(~ignored.all(0))
        ignored = ignored[:, kept]
        right = np.array(own["dtMatched"], np.bool_).reshape(shape)[:, kept] & ~ignored
        scores = np.array(own["dtScores"], np.float64)[kept]
        return cls(own["image_id"] - 1, sum(own["gtInDenominator"]), scores, kept, right, ignored)

    def place(self) -> int:
        return self.image


def _joined(rows: Sequence[_Rows], images: int, thresholds: int) -> Matches:
    objects = np.zeros(images, np.int64)
    objects[[own.image for own in rows]] = [own.objects for own in rows]
    scores = np.concatenate([np.zeros(0), *(own.scores for own in rows)])
    order = np.argsort(-scores, kind="stable")
    owners = np.repeat([own.image for own in rows], [len(own.scores) for own in rows]).astype(np.int64)
    ranks = np.concatenate([np.zeros(0, np.int64), *(own.ranks for own in rows)])
    nothing = np.zeros((thresholds, 0), np.bool_)
    right, ignored = (np.concatenate([nothing, *(own[part] for own in rows)], 1)[:, order] for part in (4, 5))
    return Matches(owners[order], scores[order], ranks[order], right, ignored, objects)


def average_precision(matched: Matches, weights: Weights) -> Floats:
    """[T, S] average precision of each draw; NaN where it has no object."""
    objects = matched.objects @ weights
    step = max(1, _AT_ONCE // max(1, len(matched.images)))
    parts = [
        _average_precision(matched, weights[:, start : start + step].T.copy(), objects[start : start + step, None])
        for start in range(0, weights.shape[1], step)
    ]
    found = np.concatenate(parts, 1)
    return np.where(objects > 0, found, np.nan)


def _average_precision(matched: Matches, weights: Weights, objects: Positions) -> Floats:
    """[T, S] from weights [S, I] and objects [S, 1]: sums run along the rows, which is ten times faster in NumPy."""
    last = np.flatnonzero(matched.right.any(0))[-1:] + 1  # what follows changes nothing
    own = weights.take(matched.images[: last.sum()], 1)  # [S, D]
    seen = own.cumsum(1, dtype=np.int32)
    found = np.zeros((len(matched.right), len(weights)))
    for t, (right, ignored) in enumerate(zip(matched.right, matched.ignored)):
        at, aside = np.flatnonzero(right), np.flatnonzero(ignored[: own.shape[1]])
        if not len(at):
            continue
        hits = own.take(at, 1).cumsum(1, dtype=np.int32)
        counted = seen.take(at, 1)
        if len(aside):
            before = np.concatenate((np.zeros_like(own[:, :1]), own.take(aside, 1).cumsum(1, dtype=np.int32)), 1)
            counted -= before.take(np.searchsorted(aside, at), 1)
        precision = hits / np.maximum(counted, 1)
        best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        levels = np.diff(_levels(hits / np.maximum(objects, 1)), axis=1, prepend=0)
        found[t] = np.einsum("sj,sj->s", best, levels) / len(_LEVELS)
    return found


def _levels(recall: Floats) -> Positions:
    """How many of the levels are reached, as ``np.searchsorted`` would say with side="right", ten times faster."""
    near = (recall * (len(_LEVELS) - 1) + 0.5).astype(np.int64)  # the nearest: rounding can't tell which side it is on
    found: Positions = near + (_LEVELS[near] <= recall)
    return found


def best_recall(matched: Matches, weights: Weights, limit: int) -> Floats:
    """[T, S] part of the objects that the best ``limit`` detections of each image find; NaN where there is none."""
    images, objects = len(matched.objects), matched.objects @ weights
    kept = matched.right & (matched.ranks < limit)
    hits = np.stack([np.bincount(matched.images[row], minlength=images) for row in kept])
    found: Floats = np.where(objects > 0, (hits @ weights) / np.maximum(objects, 1), np.nan)
    return found
