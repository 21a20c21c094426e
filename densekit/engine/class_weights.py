"""How often each class occurs in a segmenter's training masks, and losses that weigh the rare ones more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.data.formats.segmentation import SegmentationDataset, balanced_weights, class_counts
from densekit.errors import DensekitError
from densekit.ops.segmentation_losses import Mode, default_losses
from densekit.types import Dataset

_FIGURES = 4
"""Figures of a weight: a person reads it, and masks are not more exact."""


def count_pixels(
    data: Dataset, progress: Callable[[Sequence[int]], Iterable[int]] = lambda indices: indices
) -> npt.NDArray[np.int64]:
    """Pixels of each class, in the order of ``data.classes``, read from the untouched masks.

    Args:
        data: a segmentation data set.
        progress: wraps the indices that are read, for a progress bar.

    Raises:
        DensekitError: it has no masks, or one of them is bad.
    """
    inner = getattr(data, "inner", data)  # matched by name: the labels are in another order than the files'
    if not isinstance(inner, SegmentationDataset):
        raise DensekitError(f"data.train: pixels are counted in masks, and this data set is for {data.task}")
    counts = class_counts(inner, progress(range(len(inner))))
    by_name = dict(zip(inner.classes.names, counts))
    return np.array([by_name.get(name, 0) for name in data.classes.names])


def balanced_losses(
    losses: Mapping[str, Any] | None, mode: Mode, counts: npt.NDArray[np.int64], power: float = 0.5
) -> dict[str, Any]:
    """A head's ``losses`` option with balanced weights added, its other losses as they are.

    Args:
        losses: the option as the config has it; None stands for the default losses.
        mode: of the head.
        counts: [K] pixels by class.
        power: see ``balanced_weights``.

    Returns:
        With ``class_weights``; for ``mode: binary``, which has one logit, with ``positive_weight``.

    Raises:
        DensekitError: no class has a pixel; of binary, one of the two; a power out of 0..1.
    """
    if not 0 <= power <= 1:
        raise DensekitError(f"--power {power} must lie between 0 (pixels weigh alike) and 1 (classes weigh alike)")
    weights = balanced_weights(counts, power)
    chosen = default_losses(mode).chosen() if losses is None else losses
    if mode != "binary":
        return {**chosen, "class_weights": [_rounded(weight) for weight in weights]}
    if not all(weights):
        raise DensekitError("data.train: one of the two classes has no pixel, so no weight balances them; label some")
    return {**chosen, "positive_weight": _rounded(weights[1] / weights[0])}


def _rounded(weight: float) -> float:
    return float(f"{weight:.{_FIGURES}g}")
