"""What a run will take, put together: memory, seconds a step, hours, disk."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence

import torch

from densekit import build, machine
from densekit.config import Config
from densekit.engine.distributed import World
from densekit.engine.plan import Plan
from densekit.forecast.disk import Sizes, sizes_of
from densekit.forecast.memory import Study, study
from densekit.forecast.remedies import remedies
from densekit.forecast.replay import seconds_of
from densekit.forecast.steps import Part, see
from densekit.forecast.trace import Operation, Trace
from densekit.forecast.words import GIB, in_words
from densekit.learning_sets import LearningSet
from densekit.model import DenseModel
from densekit.precision import Precision

A_WORKER = 150 * 2**20
"""Bytes of a loader worker beside its batches: pages of the main process that it comes to write to."""

AHEAD = 2
"""Batches that each worker reads ahead."""


@dataclasses.dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take.

    Attributes:
        steps: the kinds of steps, with what each takes of the data sets.
        memory: bytes at the peak of a step: of the GPU, or of the process on the CPU.
        room: bytes that there are for it; None where the system does not tell.
        host: bytes of main memory: the process, and its loader workers.
        compute: seconds of a step without its images; None where its device is not here.
        step: seconds with them.
        hours: to the end, with all evaluations.
        evaluations: how many these are.
        sizes: of model, gradients, optimiser.
        remedies: what would fit, where this does not.
    """

    steps: Sequence[Sequence[Part]]
    memory: int
    room: int | None
    host: int
    compute: float | None
    step: float | None
    hours: float | None
    evaluations: int
    sizes: Sizes
    remedies: Sequence[str]

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.room is None or self.memory <= self.room


def forecast(
    config: Config,
    model: DenseModel,
    sets: Sequence[LearningSet],
    world: World,
    *,
    precision: Precision,
    room: int | None,
    here: bool = True,
) -> Forecast:
    """Look at a few images, trace two steps without data, run the operations that take the most time.

    Args:
        config: settled, of the run.
        model: as it was built.
        sets: what is learned and evaluated.
        world: ranks, and the device.
        precision: of the forward pass.
        room: bytes that there are on the device; None: not known.
        here: whether the device is; else there are no times.

    Raises:
        DensekitError: images that can't be read, or a batch that the sets or the ranks can't share.
    """
    timetable = build.plan(config, [one.train for one in sets], model)
    known = study(config, model, see(sets), world, precision, elsewhere=not here)
    steps, traced = known.steps(config), known.trace(config)
    memory = known.at_peak(traced)
    compute = _compute(known, config, steps, traced) if here else None
    step = None if compute is None else _with_images(config, compute, steps, world)
    measured = any(one.val is not None for one in sets)
    evaluations = math.ceil(timetable.steps / timetable.evaluate_every) if measured else 0
    hours = None
    if step is not None and compute is not None:
        hours = (timetable.steps * step + evaluations * _evaluation(config, compute, known)) / 3600
    process = memory if not known.on_gpu else known.process + known.held
    return Forecast(
        steps=steps,
        memory=memory,
        room=room,
        host=process + _of_workers(config, steps, world),
        compute=compute,
        step=step,
        hours=hours,
        evaluations=evaluations,
        sizes=sizes_of(model, config.train),
        remedies=remedies(known, config, room, memory) if room is not None and memory > room else [],
    )


def _compute(known: Study, config: Config, steps: Sequence[Sequence[Part]], traced: Trace) -> float:
    """Seconds of a step on images that are there: of an average batch, where the traced one has the largest."""
    calls: defaultdict[Operation, float] = defaultdict(float)
    for parts, operations in zip(steps, traced.operations, strict=True):
        pixels = [part.batch.images.numel() for part in parts]
        area = sum(count * part.area for count, part in zip(pixels, parts)) / sum(pixels)
        for one, count in operations.items():
            calls[one] += count * parts[0].often * area
    times = config.train.accumulate / min(2, config.train.accumulate)
    return seconds_of(calls, known.world.device).seconds * times


def _workers(config: Config, part: Part, world: World) -> int:
    """Loader processes of this rank for a data set."""
    return build.workers(config.of_set(part.seen.data.name), world, len(config.taught))


def _of_workers(config: Config, steps: Sequence[Sequence[Part]], world: World) -> int:
    """Bytes of the loader's processes."""
    images = [(part, part.batch.images) for parts in steps for part in parts]
    return sum(
        _workers(config, part, world) * (A_WORKER + AHEAD * one.numel() * one.element_size()) for part, one in images
    )


def _with_images(config: Config, compute: float, steps: Sequence[Sequence[Part]], world: World) -> float:
    """Seconds of a step whose images are read meanwhile, where there are workers, on the cores that there are."""
    parts = [part for step in steps for part in step]
    workers = [_workers(config, part, world) for part in parts]
    share = config.train.accumulate / world.size
    images = [part.seen.look.seconds * part.often * part.images * share for part in parts]
    here = compute + sum(each for each, count in zip(images, workers) if not count)
    if not any(workers):
        return here
    threads = torch.get_num_threads() if world.device.type == "cpu" else 1
    cores = machine.cores() / world.local
    slowest = max(each / count for each, count in zip(images, workers) if count)
    return max(here, slowest, (compute * threads + sum(images)) / cores)


def _evaluation(config: Config, compute: float, known: Study) -> float:
    """Seconds of one evaluation, whose forward pass is about a third of a step."""
    world, seconds = known.world, 0.0
    for one in known.seen:
        workers = max(1, build.workers(config.of_set(one.data.name), world))
        each = compute / config.train.batch_size / 3 + one.look.seconds / workers / world.size
        seconds += each * (0 if one.data.val is None else len(one.data.val))
    return seconds


def told(found: Forecast, config: Config, timetable: Plan, precision: Precision, device: str) -> list[str]:
    """A forecast in words, a line each."""
    sizes = found.sizes
    times = f", {config.train.accumulate} times a step" if config.train.accumulate > 1 else ""
    where = "of this process" if device.startswith("CPU") else "on the device"
    there = "" if found.room is None else f", {found.room / GIB:.1f} GiB are there"
    lines = [
        f"batch    {_batches(found.steps)} pixels (height x width){times}, {precision}, {device}",
        f"memory   {found.memory / GIB:.2f} GiB {where} at the peak of a step{there}; model, gradients, optimiser and "
        f"average take {sizes.memory / GIB:.2f} of them",
        f"host     {found.host / GIB:.2f} GiB with loader workers",
    ]
    if found.step is not None and found.compute is not None and found.hours is not None:
        lines.append(f"step     {found.step:.3g} s, of which {found.compute:.3g} s of computing")
        lines.append(
            f"run      {timetable.steps} steps and {found.evaluations} evaluations: {in_words(3600 * found.hours)}"
        )
    else:
        lines.append(f"step     not told: {device} is not here to be measured; {timetable.steps} steps")
    lines.append(f"disk     {sizes.folder / GIB:.2f} GiB of checkpoints in the run folder")
    if not found.fits:
        lines += ["It does not fit. What would:", *(f"  {line}" for line in found.remedies)]
    return lines


def _batches(steps: Sequence[Sequence[Part]]) -> str:
    """What the micro-batches of a step are made of."""
    told = []
    for part in (part for parts in steps for part in parts):
        height, width = part.batch.images.shape[2:]
        of = f" of {part.seen.data.name}" if part.seen.data.name else ""
        told.append(f"{part.images} images{of} of up to {height} x {width}")
    return (" and " if len(steps) == 1 else " or in turn ").join(told)
