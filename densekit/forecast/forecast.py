"""What a run will take, put together: memory, seconds a step, hours, disk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from densekit import build, machine
from densekit.config import Config
from densekit.engine.distributed import World
from densekit.engine.plan import Plan
from densekit.forecast.disk import Sizes, sizes_of
from densekit.forecast.loading import look_at, share_of_largest
from densekit.forecast.memory import Study, study
from densekit.forecast.remedies import remedies
from densekit.forecast.replay import seconds_of
from densekit.forecast.trace import Trace
from densekit.forecast.words import GIB, in_words
from densekit.model import DenseModel
from densekit.precision import Precision
from densekit.types import Dataset

A_WORKER = 150 * 2**20
"""Bytes of a loader worker beside its batches: pages of the main process that it comes to write to."""

AHEAD = 2
"""Batches that each worker reads ahead."""


@dataclasses.dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take.

    Attributes:
        size: (height, width) of a batch with the largest images that were seen.
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

    size: tuple[int, int]
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
    train_set: Dataset,
    val_set: Dataset | None,
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
        train_set: with the training transforms.
        val_set: what is evaluated.
        world: ranks, and the device.
        precision: of the forward pass.
        room: bytes that there are on the device; None: not known.
        here: whether the device is; else there are no times.

    Raises:
        DensekitError: images that can't be read, or a batch that the ranks can't share.
    """
    timetable = build.plan(config, [train_set], model)
    look = look_at(train_set)
    known = study(config, model, look, world, precision, elsewhere=not here)
    traced = known.trace(config)
    memory = known.at_peak(traced)
    images = known.images(config)
    compute = _compute(known, config, traced) if here else None
    step = None if compute is None else _with_images(config, compute, look.seconds, world)
    evaluations = 0 if val_set is None else math.ceil(timetable.steps / timetable.evaluate_every)
    hours = None
    if step is not None and compute is not None:
        each = 0.0 if val_set is None else _evaluation(config, compute, look.seconds, len(val_set), world)
        hours = (timetable.steps * step + evaluations * each) / 3600
    workers, batch = build.workers(config, world), known.batch(config).images
    process = memory if not known.on_gpu else known.process + known.held
    return Forecast(
        size=(batch.shape[2], batch.shape[3]),
        memory=memory,
        room=room,
        host=process + workers * (A_WORKER + AHEAD * images * batch[0].numel() * batch.element_size()),
        compute=compute,
        step=step,
        hours=hours,
        evaluations=evaluations,
        sizes=sizes_of(model, config.train),
        remedies=remedies(known, config, room, memory) if room is not None and memory > room else [],
    )


def _compute(known: Study, config: Config, traced: Trace) -> float:
    """Seconds of a step on images that are there: of an average batch, where the traced one has the largest."""
    parts = config.train.accumulate / min(2, config.train.accumulate)
    share = share_of_largest(config, known.look, known.images(config))
    return seconds_of(traced.operations, known.world.device).seconds * parts * share


def _with_images(config: Config, compute: float, an_image: float, world: World) -> float:
    """Seconds of a step whose images are read meanwhile, where there are workers, on the cores that there are."""
    workers, images = build.workers(config, world), an_image * config.train.batch_size / world.size
    if not workers:
        return compute + images
    threads = torch.get_num_threads() if world.device.type == "cpu" else 1
    cores = machine.cores() / world.local
    return max(compute, images / workers, (compute * threads + images) / cores)


def _evaluation(config: Config, compute: float, an_image: float, images: int, world: World) -> float:
    """Seconds of one evaluation, whose forward pass is about a third of a step."""
    each = compute / config.train.batch_size / 3 + an_image / max(1, build.workers(config, world)) / world.size
    return each * images


def told(found: Forecast, config: Config, timetable: Plan, precision: Precision, device: str) -> list[str]:
    """A forecast in words, a line each."""
    sizes, per_step = found.sizes, config.train.batch_size // config.train.accumulate
    parts = f", {config.train.accumulate} times a step" if config.train.accumulate > 1 else ""
    where = "of this process" if device.startswith("CPU") else "on the device"
    there = "" if found.room is None else f", {found.room / GIB:.1f} GiB are there"
    lines = [
        f"batch    {per_step} images of up to {found.size[0]} x {found.size[1]} pixels (height x width){parts}, "
        f"{precision}, {device}",
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
