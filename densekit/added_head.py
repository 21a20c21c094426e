"""A head on a model that has learned: the config of a run that trains the one and lets the other rest."""

from __future__ import annotations

from collections.abc import Sequence
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
        DensekitError: not a checkpoint, not a config, or heads of one name.
    """
    model, learned = build.from_checkpoint(checkpoint)
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
    return override(parse({**tree, "model": made}, f"{source} on {checkpoint}"), overrides)
