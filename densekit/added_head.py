"""A head on a model that has learned: the config of a run that trains the one and lets the other rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densekit import build
from densekit.backbones.describe import stages_of
from densekit.config import Config, load, override, parse
from densekit.errors import DensekitError


def add_head(checkpoint: Path, source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a run that adds a head to a checkpoint.

    The new head comes first, so that it starts with the weights that it has in a run of its own, and so that its
    numbers choose the best checkpoint. The backbone with its normalisation, and the checkpoint's heads, are frozen.

    Args:
        checkpoint: of the model that has learned.
        source: config of a run that trains the new head, on any backbone: its head, data and training are taken.
        overrides: of the config that is made.

    Raises:
        DensekitError: not a checkpoint, not a config, heads of one name, or statistics of each data set.
    """
    model, learned = build.from_checkpoint(checkpoint)
    if model.statistics is not None:
        raise DensekitError(one_for_all(checkpoint))
    new = load(source)
    for name in new.model.heads:
        if name in learned.model.heads:
            other = "masks" if name != "masks" else "masks2"
            raise DensekitError(
                f"{source}: {checkpoint} has a head {name!r} already; name the new one otherwise, {other!r}"
            )
    tree, old = new.model_dump(mode="json"), learned.model_dump(mode="json")["model"]
    stages = max(stages_of(model.backbone, model.channels).values()) + 1
    made: dict[str, Any] = {
        **old,
        "backbone": {**old["backbone"], "weights": None, "frozen_stages": stages},
        "heads": {**tree["model"]["heads"], **old["heads"]},
        "weights": str(checkpoint),
        "frozen_heads": list(old["heads"]),
    }
    data = together(sets_by_name(new), sets_by_name(build.with_pixels(learned)))
    evaluation = {**tree["evaluation"], "metric": main_number(new)}
    config = parse({**tree, "model": made, "data": data, "evaluation": evaluation}, f"{source} on {checkpoint}")
    return override(config, overrides)


def one_for_all(checkpoint: Path) -> str:
    """Why a head can't come to a backbone that has statistics of each data set."""
    return (
        f"{checkpoint} has batch norm statistics of each of its data sets (train.norm_statistics=each), and those of "
        f"another head's data would be missing; train all heads in one run, on all their data sets"
    )


def sets_by_name(config: Config, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The data sets of a config with the heads that they have labels for; one without a name gets its first head's.

    Args:
        config: of a run.
        names: new ones of its heads.
    """
    data, sets = config.model_dump(mode="json")["data"], {}
    for name in config.sets:
        heads = [(names or {}).get(head, head) for head in config.heads_of(name)]
        sets[name or heads[0]] = {**(data[name] if name else data), "heads": heads}
    return sets


def together(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Data sets of two runs; one of the second whose name is taken gets that of its first head behind it."""
    return {**first, **{f"{name}_{one['heads'][0]}" if name in first else name: one for name, one in second.items()}}


def main_number(config: Config) -> str | None:
    """The number that chooses the best checkpoint, as it is called where there are several heads."""
    metric, heads = config.evaluation.metric, list(config.model.heads)
    return metric if metric in (None, "loss") or len(heads) > 1 else f"{heads[0]}.{metric}"
