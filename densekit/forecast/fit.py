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
from densekit.forecast.loading import look_at
from densekit.forecast.memory import study
from densekit.forecast.remedies import least_accumulate
from densekit.forecast.room import room_on
from densekit.forecast.words import GIB
from densekit.model import DenseModel
from densekit.precision import Precision
from densekit.types import Dataset

SPARED = 0.9
"""Part of the memory that is planned with: a forecast may be off by a tenth."""


def fitted_plan(
    config: Config, model: DenseModel, train_sets: Sequence[Dataset], world: World, precision: Precision, out: Path
) -> tuple[Config, Plan, list[str]]:
    """The config with micro-batches that fit, its timetable, and a line on what was chosen.

    A config that does not ask for it stays as it is. A run that goes on keeps what was chosen when it began.

    Args:
        config: settled, of the run.
        model: as it was built.
        train_sets: of the config, with the training transforms.
        world: ranks; the first one chooses.
        precision: of the forward pass.
        out: run folder.

    Raises:
        DensekitError: not even one image of each rank fits, or several data sets.
    """
    if not config.train.fit_memory:
        return config, build.plan(config, train_sets, model), []
    if len(train_sets) > 1:
        raise DensekitError(
            f"train.batch_size=auto is for one data set, and this config has {', '.join(config.taught)}; give a number "
            "and train.accumulate"
        )
    if holds_run(out):
        parts: int | str = load(out / "config.yaml").train.accumulate
    else:
        parts = gather(_chosen(config, model, train_sets[0], world, precision) if world.is_first else "")[0]
    if isinstance(parts, str):
        raise DensekitError(parts)
    config = override(config, [f"train.accumulate={parts}"])
    images = config.train.batch_size // parts
    line = f"train.batch_size: {config.train.batch_size} images a step, in {parts} parts of {images} each"
    return config, build.plan(config, train_sets, model), [line]


def _chosen(config: Config, model: DenseModel, train_set: Dataset, world: World, precision: Precision) -> int | str:
    """The fewest parts, or why there are none: a message for all ranks."""
    room = room_on(world.device)
    if room is None:
        return "train.batch_size=auto: this system does not tell its free memory; give train.accumulate"
    known = study(config, model, look_at(train_set), world, precision)
    found = least_accumulate(known, config, round(SPARED * room))
    if found is None:
        return (
            f"train.batch_size=auto: not even one image fits into {SPARED * room / GIB:.1f} GiB; set "
            "train.checkpoint_backbone=true, make images smaller in data.train_transforms, or take a smaller model"
        )
    return found[0]
