"""Whether one model is better than another: the difference on the same images, and how far chance moves it.

The images are drawn anew for both models alike (see ``metrics/intervals.py``), so what makes an image hard for both
cancels out: the interval of the difference is far narrower than those of the two numbers. Runs of one config with
other seeds stand for one model; where there are several, the seeds are drawn too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from densekit.errors import DensekitError
from densekit.measured import Measured
from densekit.metrics import MAIN_METRIC
from densekit.metrics.intervals import Floats, Name, draws, interval

_ASIDE = ("seed", "log")
"""Parts of a config that make no other model of it."""


class Difference(NamedTuple):
    """A number of two models.

    Attributes:
        name: of the number.
        first: value of A, the mean over its seeds; None where it is not defined.
        second: value of B.
        between: interval of B - A.
    """

    name: Name
    first: float | None
    second: float | None
    between: list[float] | None

    @property
    def by(self) -> float | None:
        """B - A."""
        return None if self.first is None or self.second is None else self.second - self.first


def grouped(runs: Sequence[Measured]) -> tuple[list[Measured], list[Measured]]:
    """The runs of A and of B: two runs are one each; of more, those whose configs differ in the seed alone.

    Raises:
        DensekitError: there are not two configs.
    """
    if len(runs) == 2:
        return [runs[0]], [runs[1]]
    groups: dict[str, list[Measured]] = {}
    for run in runs:
        tree = {key: part for key, part in run.config.model_dump(mode="json").items() if key not in _ASIDE}
        groups.setdefault(repr(tree), []).append(run)
    if len(groups) != 2:
        names = "; ".join(", ".join(str(run.path) for run in group) for group in groups.values())
        raise DensekitError(
            f"{len(groups)} config{'s' * (len(groups) != 1)} among {len(runs)} runs ({names}); give two runs, or runs "
            "of two configs that differ in their seed alone"
        )
    first, second = groups.values()
    return first, second


def heads_of(runs: Sequence[str], heads: Sequence[str] | None) -> list[str | None]:
    """The head of each run that is compared; None: its first.

    Args:
        runs: their names.
        heads: one for all runs, or one a run, in their order; None: the first of each.

    Raises:
        DensekitError: neither one nor one a run.
    """
    if heads is None:
        return [None] * len(runs)
    if len(heads) not in (1, len(runs)):
        raise DensekitError(
            f"--head is given {len(heads)} times for {len(runs)} runs; give it once for all, or once a run, in their "
            "order"
        )
    return list(heads) if len(heads) > 1 else [heads[0]] * len(runs)


def check_alike(runs: Sequence[Measured]) -> None:
    """Refuse runs that were not measured on the same images with the same truth.

    Raises:
        DensekitError: other tasks, classes, images or truth, with the first difference.
    """
    first = runs[0]
    for run in runs[1:]:
        where = f"{first.path} and {run.path} can't be compared: "
        if run.model.task != first.model.task:
            raise DensekitError(f"{where}one does {first.model.task}, the other {run.model.task}")
        if difference := first.data.classes.difference(run.data.classes):
            raise DensekitError(f"{where}they know other classes: {difference}")
        own, others = (list(one.resampler.images) for one in (first, run))
        if own != others:
            odd = sorted(set(map(str, own)) ^ set(map(str, others)))
            raise DensekitError(
                f"{where}they were measured on {len(own)} and {len(others)} images, such as {odd[0] if odd else '-'} "
                "of one alone; name one data set for both, such as data.val.annotations=val.json"
            )
        if _truth(first) != _truth(run):
            raise DensekitError(f"{where}the annotations of their images differ; name one data set for both")


def _truth(run: Measured) -> list[Any]:
    """How much there is of each class: objects, pixels or images."""
    rows = run.numbers["per_class"].values()
    return [[row.get(count) for count in ("objects", "pixels", "images")] for row in rows]


def compare(first: Sequence[Measured], second: Sequence[Measured], *, count: int, seed: int) -> list[Difference]:
    """Each number of B against that of A, on the same draws of the images.

    Args:
        first: the seeds of A.
        second: the seeds of B.
        count: draws.
        seed: of the draws.
    """
    resamplers = [[run.resampler for run in group] for group in (first, second)]
    images = len(resamplers[0][0].images)
    whole = [[one.numbers(np.ones((images, 1), np.int32)) for one in group] for group in resamplers]
    parts = []
    for weights in draws(images, count, seed):
        parts.append([[one.numbers(weights) for one in group] for group in resamplers])
    random = np.random.default_rng([seed, 1])
    chosen = [random.integers(0, len(group), (len(group), count)) for group in resamplers]
    found = []
    for name in whole[0][0]:
        values = [
            np.stack([np.concatenate([part[g][run][name] for part in parts]) for run in range(len(group))])
            for g, group in enumerate(resamplers)
        ]
        drawn = [np.take_along_axis(of_seeds, seeds, 0).mean(0) for of_seeds, seeds in zip(values, chosen)]
        own = [_mean([numbers[name] for numbers in group]) for group in whole]
        found.append(Difference(name, own[0], own[1], interval(drawn[1] - drawn[0])))
    return found


def _mean(values: Sequence[Floats]) -> float | None:
    mean = float(np.mean(values))
    return None if np.isnan(mean) else mean


def chosen_number(run: Measured) -> str:
    """The head's number that the run's best checkpoint was chosen by.

    It is the main one of its task where that was the loss, a number of another head, or one over all heads.
    """
    (head,) = run.model.heads
    asked = (run.config.evaluation.metric or "").removeprefix(f"{head}.")
    return MAIN_METRIC[run.model.task] if asked in ("", "loss", "gain") or "." in asked else asked


def table(differences: Sequence[Difference]) -> list[list[object]]:
    """Name, A, B, B - A and its interval, a row a number that is defined."""
    return [
        [": ".join(one.name[-2:]), one.first, one.second, f"{one.by:+.4f}", "{:+.4f} to {:+.4f}".format(*one.between)]
        for one in differences
        if one.by is not None and one.between is not None
    ]


def verdict(differences: Sequence[Difference], number: str) -> str:
    """One sentence on a number.

    Args:
        differences: what ``compare`` gave.
        number: its name.
    """
    main = next(one for one in differences if one.name == (number,))
    if main.by is None or main.between is None:
        return f"{number} is not defined, so that A and B can't be compared by it"
    low, high = main.between
    if low <= 0 <= high:
        return f"no difference is shown: B - A is {main.by:+.4f} {number}, 95 % between {low:+.4f} and {high:+.4f}"
    ends = sorted((abs(low), abs(high)))
    word = "better" if main.by > 0 else "worse"
    return f"B is {word} by {abs(main.by):.4f} {number}, 95 % between {ends[0]:.4f} and {ends[1]:.4f}"
