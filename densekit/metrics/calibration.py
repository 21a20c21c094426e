"""Whether a score of 0.8 is right in eight of ten cases, the temperature that mends it, and scores to cut at.

Temperatures minimise the negative log-likelihood (Guo et al. 2017, arXiv 1706.04599), which is convex in 1 / T. A
detection is right where COCO's evaluation calls it so at an IoU of 0.5; the expected calibration error over detections
is the D-ECE of Küppers et al. (2020, arXiv 2004.13546) of the score alone. Errors after the fit are those of images
that had no part in it: each half of the images is calibrated by the other.

N scores, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hotcoco
import numpy as np
import numpy.typing as npt
import torch

from densekit.calibration import tempered, tempered_chances
from densekit.errors import DensekitError
from densekit.metrics.coco_resampled import Matches
from densekit.types import IGNORE, Batch, Classification, Segmentation

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

BINS = 10
LEAST = 10
"""Right and wrong scores that a temperature needs, each; with fewer it stays 1."""

_COLDEST, _HOTTEST = 0.05, 20.0


class Judged(NamedTuple):
    """Scores [N], whether what they stand for is right, and the position of its image."""

    scores: Floats
    right: npt.NDArray[np.bool_]
    images: Labels

    def of(self, places: npt.NDArray[np.bool_]) -> Judged:
        """Some of them."""
        return Judged(self.scores[places], self.right[places], self.images[places])


class Chances(NamedTuple):
    """Probabilities [N, K] of images or pixels, their labels [N] or layers [N, K], and the position of their image."""

    chances: Floats
    labels: Labels
    images: Labels

    def judged(self, temperature: float = 1.0) -> Judged:
        """The best class of each, or every layer by itself."""
        if self.labels.ndim == 2:
            scores = tempered(self.chances, temperature).ravel()
            return Judged(scores, self.labels.ravel() == 1, np.repeat(self.images, self.labels.shape[1]))
        found = tempered_chances(self.chances, temperature, axis=1)
        return Judged(found.max(1), found.argmax(1) == self.labels, self.images)


class Fitted(NamedTuple):
    """Temperatures, and the scores before and after; those after are of images that had no part in the fit."""

    temperatures: list[float]
    before: Judged
    after: Judged


class Cut(NamedTuple):
    """A score, the precision and recall of what reaches it, and whether that is what was asked for."""

    score: float
    precision: float
    recall: float
    reached: bool


def of_class(matched: Matches) -> Judged:
    """The detections of a class that count, best first."""
    counted = ~matched.ignored[0]
    return Judged(matched.scores[counted], matched.right[0, counted], matched.images[counted])


def calibration_error(judged: Judged) -> float:
    """Mean distance of confidence and accuracy over ten bins of the score, each weighted by its share of the scores."""
    if not len(judged.scores):
        return 0.0
    return float(hotcoco.metrics.calibration_error(judged.scores, judged.right, BINS)[0])


def reliability(judged: Judged) -> list[dict[str, Any]]:
    """A row a bin: ``bin_lower``, ``bin_upper``, ``avg_confidence``, ``avg_accuracy``, ``count``."""
    rows: list[dict[str, Any]] = hotcoco.metrics.calibration_curve(judged.scores, judged.right, BINS)
    return rows


def fit_boxes(classes: Sequence[Judged]) -> Fitted:
    """A temperature a class."""
    temperatures = [temperature_of(judged) for judged in classes]
    after = [judged._replace(scores=_by_halves(judged)) for judged in classes]
    return Fitted(temperatures, _joined(classes), _joined(after))


def fit_chances(chances: Chances) -> Fitted:
    """One temperature."""
    half = _half(chances.images)
    parts = []
    for learned in (False, True):
        given, held = (Chances(*(part[half == which] for part in chances)) for which in (learned, not learned))
        parts.append(held.judged(chances_temperature(given)))
    return Fitted([chances_temperature(chances)], chances.judged(), _joined(parts))


def temperature_of(judged: Judged) -> float:
    """Of scores that are each a sigmoid by itself."""
    if min(judged.right.sum(), (~judged.right).sum()) < LEAST:
        return 1.0
    p = np.clip(judged.scores, 1e-7, 1 - 1e-7)
    logits = np.log(p / (1 - p))
    return _root(lambda scale: float(((1 / (1 + np.exp(-scale * logits)) - judged.right) * logits).sum()))


def chances_temperature(given: Chances) -> float:
    """Of probabilities over classes, or of layers."""
    if given.labels.ndim == 2:
        return temperature_of(given.judged())
    right = given.chances.argmax(1) == given.labels
    if min(right.sum(), (~right).sum()) < LEAST:
        return 1.0
    logits = np.log(np.maximum(given.chances, 1e-12))
    true = logits[np.arange(len(logits)), given.labels]

    def slope(scale: float) -> float:
        return float(((tempered_chances(given.chances, 1 / scale, axis=1) * logits).sum(1) - true).sum())

    return _root(slope)


def _root(slope: Callable[[float], float]) -> float:
    """The temperature at which the slope of a convex loss in 1 / T is 0, or the end of the range that is nearest."""
    low, high = 1 / _HOTTEST, 1 / _COLDEST
    for _ in range(50):
        middle = float((low * high) ** 0.5)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(1 / (low * high) ** 0.5)


def _by_halves(judged: Judged) -> Floats:
    """Scores of each half of the images by the temperature of the other."""
    found, half = judged.scores.copy(), _half(judged.images)
    for held in (False, True):
        found[half == held] = tempered(found[half == held], temperature_of(judged.of(half != held)))
    return found


def _half(images: Labels) -> npt.NDArray[np.bool_]:
    """Which of two halves each image is in, by lot."""
    count = int(images.max(initial=-1)) + 1
    found: npt.NDArray[np.bool_] = np.random.default_rng(0).permutation(count)[images] % 2 == 1
    return found


def _joined(parts: Sequence[Judged]) -> Judged:
    scores, right, images = (np.concatenate(part) for part in zip(*parts))
    return Judged(scores, right, images)


def choose_cut(judged: Judged, objects: int, *, precision: float | None = None, recall: float | None = None) -> Cut:
    """The score of a class from which on its boxes are to be believed.

    Args:
        judged: scores, best first.
        objects: of the class.
        precision: take as many boxes as there can be with this share of them right; the most precise where none is.
        recall: take as few boxes as find this share of the objects; all where these do not.
            Neither: the best F1.
    """
    if not len(judged.scores) or not objects:
        return Cut(0.5, 0.0, 0.0, reached=False)
    ends = np.flatnonzero(np.append(judged.scores[1:] < judged.scores[:-1], True))  # equal scores are cut together
    hits = judged.right.cumsum()[ends]
    p, r = hits / (ends + 1), hits / objects
    if precision is not None:
        fit = np.flatnonzero(p >= precision)
        at, reached = (int(fit[-1]), True) if len(fit) else (int(p.argmax()), False)
    elif recall is not None:
        fit = np.flatnonzero(r >= recall)
        at, reached = (int(fit[0]), True) if len(fit) else (len(ends) - 1, False)
    else:
        at, reached = int((2 * p * r / np.maximum(p + r, 1e-12)).argmax()), True
    # Half way to the next score, which no rounding reaches.
    last = float(judged.scores[ends[at]])
    below = float(judged.scores[ends[at] + 1]) if at + 1 < len(ends) else 0.9 * last
    return Cut((last + below) / 2, float(p[at]), float(r[at]), reached)


class ChanceMetric:
    """Collects probabilities and labels of images, or of some pixels of each.

    Args:
        pixels: of each image, drawn by its own seed.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self._rows: dict[int | str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}

    def update(self, predictions: Segmentation | Classification, batch: Batch) -> None:
        """Add one batch; an image that was added before does not count again."""
        for row, image_id in enumerate(batch.ids):
            if image_id in self._rows:
                continue
            p = predictions.probabilities[row].detach().float().cpu()
            if isinstance(predictions, Classification):
                if batch.targets is None or batch.targets.labels is None:
                    raise DensekitError("the data set has no class labels to calibrate with; give one with labels")
                label = int(batch.targets.labels[row])
                self._rows[image_id] = (p.numpy()[None], np.array([label]))
                continue
            if batch.truth is None:
                raise DensekitError("the data set has no masks to calibrate with; give one with masks")
            self._rows[image_id] = self._drawn(p, batch.truth[row], int(batch.seeds[row]))

    def _drawn(self, p: torch.Tensor, truth: torch.Tensor, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        true = truth.numpy().reshape(-1, truth.shape[-2] * truth.shape[-1])
        known = np.flatnonzero((true != IGNORE).all(0))
        chosen = np.random.default_rng(abs(seed)).permutation(known)[: self.pixels]
        labels = true[:, chosen]
        return p.reshape(len(p), -1).numpy()[:, chosen].T, labels.T if truth.dim() == 3 else labels[0]

    def state(self) -> dict[int | str, Any]:
        """Rows by image id."""
        return self._rows

    def merge(self, states: Sequence[dict[int | str, Any]]) -> None:
        """Take the union of the ranks' rows."""
        self._rows = {image_id: rows for state in reversed(states) for image_id, rows in state.items()}

    def compute(self) -> dict[str, Any]:
        """How many images."""
        return {"images": len(self._rows)}

    def of_image(self, image_id: int | str) -> npt.NDArray[Any]:
        """[n, K] probabilities of an image, or of its pixels that were drawn."""
        return self._rows[image_id][0]

    def chances(self) -> Chances:
        """All rows."""
        parts = list(self._rows.values())
        owners = np.repeat(np.arange(len(parts)), [len(labels) for _, labels in parts])
        p, labels = (np.concatenate(part) for part in zip(*parts))
        return Chances(p.astype(np.float64), labels.astype(np.int64), owners)
