"""How long an epoch and a run of a config are, and how often an epoch shows each image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from densekit.config import Config
from densekit.data.loading.sampling import epoch_length
from densekit.data.sampling.occurrences import occurrences_of
from densekit.registry import SAMPLINGS
from densekit.types import Dataset


def repeats(config: Config, train_set: Dataset) -> npt.NDArray[np.float64] | None:
    """[len] how often an epoch shows each image, on average; None: once.

    Raises:
        DensekitError: bad options, or a data set that doesn't tell its images' classes.
    """
    part = config.data.sampling
    if part is None:
        return None
    occurrences = occurrences_of(train_set, config.data.train.name, f"data.sampling: {part.name}", "remove it")
    found: npt.NDArray[np.float64] = SAMPLINGS.build(part.name, part.options, occurrences, path="data.sampling")
    return found


def epoch_samples(config: Config, train_set: Dataset) -> int:
    """Samples in an epoch."""
    return epoch_length(len(train_set), repeats(config, train_set))


def run_length(config: Config, train_sets: Sequence[Dataset]) -> tuple[int, int]:
    """Updates of the weights in an epoch, which takes as many images as the data sets have, and in the run."""
    samples = sum(
        epoch_samples(config.of_set(name), data) for name, data in zip(config.taught, train_sets, strict=True)
    )
    per_epoch = max(1, samples // config.train.batch_size)
    return per_epoch, config.train.steps or max(1, round((config.train.epochs or 0) * per_epoch))
