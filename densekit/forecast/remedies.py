"""Where a training step does not fit into the memory that there is: what would."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from densekit.config import Config, override
from densekit.errors import DensekitError
from densekit.forecast.memory import Study
from densekit.forecast.words import GIB
from densekit.learning_sets import mixing_of
from densekit.precision import why_not


def least_accumulate(study: Study, config: Config, room: int, memory: int | None = None) -> tuple[int, int] | None:
    """The fewest micro-batches of a step with which it fits, and its memory then; the batch stays as large.

    Args:
        study: of the model.
        config: whose ``train.accumulate`` is the least that is looked at.
        room: bytes that there are.
        memory: bytes that the config as it is takes, where that is known.
    """
    memory = study.memory(config) if memory is None else memory
    now = config.train.accumulate
    if memory <= room:
        return now, memory
    fixed = min(study.fixed(config), memory)
    likely = 1.1 * room  # the estimate is a straight line
    for smaller in _in_more_parts(study, config):
        parts = smaller.train.accumulate
        if fixed + (memory - fixed) * now / parts <= likely and (found := study.memory(smaller)) <= room:
            return parts, found
    return None


def remedies(study: Study, config: Config, room: int, memory: int) -> list[str]:
    """Lines on what would fit, those first that change the least of what is learned.

    Args:
        study: of the model.
        config: that takes too much.
        room: bytes that there are.
        memory: bytes that it takes.
    """
    lines = []
    saving = "train.checkpoint_backbone=true"
    checkpointed = None if config.train.checkpoint_backbone else _checkpointed(study, config)
    if checkpointed is not None and checkpointed[1] <= room:
        lines.append(f"{saving}: {checkpointed[1] / GIB:.1f} GiB, the same bits, the backbone a third slower")
    if (parts := least_accumulate(study, config, room, memory)) is not None:
        lines.append(f"train.accumulate={parts[0]}: {parts[1] / GIB:.1f} GiB, the same batch in {parts[0]} parts")
    elif checkpointed is not None and (parts := least_accumulate(study, *checkpointed[:1], room)) is not None:
        lines.append(f"{saving} train.accumulate={parts[0]}: {parts[1] / GIB:.1f} GiB")
    if study.precision == "fp32" and why_not("bf16", study.world.device) is None:
        lines.append("train.precision=bf16: about two thirds of it")
    fixed = study.fixed(config)
    if fixed < room < memory:
        lines.append(
            f"images of {math.sqrt((room - fixed) / (memory - fixed)):.0%} of their sides, in data.train_transforms"
        )
    return lines or [
        f"a smaller model: weights, gradients and what the optimiser keeps take {fixed / GIB:.1f} GiB alone"
    ]


def _checkpointed(study: Study, config: Config) -> tuple[Config, int] | None:
    saving = override(config, ["train.checkpoint_backbone=true"])
    try:
        return saving, study.memory(saving)
    except DensekitError:  # a backbone without blocks
        return None


def _in_more_parts(study: Study, config: Config) -> Iterator[Config]:
    """The config with more micro-batches a step, as long as each has an image of every data set for every rank."""
    batch = config.train.batch_size
    for parts in range(config.train.accumulate + 1, batch + 1):
        if batch % parts == 0:
            smaller = override(config, [f"train.accumulate={parts}"])
            with contextlib.suppress(DensekitError):
                mixing_of(smaller, [one.data for one in study.seen], study.world)
                yield smaller
