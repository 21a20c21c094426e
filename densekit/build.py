"""From a config to objects: data sets, model, training step, timetable. The tools tell the rest of the story."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from densekit import machine
from densekit.backbones.weights import load_backbone_weights
from densekit.calibration import Calibration
from densekit.class_counts import with_class_counts
from densekit.config import Config, is_config, load, override, parse
from densekit.config_unused import without_effect
from densekit.data.formats.joint import parts_of
from densekit.data.images import settings as image_settings
from densekit.data.loading import loader
from densekit.data_sets import Split as Split
from densekit.data_sets import classes_of as classes_of
from densekit.data_sets import dataset as dataset
from densekit.data_sets import notes as notes
from densekit.data_sets import task_of as task_of
from densekit.data_sets import transforms as transforms
from densekit.engine import checkpoint
from densekit.engine.distributed import World, describe, gather
from densekit.engine.plan import Plan, choose_metric
from densekit.engine.step import TrainStep
from densekit.engine.swa import EqualAverage
from densekit.epochs import epoch_samples, repeats, run_length
from densekit.errors import DensekitError
from densekit.export.model import load as load_exported
from densekit.export.runners import is_exported
from densekit.features.heads import check_store, joined_config
from densekit.frozen_heads import all_classes, changing
from densekit.memory import enough_memory
from densekit.model import DenseModel, build_model
from densekit.registry import HEADS
from densekit.set_statistics import statistics_of
from densekit.training import compiling
from densekit.training import train_step as train_step
from densekit.types import Batch, Classes, Dataset, Metric
from densekit.whole_weights import load_whole


def settle(config: Config, world: World, train_set: Dataset, val_set: Dataset | None) -> tuple[Config, list[str]]:
    """Fill in what the config leaves to the training images, and let both data sets read theirs so.

    Returns:
        The config to go on with, and lines that say what was found.
    """
    settled = image_settings.settle(config.data, train_set) if world.is_first else None
    data, lines = next(found for found in gather(settled) if found is not None)
    for one, where in ((train_set, "data.train_transforms"), (val_set, "data.eval_transforms")):
        image_settings.read_as(data, one)
        lines += image_settings.rounding(data, one, where)
    lines += image_settings.unfit_range(data, val_set)
    config, counted = with_class_counts(config.with_data(data), train_set)
    return config, [*notes(train_set, val_set), *lines, *counted]


def settle_alone(config: Config, world: World, split: Split | None) -> tuple[Config, list[str]]:
    """As ``settle`` for one split, where nothing is learned; the training set is opened where it has to decide."""
    pixels = with_pixels(config)
    data = dataset(pixels, split, training=split == "train") if split is not None else None
    if data is None or not image_settings.leaves_open(config.data, data):
        return config, []
    return settle(config, world, data if split == "train" else dataset(pixels, "train", training=True), None)


def model(
    config: Config, classes: Classes | Mapping[str, Classes], *, measured: bool = False
) -> tuple[DenseModel, list[str]]:
    """The model with its first weights, and lines that say where these came from.

    The random numbers of new weights follow from ``config.seed``.

    Args:
        config: of the run.
        classes: of the data set; or by head.
        measured: as it is, without a training; then ``model.weights`` must give everything.
    """
    torch.manual_seed(config.seed)
    with enough_memory():
        built = build_model(config.model, all_classes(config, classes), channels_last=config.train.channels_last)
    built.freeze(config.model.frozen_heads)
    built.statistics = statistics_of(config, built.backbone)
    report = []
    part = config.model.backbone
    if part.weights is not None:
        report.append(load_backbone_weights(built.backbone, part.weights, bgr=part.bgr).summary())
        if built.statistics is not None:
            built.statistics.begin()
    if config.model.weights is not None:
        match_names = [head for head in built.heads if config.sets[config.set_of(head)].match_names]
        report += load_whole(built, config.model.weights, match_names=match_names, measured=measured, bgr=part.bgr)
    report += changing(built)
    tasks = " and ".join(dict.fromkeys(built.head(head).task for head in built.heads))
    masks = any(_kinds_of_objects(config, head) for head in built.heads)
    return built, report + without_effect(config, tasks, masks=masks)


def from_checkpoint(
    path: Path, overrides: Sequence[str] = (), heads: Iterable[str] | None = None
) -> tuple[DenseModel, Config]:
    """The model that a checkpoint or an exported file holds, in evaluation mode, and its config with overrides.

    Args:
        path: of the file.
        overrides: of its config.
        heads: the only ones that the model is to have, and its config to tell of; None: all.

    Raises:
        DensekitError: not a checkpoint, a damaged one, or overrides that do not fit it; no such head.
    """
    built, config = _whole(path, overrides)
    return built, _of_heads(built, config, heads, path)


def _of_heads(built: DenseModel, config: Config, heads: Iterable[str] | None, path: Path) -> Config:
    if heads is None:
        return config
    try:
        built.keep(heads)
    except DensekitError as error:
        raise DensekitError(f"{path}: {error}") from None
    return config.of_heads(built.heads)


def of_one_head(built: DenseModel, config: Config, head: str | None) -> tuple[Config, list[str]]:
    """Let a model have one head, for what looks at one.

    Args:
        built: loses its other heads.
        config: of its run.
        head: its name; None: the first.

    Returns:
        The config as if there were this head alone, and a line that says which it is where nobody chose.

    Raises:
        DensekitError: there is no such head.
    """
    names = list(built.heads)
    built.keep([head or names[0]])
    told = [] if head or len(names) == 1 else [f"of the heads {', '.join(names)} this is {names[0]}; --head chooses"]
    return config.of_heads(built.heads), told


def _whole(path: Path, overrides: Sequence[str]) -> tuple[DenseModel, Config]:
    if is_exported(path):
        return load_exported(path, overrides)
    content = checkpoint.load(path)
    saved = parse(content["config"], f"the config in {path}")
    config = override(saved, overrides)
    with enough_memory():
        classes = checkpoint.classes_by_head(content, config.model.heads, path)
        built = build_model(config.model, classes, channels_last=config.train.channels_last)
    built.statistics = statistics_of(saved, built.backbone)
    checkpoint.load_weights(built, content["model"], path)
    held = {next(iter(built.heads)): content.get("calibration"), **content.get("calibration_by_head", {})}
    for head, one in held.items():
        if (known := Calibration.held_in({"calibration": one}, len(built.classes_of(head)), path)) is not None:
            built.calibrations[head] = known
    return built.eval(), config


def to_measure(
    source: Path, overrides: Sequence[str], split: Split, world: World, heads: Iterable[str] | None = None
) -> tuple[DenseModel, Config, list[str]]:
    """The model to measure, in evaluation mode, its config, and lines that say where it came from.

    Args:
        source: a checkpoint; or a config, whose ``model.weights`` are measured without a training.
        overrides: of the checkpoint's config, or of the config.
        split: the one to measure on, whose classes the model gets where there is no checkpoint.
        world: ranks.
        heads: the only ones to measure; None: all.

    Raises:
        DensekitError: not a checkpoint, no weights, or weights of another model or other classes; no such head.
    """
    if not is_config(source):
        return *from_checkpoint(source, overrides, heads), []
    config = load(source, overrides)
    if config.model.weights is None:
        raise DensekitError(
            f"{source} is a config, and measures the weights that it names: add model.weights=FILE, or give a "
            "checkpoint"
        )
    config, told = settle_alone(config, world, split)
    classes: dict[str, Classes] = {}
    for own in map(config.of_set, config.sets):
        classes |= classes_of(own, dataset(own, split, training=False))
    built, report = model(config, classes, measured=True)
    return built.eval(), _of_heads(built, config, heads, source), [*told, *report]


def check_stores(config: Config, built: DenseModel, *datasets: Dataset | None, training: bool) -> None:
    """Refuse data sets of stored features that do not belong to the model's backbone; others pass.

    Raises:
        DensekitError: other weights, precision or reading of the images, a backbone that is to learn, or a level that a
            head needs and the store lacks.
    """
    for data in datasets:
        if data is not None:
            weights, precision = config.model.backbone.weights, config.train.precision
            image_settings.check_store_reading(config.data, data)
            check_store(built, data, weights=weights, precision=precision, learning=training)


def with_pixels(config: Config) -> Config:
    """The config with the images themselves wherever it has stored features of them."""
    return parse(joined_config(config.model_dump(mode="json")), "config", whole=False)


def pictured(
    config: Config, split: Split, *, classes: Classes | Mapping[str, Classes], match_names: bool = False
) -> Dataset:
    """A split as evaluation sees it, with its pixels, and with its classes in the order of ``classes``."""
    return dataset(with_pixels(config), split, training=False, classes=classes, match_names=match_names)


def plan(config: Config, train_sets: Sequence[Dataset], built: DenseModel) -> Plan:
    """The timetable of the run on the data sets of ``config.taught``."""
    per_epoch, steps = run_length(config, train_sets)
    e = config.evaluation
    heads = {built.prefix(name): (built.head(name).task, _kinds_of_objects(config, name)) for name in built.heads}
    return Plan(
        steps=steps,
        steps_per_epoch=per_epoch,
        evaluate_every=max(1, round(config.evaluation.every * per_epoch)),
        metric=choose_metric(heads, e.metric, e.max_detections, e.baselines),
        baselines=e.baselines,
        save_every=config.train.save_every,
        patience=config.evaluation.patience,
    )


def _kinds_of_objects(config: Config, head: str) -> list[str]:
    """What the names of a detector's numbers begin with, beside those of boxes."""
    if not getattr(HEADS.product(config.model.heads[head].name), "learns_masks", False):
        return []
    return ["mask_", "boundary_"] if config.evaluation.boundary else ["mask_"]


def workers(config: Config, world: World, sets: int = 1) -> int:
    """Loader processes of this rank for one of several data sets."""
    if config.data.workers is not None:
        return config.data.workers
    return max(0, min(8, machine.cores() // world.local - 1) // sets)


def train_batches(
    config: Config,
    train_set: Dataset,
    world: World,
    start: int,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    sets: int = 1,
) -> Iterator[Batch]:
    """This rank's endless micro-batches of a data set from update number ``start``.

    Args:
        config: of the run, as if there were this set alone.
        train_set: it.
        world: ranks.
        start: of the updates that take images of this set.
        steps: how many updates of the run do; None: all.
        batch_size: images that such an update takes of it, over all ranks; None: ``train.batch_size``.
        sets: data sets of the run, which share the loader's processes.
    """
    images = config.train.batch_size if batch_size is None else batch_size
    updates = run_length(config, [train_set])[1] if steps is None else steps
    return loader.train_loader(
        train_set,
        batch_size=images // config.train.accumulate,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
        workers=workers(config, world, sets),
        start=start * config.train.accumulate,
        steps=updates * config.train.accumulate,
        repeats=repeats(config, train_set),
        pad_to=config.data.pad_to,
        fixed_sizes=config.data.fixed_size,
        aspect_grouping=config.data.aspect_grouping,
        on_bad_image=config.data.on_bad_image,
        pin_memory=world.device.type == "cuda",
    )


def eval_batches(config: Config, val_set: Dataset, world: World) -> loader.EvalLoader:
    """This rank's share of a data set, every image once over the ranks."""
    return loader.eval_loader(
        val_set,
        batch_size=config.evaluation.batch_size,
        rank=world.rank,
        world_size=world.size,
        workers=workers(config, world),
        pad_to=config.data.pad_to,
        on_bad_image=config.data.on_bad_image,
        pin_memory=world.device.type == "cuda",
    )


def metrics(config: Config, built: DenseModel, data: Dataset, heads: Iterable[str] | None = None) -> dict[str, Metric]:
    """An empty metric for each head that a data set measures; None: for all."""
    return {head: metric(config, built, data, head) for head in (built.heads if heads is None else heads)}


def metric(config: Config, built: DenseModel, data: Dataset, head: str | None = None) -> Metric:
    """The empty metric of a head's task; None: of the first."""
    task, classes = built.head(head).task, built.classes_of(head)
    data = parts_of(data).get(task, data)
    if task == "detection":
        from densekit.metrics.coco import CocoDataset, CocoMetric

        if not hasattr(data, "file"):  # not isinstance: since Python 3.12 that does not see what Relabelled passes on
            raise DensekitError("COCO's numbers need a COCO json to compare with; use a COCO data set for a detector")
        return CocoMetric(
            cast(CocoDataset, data),
            classes=classes,
            max_detections=config.evaluation.max_detections,
            boundary=config.evaluation.boundary,
        )
    if task == "segmentation":
        from densekit.metrics.segmentation import SegmentationMetric

        return SegmentationMetric(classes)
    from densekit.metrics.accuracy import AccuracyMetric

    return AccuracyMetric(data.classes)


def file_names(data: Dataset, ids: Sequence[int | str]) -> list[str]:
    """The image files behind ids, for messages; the ids themselves where the data set does not tell."""
    source: Any = getattr(data, "file", None) or getattr(data, "source", data)
    if not (hasattr(source, "image_id") and hasattr(data, "path")):
        return [str(i) for i in ids]
    wanted, found = set(ids), {}
    for index in range(len(data)):
        image_id = source.image_id(index)
        if image_id in wanted:
            found[image_id] = str(data.path(index))
    return [found.get(i, str(i)) for i in ids]


def summary(
    config: Config, built: DenseModel, sets: Sequence[Dataset], step: TrainStep, timetable: Plan, world: World
) -> str:
    """One line on what was chosen, at the start of a run."""
    device = describe(world.device)
    parameters = sum(p.numel() for p in built.parameters()) / 1e6
    trained = sum(p.numel() for p in step.parameters) / 1e6
    heads = " + ".join(part.name for part in config.model.heads.values())
    layout = "channels_last" if config.train.channels_last else "channels_first"
    average = f", average {config.train.ema}" if config.train.ema else ""
    if isinstance(step.average, EqualAverage):
        average = f", the mean of weights from step {step.average.start} on, every {step.average.every} steps"
    if step.freezing is not None:
        average += f", backbone frozen until step {' and '.join(map(str, step.freezing.moments))}"
    loading = sum(workers(config.of_set(name), world, len(sets)) for name in config.taught)
    data = "; ".join(_shown(config.of_set(name), name, one) for name, one in zip(config.taught, sets, strict=True))
    return (
        f"{config.model.backbone.name} + {heads}, {parameters:.1f} M parameters ({trained:.1f} M trained), "
        f"{data}; {world.size} x {device}, {step.precision}, {layout}, "
        f"{compiling(config, built, timetable, world.device)[1]}{average}, "
        f"{loading} loader workers; {timetable.steps} steps of {config.train.batch_size} images "
        f"({timetable.steps / timetable.steps_per_epoch:.1f} epochs)"
    )


def _shown(config: Config, name: str, data: Dataset) -> str:
    """A data set in a few words."""
    part, of = config.data.sampling, f"{name} for {' and '.join(config.learning)}: " if name else ""
    again = f" ({part.name} shows {epoch_samples(config, data)} an epoch)" if part else ""
    classes = " and ".join(str(len(one.classes)) for one in parts_of(data).values())
    return f"{of}{len(data)} images{again}, {classes} classes"
