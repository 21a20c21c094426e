"""The data sets that a run learns from, each with the heads that learn from it; one without a name in most runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from densekit import build
from densekit.config import Config
from densekit.data.formats.joint import parts_of
from densekit.data.loading.mixing import Mixing
from densekit.doctor.lost_files import check_files
from densekit.doctor.quick import quick_check
from densekit.engine.distributed import World
from densekit.epochs import epoch_samples, run_length
from densekit.errors import DensekitError
from densekit.model import DenseModel
from densekit.types import Batch, Classes, Dataset


@dataclasses.dataclass(slots=True)
class LearningSet:
    """A data set of a run.

    Attributes:
        name: in the config; empty where it is the only one.
        config: of the run, as if there were this set alone.
        train: what is learned.
        val: what the heads are measured on, where there is one.
    """

    name: str
    config: Config
    train: Dataset
    val: Dataset | None

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that learn from it."""
        return self.config.learning


def open_sets(config: Config) -> list[LearningSet]:
    """The data sets of a run, each split opened and checked.

    Raises:
        DensekitError: see ``build.dataset``; a head that two sets train with other classes, or that two measure.
    """
    opened: list[LearningSet] = []
    for name in config.taught:
        own = config.of_set(name)
        known = {head: classes for head, classes in classes_of(opened).items() if head in own.learning}
        train = build.dataset(own, "train", training=True, classes=known or None)
        known |= build.classes_of(own, train)
        val = build.dataset(own, "val", training=False, classes=known) if own.data.val else None
        opened.append(LearningSet(name, own, train, val))
    for head in config.model.heads:
        measuring = [one.name for one in opened if one.val is not None and head in one.heads]
        if len(measuring) > 1:
            raise DensekitError(
                f"model.heads.{head}: {' and '.join(measuring)} both have a val that measures it; leave one of them out"
            )
    return opened


def classes_of(sets: Sequence[LearningSet]) -> dict[str, Classes]:
    """The classes of each head."""
    found: dict[str, Classes] = {}
    for one in sets:
        found = {**build.classes_of(one.config, one.train), **found}
    return {head: found[head] for one in sets for head in one.config.model.heads if head in found}


def settle(config: Config, world: World, sets: Sequence[LearningSet]) -> tuple[Config, list[str]]:
    """Fill in what the config leaves to the training images; see ``build.settle``."""
    lines: list[str] = []
    for one in sets:
        own, told = build.settle(config.of_set(one.name), world, one.train, one.val)
        config = config.model_copy(update={"model": own.model, "sets": {**config.sets, **own.sets}})
        lines += _placed(config.of_set(one.name), told)
    for one in sets:
        one.config = config.of_set(one.name)
    return config, lines


def check(config: Config, sets: Sequence[LearningSet], built: DenseModel, world: World, saved: Path) -> list[str]:
    """Look for the files of all sets, and at what they hold; lines on what was found.

    Args:
        config: of the run.
        sets: its.
        built: the model, whose backbone stored features must be of.
        world: ranks, which share each batch.
        saved: where the run writes its config.

    Raises:
        DensekitError: files are missing, nothing can be learned, or batches can't be shared.
    """
    mixing_of(config, sets, world)
    for one in sets:
        one.config = config.of_set(one.name)  # settled since they were opened
    lines: list[str] = []
    for one in sets:
        build.check_stores(one.config, built, one.train, one.val, training=True)
    for one in sets:
        lines += check_files(one.config, one.train, one.val)
        of_val = {} if one.val is None else parts_of(one.val)
        for task, part in parts_of(one.train).items():
            lines += _placed(one.config, quick_check(part, val=of_val.get(task), config=one.config, saved=saved))
    return list(dict.fromkeys(lines))


def _placed(config: Config, lines: Sequence[str]) -> list[str]:
    """Lines on ``data``, with its place in the config."""
    return [f"{config.place}{line.removeprefix('data')}" if line.startswith("data") else line for line in lines]


def mixing_of(config: Config, sets: Sequence[LearningSet], world: World) -> Mixing:
    """How the sets share the updates of a run.

    Raises:
        DensekitError: images that the ranks can't share evenly.
    """
    by_size = config.train.mixing == "size"
    shares = {one.name: epoch_samples(one.config, one.train) if by_size else one.config.data.share for one in sets}
    mixing = Mixing(shares, config.train.batch_size // config.train.accumulate, in_turn=config.train.mixing == "turn")
    for name, images in mixing.sizes.items():
        if images % world.size:
            of = f" of data.{name}" if name else ""
            raise DensekitError(
                f"train.batch_size / train.accumulate = {images} images{of} can't be shared by {world.size} ranks; "
                f"make it a multiple of {world.size}"
            )
    return mixing


def train_batches(config: Config, sets: Sequence[LearningSet], world: World, start: int) -> Iterator[list[Batch]]:
    """This rank's micro-batches of each update from number ``start`` on, without end.

    A step takes ``train.accumulate`` micro-batches of each set that has its turn; each says which heads learn from it.
    """
    mixing, accumulate = mixing_of(config, sets, world), config.train.accumulate
    steps = run_length(config, [one.train for one in sets])[1]
    streams = {
        one.name: build.train_batches(
            one.config,
            one.train,
            world,
            start=mixing.before(one.name, start),
            steps=mixing.before(one.name, steps),
            batch_size=mixing.sizes[one.name] * accumulate,
            sets=len(sets),
        )
        for one in sets
    }
    return _rounds(mixing, streams, {one.name: one.heads for one in sets}, accumulate, start)


def _rounds(
    mixing: Mixing,
    streams: dict[str, Iterator[Batch]],
    heads: dict[str, tuple[str, ...]],
    accumulate: int,
    start: int,
) -> Iterator[list[Batch]]:
    step = start
    while True:
        taken = [(name, next(streams[name])) for name in mixing.sets(step) for _ in range(accumulate)]
        yield [dataclasses.replace(batch, heads=heads[name], data_set=name) for name, batch in taken]
        step += 1


def file_names(sets: Sequence[LearningSet], batch: Batch) -> list[str]:
    """The image files of a batch, for messages."""
    own = next(one for one in sets if one.name == batch.data_set)
    return build.file_names(own.train, batch.ids)


@dataclasses.dataclass(frozen=True, slots=True)
class MeasuredSet:
    """A data set that a checkpoint is measured on.

    Attributes:
        name: in the config; empty where it is the only one.
        config: of the run, as if there were this set alone.
        data: the split.
    """

    name: str
    config: Config
    data: Dataset

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that it has labels for."""
        return self.config.learning

    def title(self, split: str) -> str:
        """What it is, in a few words."""
        counts = " and ".join(str(len(one.classes)) for one in parts_of(self.data).values())
        return f"{' '.join(filter(None, (self.name, split)))}: {len(self.data)} images, {counts} classes"


def open_measured(config: Config, built: DenseModel, split: build.Split, *, match_names: bool) -> list[MeasuredSet]:
    """The data sets that have a split, whose classes the model's predictions then come in.

    They are the model's own unless names were matched: then ids are the data set's.

    Raises:
        DensekitError: none has it; see ``build.dataset``.
    """
    names = [name for name, data in config.sets.items() if getattr(data, split) is not None]
    opened = []
    for name in names or list(config.sets)[:1]:  # of none, the first tells what is missing
        own = config.of_set(name)
        known = {head: built.classes_of(head) for head in own.learning}
        data = build.dataset(own, split, training=False, classes=known, match_names=match_names)
        build.check_stores(own, built, data, training=False)
        for head, classes in build.classes_of(own, data).items():
            built.set_classes(head, classes)
        opened.append(MeasuredSet(name, own, data))
    return opened
