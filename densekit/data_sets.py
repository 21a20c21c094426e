"""A split of a config's data set, opened and checked against the heads that learn from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from densekit.config import Config, DataConfig, Part
from densekit.data.formats.joint import parts_of
from densekit.data.images import settings as image_settings
from densekit.data.relabelled import Relabelled
from densekit.data.transforms.pipeline import Pipeline
from densekit.engine import checkpoint
from densekit.errors import DensekitError
from densekit.registry import DATASETS, HEADS
from densekit.types import Classes, Dataset, Task

Split = Literal["train", "val", "test"]


def dataset(
    config: Config,
    split: Split,
    *,
    training: bool,
    classes: Classes | Mapping[str, Classes] | None = None,
    match_names: bool = False,
) -> Dataset:
    """The data set of a split.

    Args:
        config: of the run.
        split: which of ``data.train``, ``data.val``, ``data.test``.
        training: with the training transforms; else with those of evaluation, and with what metrics need.
        classes: what the data set's classes must be, of which it may lack some; or by head; None takes whatever it has.
        match_names: ids and order may differ from ``classes`` where the names are the same; as ``data.match_names``.

    Raises:
        DensekitError: no such split, bad options, bad annotations, no labels for a head, or other classes.
    """
    where = f"{config.place}.{split}"
    part: Part | None = getattr(config.data, split)
    if part is None:
        raise DensekitError(f"{where}: the config has no such data set; add it, or choose another --data")
    instances = learns_masks(config)
    if instances and "instances" not in DATASETS.options(part.name):
        raise DensekitError(
            f"{where}: {part.name!r} gives no masks of objects, and a head learns them; use coco, yolo or labelme "
            f"with polygons or run lengths, or a head that takes boxes alone, such as faster_rcnn"
        )
    pipeline = transforms(config.data, training, config.model.channels)
    built: Dataset = DATASETS.build(
        part.name,
        part.options,
        path=where,
        transforms=pipeline,
        seed=config.seed,
        training=training,
        channels=config.model.channels,
        max_pixels=config.data.max_pixels,
        instances=instances,
    )
    if not len(built):
        raise DensekitError(f"{where}: the data set holds no images; check its paths")
    _check_labels(config, built, where)
    for task, own in parts_of(built).items():
        pipeline.check_data(task, own.classes)
    if not training and built.task != "classification" and transforms(config.data, False).crops:
        raise DensekitError(
            "data.eval_transforms: CenterCrop would lose what lies outside; it is for classifiers alone"
        )
    image_settings.read_as(config.data, built)
    match_names |= config.data.match_names
    wanted = {config.learning[0]: classes} if isinstance(classes, Classes) else dict(classes or {})
    if match_names:
        wanted = {**_learned(config, [head for head in config.learning if head not in wanted]), **wanted}
    return _with_classes(config, built, wanted, where, match_names)


def _learned(config: Config, heads: Sequence[str]) -> dict[str, Classes]:
    """The classes of the heads that the first weights have; others are new, and take their data set's."""
    if config.model.weights is None or not heads:
        return {}
    content = checkpoint.load(config.model.weights)
    held = content["config"]["model"]["heads"]
    return checkpoint.classes_by_head(content, [head for head in heads if head in held], config.model.weights)


def _check_labels(config: Config, built: Dataset, where: str) -> None:
    """Refuse a data set that has no labels for one of the heads that are to learn from it."""
    for head in config.learning:
        if (task := task_of(config, head)) not in parts_of(built):
            raise DensekitError(
                f"{where}: it has labels for {' and '.join(parts_of(built))}, and the head {head!r} does {task}; give "
                f"it another data set, or leave it out of the set's heads"
            )


def _with_classes(
    config: Config, built: Dataset, wanted: Mapping[str, Classes], where: str, match_names: bool
) -> Dataset:
    """A data set whose classes are those that the heads have learned."""
    parts = parts_of(built)
    for head, learned in wanted.items():
        task = task_of(config, head)
        if task in parts:
            parts[task] = _relabelled(parts[task], learned, where, match_names)
    return built if len(parts) > 1 else next(iter(parts.values()))


def _relabelled(built: Dataset, learned: Classes, where: str, match_names: bool) -> Dataset:
    if learned == built.classes:
        return built
    if match_names or getattr(built, "ids_are_positions", False) or built.classes.are_among(learned):
        return Relabelled(built, learned, where)
    raise DensekitError(
        f"{where}: its classes are not those that the model learned: {learned.difference(built.classes)}; "
        f"use the same classes, or add {where.rpartition('.')[0]}.match_names=true where names are the same and ids or "
        f"order differ"
    )


def classes_of(config: Config, data: Dataset) -> dict[str, Classes]:
    """The classes that a data set has for each head that learns from it."""
    return {head: parts_of(data)[task_of(config, head)].classes for head in config.learning}


def task_of(config: Config, head: str) -> Task:
    """The task of a head."""
    task: Task = HEADS.product(config.model.heads[head].name, f"model.heads.{head}").task
    return task


def learns_masks(config: Config) -> bool:
    """Whether a head that learns from ``data`` learns the masks of objects: its class says ``learns_masks``."""
    heads = [(config.model.heads[name].name, f"model.heads.{name}") for name in config.learning]
    return any(getattr(HEADS.product(*head), "learns_masks", False) for head in heads)


def notes(*datasets: Dataset | None) -> list[str]:
    """Lines on what data sets read although it is written otherwise, or leave out."""
    lines = [line for data in datasets for line in getattr(data, "notes", ())]
    return [f"data: {line}" for line in dict.fromkeys(lines)]


def transforms(config: DataConfig, training: bool, channels: int = 3) -> Pipeline:
    """The transforms of training or of evaluation, of images with so many channels."""
    where = "data.train_transforms" if training else "data.eval_transforms"
    specs = config.train_transforms if training else config.eval_transforms
    pipeline = Pipeline(specs, training=training, path=where)
    if channels != 3:
        pipeline.check_channels(channels)
    return pipeline
