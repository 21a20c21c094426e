"""How far numbers would move on other images like these: intervals by the bootstrap over images (Efron 1979).

The images are drawn anew, as many as there are, with some of them several times and others not at all; each number is
counted on each such draw, and the interval holds the middle 95 % of its values. Images are drawn, not objects or
pixels, because those of one image are alike. A metric keeps what each image adds to its numbers, so that a draw costs
sums, not another evaluation.

I images, S draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from densekit.console import track

Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.int32]
Name = tuple[str, ...]
"""Where a number stands in what ``compute`` gives: ``("AP",)``, ``("per_class", "cat", "AP")``."""

DRAWS = 1000
"""Draws of the images, enough for two digits of an interval's ends."""

SHARE = 0.95
_AT_ONCE = 1_000_000  # weights


class Resampler(Protocol):
    """What each image adds to the numbers of a metric."""

    @property
    def images(self) -> Sequence[int | str]:
        """[I] ids, in the order of the weights."""
        ...

    def numbers(self, weights: Weights) -> dict[Name, Floats]:
        """[S] values of each number; NaN where one is not defined.

        Args:
            weights: [I, S] how often each image counts in each draw.
        """
        ...


@runtime_checkable
class Resampled(Protocol):
    """A metric that knows what each image adds."""

    def resampler(self) -> Resampler:
        """Of the images that were added."""
        ...


def draws(images: int, count: int, seed: int) -> Iterator[Weights]:
    """[I, s] how often each image was drawn, until there were ``count`` draws; the same for the same arguments."""
    random = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // images)
    for start in range(0, count, at_once):
        size = min(at_once, count - start)
        cells = random.integers(0, images, (images, size)) * size + np.arange(size)
        yield np.bincount(cells.ravel(), minlength=images * size).reshape(images, size).astype(np.int32)


def resample(resampler: Resampler, *, count: int = DRAWS, seed: int = 0) -> dict[Name, Floats]:
    """[S] values of each number, one a draw."""
    images = len(resampler.images)
    chunks = -(-count // max(1, _AT_ONCE // images))
    drawn = track(draws(images, count, seed), "drawing images anew", chunks, shown=chunks > 1)
    parts = [resampler.numbers(weights) for weights in drawn]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(values: Floats) -> list[float] | None:
    """The ends between which the middle 95 % of the values lie; None where there is none that is defined."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return [float(low), float(high)]


def intervals(metric: object, *, count: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """The intervals of a metric after ``evaluate``; see ``intervals_of``. None for one that knows nothing of images."""
    if not count or not isinstance(metric, Resampled):
        return {}
    return intervals_of(metric.resampler(), count=count, seed=seed)


def intervals_of(resampler: Resampler, *, count: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """The interval of each number, under the number's own name.

    Args:
        resampler: of a metric.
        count: draws.
        seed: of the draws.

    Returns:
        ``AP: [low, high]`` and so on, ``per_class`` by name, as the numbers are; None where one is never defined.
        Empty for fewer than two images.
    """
    if len(resampler.images) < 2:
        return {}
    found: dict[str, Any] = {}
    for name, values in resample(resampler, count=count, seed=seed).items():
        place = found
        for part in name[:-1]:
            place = place.setdefault(part, {})
        place[name[-1]] = interval(values)
    return found


def in_order(ids: Iterable[int | str]) -> list[int | str]:
    """Ids of images, numbers before words: the same order on however many ranks they were seen."""
    return sorted(ids, key=lambda i: (isinstance(i, str), i))


def mean_of_defined(values: Floats, axis: int | tuple[int, ...] = 0) -> Floats:
    """Mean over what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    found: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


def ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Floats:
    """Part by whole; NaN where there is no whole."""
    found: Floats = np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
    return found
