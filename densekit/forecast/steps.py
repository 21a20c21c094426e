"""The training steps of a config as its data sets make them, with the largest images that were seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from densekit.config import Config
from densekit.engine.distributed import World
from densekit.forecast.loading import Look, batch_of, look_at, share_of_largest
from densekit.learning_sets import LearningSet, mixing_of
from densekit.types import Batch


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """A data set of a run, and a look at its images."""

    data: LearningSet
    look: Look


def see(sets: Sequence[LearningSet]) -> list[Seen]:
    """Read some images of each data set as training does.

    Raises:
        DensekitError: not one of a set can be read.
    """
    return [Seen(one, look_at(one.train)) for one in sets]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """What a step takes of one data set at a time.

    Attributes:
        seen: the data set.
        images: of a micro-batch, over all ranks.
        often: part of all steps that take images of the set.
        batch: a micro-batch of this rank with the largest images.
        area: of its images as they come on average, as part of that of the largest.
    """

    seen: Seen
    images: int
    often: float
    batch: Batch
    area: float


def steps_of(config: Config, seen: Sequence[Seen], world: World) -> list[list[Part]]:
    """The kinds of steps of a run: one that takes images of every data set, or one for each set where they take turns.

    Raises:
        DensekitError: images that the sets or the ranks can't share.
    """
    mixing = mixing_of(config, [one.data for one in seen], world)
    parts = []
    for one in seen:
        name, own = one.data.name, config.of_set(one.data.name)
        images = mixing.sizes[name]
        batch = batch_of(own, one.look, images // world.size)
        batch = dataclasses.replace(batch, heads=one.data.heads, data_set=name)
        often = mixing.parts[name] if mixing.in_turn else 1.0
        parts.append(Part(one, images, often, batch, share_of_largest(own, one.look, images // world.size)))
    return [[part] for part in parts] if mixing.in_turn else [parts]
