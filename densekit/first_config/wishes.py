"""What the user decides of a first config."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from densekit.types import Task


@dataclasses.dataclass(frozen=True, slots=True)
class Wishes:
    """What the user decides; None: by the rule.

    Attributes:
        source: format of the labels.
        task: that is learned.
        classes: names of the classes, in label order.
        ignore: values of masks that are not looked at, or colours as (red, green, blue).
        backbone: name of the backbone.
        head: name of the head.
        weights: that the backbone starts from; ``none`` for random numbers.
        size: long side of the images.
        epochs: passes over the training images.
        minutes: to train at most.
        seed: of the split and of the run.
    """

    source: str | None = None
    task: Task | None = None
    classes: Sequence[str] | None = None
    ignore: Sequence[int | tuple[int, int, int]] = ()
    backbone: str = "resnet18"
    head: str | None = None
    weights: str = "torchvision/IMAGENET1K_V1"
    size: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    seed: int = 0
