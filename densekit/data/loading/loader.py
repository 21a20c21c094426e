"""Batches from a data set, made by worker processes that share the annotations.

Workers get step numbers and make whole batches: nothing in a batch depends on which worker made it or what it made
before. A mistake in the data travels to the main process as a value and is raised there in one line.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import itertools
import math
import mmap
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch.utils.data

from densekit import machine
from densekit.data.loading.batching import Size, collate
from densekit.data.loading.sampling import Address, BatchPlan, eval_batches
from densekit.data.transforms.pipeline import Pipeline
from densekit.types import Batch, Dataset, DensekitError, Sample

OnBadImage = Literal["error", "skip"]

MOST_SKIPPED_IN_A_ROW = 64
"""So many unreadable images one after the other are no accident: then ``skip`` gives up as well."""


def train_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    start: int = 0,
    steps: int | None = None,
    repeats: npt.NDArray[np.float64] | None = None,
    pad_to: int = 32,
    fixed_sizes: Sequence[Size] = (),
    aspect_grouping: bool = True,
    on_bad_image: OnBadImage = "error",
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """This rank's part of every global batch from step ``start`` on, without end.

    Args:
        dataset: what to sample from.
        batch_size: images in a global batch, over all ranks.
        seed: the batch of a step is a pure function of (seed, step).
        rank: of this process.
        world_size: number of ranks; must divide ``batch_size``.
        workers: processes that make batches; 0 makes them here.
        start: first step to give; a resumed run goes on exactly.
        repeats: [len] how often an epoch shows each image, on average; None: once.
        steps: of the whole run: tells the transforms when its last epochs begin.
        pad_to: batches are padded to a multiple of this.
        fixed_sizes: what batches are padded to, for constant shapes, see ``padded_size``; then the number of boxes is
            constant too.
        aspect_grouping: batch images of like shape together, where the data set knows their shapes.
        on_bad_image: an image that cannot be read is an error, or replaced by the next one in the data set and listed
            in ``Batch.skipped``.
        pin_memory: give batches in pinned memory, for a GPU.

    Raises:
        DensekitError: while iterating: an image cannot be read.
    """
    ratios = dataset.aspect_ratios() if aspect_grouping else None
    plan = BatchPlan(len(dataset), batch_size, seed, ratios, repeats)
    plan.slice(0, rank, world_size)  # complains now if the ranks cannot share a batch
    transforms = getattr(dataset, "transforms", None)
    if steps is not None and isinstance(transforms, Pipeline):
        transforms.epochs = plan.epochs(steps)
    most = getattr(dataset, "max_objects", None) if fixed_sizes else None
    options = {"pad_to": pad_to, "fixed_sizes": fixed_sizes, "max_objects": most}
    source = _TrainBatches(dataset, plan, rank, world_size, on_bad_image, options)
    return _unpacked(iter(indexed_loader(source, itertools.count(start), workers, pin_memory, persistent=False)))


class EvalLoader:
    """This rank's batches of an evaluation; can be iterated again and again, by the same workers.

    Args:
        source: makes the batches.
        batches: how many.
        workers: processes that make batches.
        pin_memory: give batches in pinned memory.
    """

    def __init__(self, source: _EvalBatches, *, batches: int, workers: int, pin_memory: bool) -> None:
        self._make = functools.partial(indexed_loader, source, range(batches), workers, pin_memory)
        self._loader: torch.utils.data.DataLoader[Any] | None = None
        self._count = batches

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order; lines about images that were skipped travel with the batch before or behind them."""
        held: Batch | None = None
        skipped: list[str] = []
        try:
            for batch in self._read():
                if not batch.ids:
                    skipped += batch.skipped
                    continue
                if held is not None:
                    yield held
                held, skipped = dataclasses.replace(batch, skipped=skipped + batch.skipped), []
        except Exception:
            if held is not None:  # what was read before the error is not lost to it
                yield held
            raise
        if held is not None:
            held.skipped += skipped
            yield held
        elif skipped:
            raise DensekitError(f"not one image could be read; the first: {skipped[0]}")

    def _read(self) -> Iterator[Batch]:
        self._loader = self._loader or self._make()
        try:
            yield from _unpacked(iter(self._loader))
        except DensekitError:
            self._loader = None  # the workers stop; another round starts new ones
            raise


def eval_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pad_to: int = 32,
    on_bad_image: OnBadImage = "error",
    pin_memory: bool = False,
) -> EvalLoader:
    """Every image exactly once over the ranks; images of one canvas come together, where their sizes are known.

    Else, images of like shape do. A batch of one canvas is predicted in one pass (``canvases.py``).

    The batches are the same whatever the number of ranks: they are dealt out whole, ``batch_size`` images each.

    Args:
        dataset: what to evaluate on.
        batch_size: images in a batch.
        rank: of this process.
        world_size: number of ranks.
        workers: processes that make batches; 0 makes them here.
        pad_to: batches are padded to a multiple of this.
        on_bad_image: an image that cannot be read is an error, or left out and listed in ``Batch.skipped``.
        pin_memory: give batches in pinned memory, for a GPU.
    """
    batches = eval_batches(len(dataset), max(1, batch_size), rank, world_size, _shapes(dataset, pad_to))
    source = _EvalBatches(dataset, batches, on_bad_image, {"pad_to": pad_to})
    return EvalLoader(source, batches=len(batches), workers=workers, pin_memory=pin_memory)


def _shapes(dataset: Dataset, pad_to: int) -> npt.NDArray[Any] | None:
    """[len] a number for each canvas, or for each shape; None where neither is known."""
    sizes = dataset.seen_sizes() if hasattr(dataset, "seen_sizes") else None
    if sizes is None:
        return dataset.aspect_ratios()
    multiple = math.lcm(pad_to, 32)  # of a model's stride at least
    height, width = (-(-sizes // multiple)).T
    number: npt.NDArray[Any] = height * 2**32 + width
    return number


@dataclasses.dataclass(frozen=True, slots=True)
class _Mistake:
    """A DensekitError on its way from a worker to the main process."""

    message: str


def _unpacked(items: Iterator[Batch | _Mistake]) -> Iterator[Batch]:
    """Batches; a mistake is raised, after the workers were told to stop.

    Letting go of the iterator here does that. Left to the traceback, it would go by the garbage collector, which takes
    the queues away first, and then torch waits in vain for each worker.
    """
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        if isinstance(item, _Mistake):
            del items
            raise DensekitError(item.message)
        yield item


@dataclasses.dataclass(frozen=True, slots=True)
class _TrainBatches:
    """Batch by step, for a map-style DataLoader."""

    dataset: Dataset
    plan: BatchPlan
    rank: int
    world_size: int
    on_bad_image: OnBadImage
    options: dict[str, Any]

    def __getitem__(self, step: int) -> Batch | _Mistake:
        skipped: list[str] = []
        try:
            addresses = self.plan.slice(step, self.rank, self.world_size)
            samples = [self._sample(address, skipped) for address in addresses]
            return dataclasses.replace(collate(samples, **self.options), skipped=skipped)
        except DensekitError as error:
            return _Mistake(str(error))

    def _sample(self, address: Address, skipped: list[str]) -> Sample:
        """The sample, or the next one in the data set that can be read."""
        epoch, index = address
        for offset in range(min(len(self.dataset), MOST_SKIPPED_IN_A_ROW)):
            try:
                return self.dataset.sample(epoch, (index + offset) % len(self.dataset))
            except DensekitError as error:
                if self.on_bad_image == "error":
                    raise
                skipped.append(str(error))
        raise DensekitError(
            f"{len(skipped)} images in a row cannot be read, so none is skipped; the first: {skipped[0]}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _EvalBatches:
    """Batch by position, for a map-style DataLoader."""

    dataset: Dataset
    batches: list[list[int]]
    on_bad_image: OnBadImage
    options: dict[str, Any]

    def __getitem__(self, position: int) -> Batch | _Mistake:
        samples, skipped = [], []
        try:
            for index in self.batches[position]:
                try:
                    samples.append(self.dataset.sample(0, index))
                except DensekitError as error:
                    if self.on_bad_image == "error":
                        raise
                    skipped.append(str(error))
            if not samples:
                return _nothing(skipped)
            return dataclasses.replace(collate(samples, **self.options), skipped=skipped)
        except DensekitError as error:
            return _Mistake(str(error))


def _nothing(skipped: list[str]) -> Batch:
    """A batch without images that only carries the lines about them; ``EvalLoader`` does not hand it on."""
    empty = torch.zeros((0, 2), dtype=torch.int64)
    images = torch.zeros((0, 1, 1, 1), dtype=torch.uint8)
    return Batch(images, empty, empty, [], torch.zeros(0, dtype=torch.int64), skipped=skipped)


def indexed_loader(
    source: Any, steps: Any, workers: int, pin_memory: bool = False, *, persistent: bool = True
) -> torch.utils.data.DataLoader[Any]:
    """``source[step]`` for each of ``steps``, in order, made by worker processes that share what ``source`` holds."""
    # A fork shares the columns of the annotations; where there is none they travel as the name of the cache file that
    # they are mapped from, and a worker takes seconds to start.
    context = machine.forking() if workers else None
    return torch.utils.data.DataLoader(
        source,
        sampler=steps,
        batch_size=None,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        pin_memory=pin_memory,
        multiprocessing_context=context,
        worker_init_fn=_start_worker if workers else None,
    )


_LEAVING = mmap.mmap(-1, 1)
"""One byte that forked workers share with the main process: whether the interpreter is on its way out."""


@atexit.register
def _leave() -> None:
    # Runs before multiprocessing's own exit handler, which sends SIGTERM to the workers and waits for them.
    if multiprocessing.parent_process() is None:
        _LEAVING[0] = 1


def _start_worker(worker: int) -> None:
    """Signals reach the whole process group: the main process decides, the workers go on until it says stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: Any) -> None:
    if _LEAVING[0]:
        os._exit(0)
