"""Top-1 and top-5 accuracy, over all images and per class.

K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from densekit.errors import DensekitError
from densekit.types import Batch, Classes, Classification

Row = tuple[int, int, int]
"""True label, predicted label, and the true label's place among the probabilities (0 is the best)."""


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
