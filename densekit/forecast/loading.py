"""A look at a few training images: how large they are after their transforms, and how long they take."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence

import numpy as np
import torch

from densekit.config import Config
from densekit.data.loading.batching import collate, round_up
from densekit.errors import DensekitError
from densekit.forecast.replay import clock
from densekit.types import Batch, Dataset, Sample


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """A few samples of an epoch, evenly spread.

    Attributes:
        samples: after the transforms.
        seconds: to read, decode and transform one.
    """

    samples: Sequence[Sample]
    seconds: float


def look_at(train_set: Dataset, *, most: int = 24, budget: float = 2.0) -> Look:
    """Read some images as training does.

    Args:
        train_set: with the training transforms.
        most: images.
        budget: seconds after which no further one is read.

    Raises:
        DensekitError: not one can be read.
    """
    now, began = clock(torch.device("cpu")), time.perf_counter()
    samples: list[Sample] = []
    spent, failed = [], None
    for index in np.linspace(0, len(train_set) - 1, min(most, len(train_set))).astype(int).tolist():
        if samples and time.perf_counter() - began > budget:
            break
        start = now()
        try:
            samples.append(train_set.sample(0, index))
        except DensekitError as error:
            failed = error
            continue
        spent.append(now() - start)
    if not samples:
        assert failed is not None
        raise failed
    return Look(samples, float(np.mean(spent[1:] or spent)))  # the first one also loads what the others find there


def batch_of(config: Config, look: Look, count: int) -> Batch:
    """So many images as one batch, padded to the largest that were seen."""
    data = config.data
    return collate(
        list(itertools.islice(itertools.cycle(look.samples), count)), pad_to=data.pad_to, fixed_sizes=data.fixed_size
    )


def share_of_largest(config: Config, look: Look, count: int) -> float:
    """The area of a batch as it comes on average, as part of that of a batch with the largest images."""
    if config.data.fixed_size:
        return 1.0
    sizes = np.array([sample.image.shape[:2] for sample in look.samples])
    if config.data.aspect_grouping:
        sizes = sizes[np.argsort(sizes[:, 1] / sizes[:, 0])]
    starts = range(max(1, len(sizes) - count + 1))
    areas = [_padded_area(sizes[start : start + count], config.data.pad_to) for start in starts]
    return float(np.mean(areas) / _padded_area(sizes, config.data.pad_to))


def _padded_area(sizes: np.ndarray[tuple[int, ...], np.dtype[np.int64]], pad_to: int) -> int:
    height, width = (round_up(int(side), pad_to) for side in sizes.max(0))
    return height * width
