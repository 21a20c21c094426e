"""What transforms that mix images of the data set have in common: when they act, and how another image is drawn.

Another image is drawn by the same generator as all else of a sample, so the sample stays a pure function of (seed,
epoch, index). It is mixed as the transforms before leave it, with draws of its own.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pydantic

from densekit.types import Classes, DensekitError, Instance, Sample, Task, nearest

Probability = Annotated[float, pydantic.Field(ge=0, le=1)]
Part = Annotated[float, pydantic.Field(gt=0, le=1)]


@dataclasses.dataclass(frozen=True, slots=True)
class Pool:
    """The images of a data set, for a sample to be mixed with.

    Attributes:
        count: images.
        epoch: of the sample.
        classes: of the data set.
        read: an index -> its sample before any transform.
    """

    count: int
    epoch: int
    classes: Classes
    read: Callable[[int], Sample]


@dataclasses.dataclass(frozen=True, slots=True)
class Others:
    """What a transform that mixes gets beside the sample.

    Attributes:
        draw: another image, after the transforms before.
        classes: of the data set.
    """

    draw: Callable[[], Sample]
    classes: Classes


class Mixing(abc.ABC):
    """A transform that mixes others of the data set's images into the sample's.

    Attributes:
        p: probability with which it acts.
        until: part of the run's epochs after which it rests; 1 never does.
        classes: names of those that it is about; None: all.
        pastes_masks: of data with boxes it needs the masks of objects too.
    """

    p: float
    until: float
    classes: tuple[str, ...] | None = None
    pastes_masks: bool = False

    @abc.abstractmethod
    def __call__(self, sample: Sample, random: np.random.Generator, others: Others) -> Sample:
        """Mix."""

    @abc.abstractmethod
    def most_objects(self, most: int) -> int:
        """The most objects that it gives, where no image has more than ``most``."""

    def check(self, task: Task, classes: Classes, where: str) -> None:
        """Refuse a data set that it can't mix; ``where`` names it.

        Raises:
            DensekitError: labels of whole images, or other classes than it is about.
        """
        if task == "classification":
            raise DensekitError(
                f"{where}: {type(self).__name__} mixes images with their boxes or masks, and this data set has labels "
                f"of whole images; remove it (the head classifier has an option mixup)"
            )
        for name in self.classes or ():
            if name not in classes.names:
                raise DensekitError(f"{where}.classes: there is no class {name!r}; {nearest(name, classes.names)}")


def pixels_alike(images: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Images of one type: uint8, or float32 where one of them is."""
    dtype = np.result_type(*images)
    return [image.astype(dtype, copy=False) for image in images]


def shifted(instances: Sequence[Instance] | None, x: int, y: int) -> list[Instance] | None:
    """Masks moved by whole pixels; they stay inside of the image."""
    if instances is None:
        return None
    return [Instance(one.x + x, one.y + y, one.mask) if one.mask.size else one for one in instances]


def with_objects_of(sample: Sample, *others: Sample) -> Sample:
    """The sample with the objects of others behind its own."""
    if sample.boxes is None:
        return sample
    every = (sample, *others)
    boxes, labels, crowd = (np.concatenate([getattr(s, name) for s in every]) for name in ("boxes", "labels", "crowd"))
    instances = None
    if sample.instances is not None:
        instances = [one for s in every for one in s.instances or ()]
    return dataclasses.replace(sample, boxes=boxes, labels=labels, crowd=crowd, instances=instances)
