"""Top-1 and top-5 accuracy, over all images and per class.

K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from densekit.errors import DensekitError
from densekit.metrics.intervals import Floats, Name, Weights, in_order, mean_of_defined, ratio
from densekit.types import Batch, Classes, Classification

Row = tuple[int, int, int]
"""True label, predicted label, and the true label's place among the probabilities (0 is the best)."""


class AccuracyResampler:
    """What each image adds to the accuracies.

    Args:
        rows: by image id.
        names: of the classes.
    """

    def __init__(self, rows: dict[int | str, Row], names: Sequence[str]) -> None:
        self.images, self.names = in_order(rows), names
        self._labels, _, self._ranks = np.array([rows[i] for i in self.images], np.int64).T
        self._by_label = np.argsort(self._labels, kind="stable")

    def numbers(self, weights: Weights) -> dict[Name, Floats]:
        """[S] values of each number that ``AccuracyMetric.compute`` gives; see ``Resampler``."""
        hits = weights * (self._ranks < 1)[:, None]
        accuracy = ratio(self._per_class(hits), self._per_class(weights))
        found: dict[Name, Floats] = {
            ("top1",): hits.sum(0) / len(self.images),
            ("top5",): (weights * (self._ranks < 5)[:, None]).sum(0) / len(self.images),
            ("mean_accuracy",): mean_of_defined(accuracy),
        }
        return found | {("per_class", name, "accuracy"): row for name, row in zip(self.names, accuracy)}

    def _per_class(self, values: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """[K, S] sums of [I, S] over the images of each true class."""
        sums = np.zeros((len(self.names), values.shape[1]), np.int64)
        known, first = np.unique(self._labels[self._by_label], return_index=True)
        sums[known] = np.add.reduceat(values[self._by_label], first, 0)
        return sums


class AccuracyMetric:
    """Remembers for each image how well its class was guessed.

    Args:
        classes: names and ids of the data set.
    """

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self._rows: dict[int | str, Row] = {}

    def update(self, predictions: Classification, batch: Batch) -> None:
        """Add one batch; an image that was added before does not count again.

        Args:
            predictions: probabilities in label order.
            batch: ``targets.labels`` holds the labels.

        Raises:
            DensekitError: there are no labels.
        """
        if batch.targets is None or batch.targets.labels is None:
            raise DensekitError("the data set has no class labels to evaluate against; evaluate on one with labels")
        p = predictions.probabilities.float()
        p = torch.where(p.isfinite(), p, -1.0)
        true = batch.targets.labels.to(p.device)[:, None]
        own = p.gather(1, true)
        # Of equal probabilities the first label is before the others, as argmax has it.
        before = torch.arange(p.shape[1], device=p.device)[None] < true
        ranks = ((p > own) | ((p == own) & before)).sum(1)
        rows = torch.stack([true[:, 0], p.argmax(1), ranks], 1).tolist()
        for image_id, (label, found, rank) in zip(batch.ids, rows):
            self._rows.setdefault(image_id, (label, found, rank))

    def state(self) -> dict[int | str, Row]:
        """Rows by image id."""
        return self._rows

    def merge(self, states: Sequence[dict[int | str, Row]]) -> None:
        """Take the union of the ranks' rows; the first rank that saw an image wins."""
        self._rows = {image_id: row for state in reversed(states) for image_id, row in state.items()}

    def resampler(self) -> AccuracyResampler:
        """What each image adds to the numbers of ``compute``."""
        return AccuracyResampler(self._rows, self.classes.names)

    def compute(self) -> dict[str, Any]:
        """Count.

        Returns:
            ``top1`` and ``top5`` in 0..1 (``top5`` is 1 where there are no more than 5 classes); ``mean_accuracy``:
            the mean over the classes that occur; ``per_class``: by name ``accuracy`` (None where the class does not
            occur) and ``images``; ``confusion``: images by true and predicted class; ``images``: how many.

        Raises:
            DensekitError: there was no image.
        """
        if not self._rows:
            raise DensekitError("there is no image to evaluate; give a data set with images")
        labels, found, ranks = np.array(list(self._rows.values()), np.int64).T
        k = len(self.classes)
        confusion = np.bincount(labels * k + found, minlength=k * k).reshape(k, k)
        images = confusion.sum(1)
        rates = [float(hit / count) if count else None for hit, count in zip(np.diagonal(confusion), images)]
        known = [rate for rate in rates if rate is not None]
        return {
            "top1": float((ranks < 1).mean()),
            "top5": float((ranks < 5).mean()),
            "mean_accuracy": sum(known) / len(known),
            "images": len(labels),
            "per_class": {
                name: {"accuracy": rate, "images": int(count)}
                for name, rate, count in zip(self.classes.names, rates, images)
            },
            "confusion": confusion.tolist(),
        }
