"""The data sets that an exported file is checked on, and those that show which values its maps have."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from densekit import build
from densekit.config import Config
from densekit.console import track
from densekit.data.loading.loader import EvalLoader
from densekit.engine.distributed import World
from densekit.errors import DensekitError
from densekit.export.check import CheckedOn
from densekit.learning_sets import MeasuredSet
from densekit.model import DenseModel


def checked_on(sets: Sequence[MeasuredSet], model: DenseModel, world: World) -> tuple[list[CheckedOn], torch.dtype]:
    """Where each head is checked: on the sets that have labels for it; on the first where none has.

    Args:
        sets: that were opened.
        model: that is exported.
        world: one rank.

    Returns:
        The sets, and the dtype of their images.

    Raises:
        DensekitError: images of one set have 8 bits, those of another more.
    """
    places: list[CheckedOn] = []
    dtypes: dict[str, torch.dtype] = {}
    measured = {head for one in sets for head in one.heads}
    for one in sets:
        batches = build.eval_batches(one.config, one.data, world)
        dtypes[one.name] = next(iter(batches)).images.dtype
        metrics = functools.partial(build.metrics, one.config, model, one.data, one.heads)
        others = [] if places else [head for head in model.heads if head not in measured]
        shown = track(batches, "comparing", len(batches))
        places.append(CheckedOn(shown, metrics, [*one.heads, *others], functools.partial(_file_name, one)))
    if len(set(dtypes.values())) > 1:
        told = ", ".join(f"data.{name} {str(dtype).removeprefix('torch.')}" for name, dtype in dtypes.items())
        raise DensekitError(f"one file takes images of one kind, and the data sets have others ({told}); use --head")
    return places, next(iter(dtypes.values()))


def _file_name(one: MeasuredSet, image: int | str) -> str:
    return build.file_names(one.data, [image])[0]


def train_images(config: Config, model: DenseModel, world: World) -> list[EvalLoader]:
    """The training images of each data set, as an evaluation sees them."""
    loaders = []
    for own in map(config.of_set, config.taught or config.sets):
        classes = {head: model.classes_of(head) for head in own.learning}
        loaders.append(build.eval_batches(own, build.dataset(own, "train", training=False, classes=classes), world))
    return loaders
