"""``train.batch_size: auto``: the recipe's batch, in as few parts as fit into the memory that there is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densekit import build
from densekit.config import Config, load, override
from densekit.engine.distributed import World, gather
from densekit.engine.plan import Plan
from densekit.engine.run_folder import holds_run
from densekit.errors import DensekitError
from densekit.forecast.memory import study
from densekit.forecast.remedies import least_accumulate
from densekit.forecast.room import room_on
from densekit.forecast.steps import see
from densekit.forecast.words import GIB
from densekit.learning_sets import LearningSet, mixing_of
from densekit.model import DenseModel
from densekit.precision import Precision

SPARED = 0.9
"""Part of the memory that is planned with: a forecast may be off by a tenth."""


def fitted_plan(
    config: Config, model: DenseModel, sets: Sequence[LearningSet], world: World, precision: Precision, out: Path
) -> tuple[Config, Plan, list[str]]:
    """The config with micro-batches that fit, its timetable, and a line on what was chosen.

    A config that does not ask for it stays as it is. A run that goes on keeps what was chosen when it began.

    Args:
        config: settled, of the run.
        model: as it was built.
        sets: its data sets.
        world: ranks; the first one chooses.
        precision: of the forward pass.
        out: run folder.

    Raises:
        DensekitError: not even one image of each rank and data set fits, or they can't share the batch.
    """
    train_sets = [one.train for one in sets]
    if not config.train.fit_memory:
        return config, build.plan(config, train_sets, model), []
    if holds_run(out):
        parts: int | str = load(out / "config.yaml").train.accumulate
    else:
        mixing_of(config, sets, world)  # on every rank, as no other may wait for one that fails
        parts = gather(_chosen(config, model, sets, world, precision) if world.is_first else "")[0]
    if isinstance(parts, str):
        raise DensekitError(parts)
    config = override(config, [f"train.accumulate={parts}"])
    images = config.train.batch_size // parts
    line = f"train.batch_size: {config.train.batch_size} images a step, in {parts} parts of {images} each"
    return config, build.plan(config, train_sets, model), [line]


def _chosen(
    config: Config, model: DenseModel, sets: Sequence[LearningSet], world: World, precision: Precision
) -> int | str:
    """The fewest parts, or why there are none: a message for all ranks."""
    room = room_on(world.device)
    if room is None:
        return "train.batch_size=auto: this system does not tell its free memory; give train.accumulate"
    known = study(config, model, see(sets), world, precision)
    found = least_accumulate(known, config, round(SPARED * room))
    if found is None:
        least = "one image of each data set" if len(sets) > 1 and config.train.mixing != "turn" else "one image"
        return (
            f"train.batch_size=auto: not even {least} fits into {SPARED * room / GIB:.1f} GiB; set "
            "train.checkpoint_backbone=true, make images smaller in data.train_transforms, or take a smaller model"
        )
    return found[0]
