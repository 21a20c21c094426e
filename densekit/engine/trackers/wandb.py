"""Weights & Biases. Without an account: ``WANDB_MODE=offline``, and ``wandb sync`` later or never."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from densekit.engine.trackers.tracker import package
from densekit.errors import DensekitError


class Wandb:
    """A run there; its files lie in ``wandb/`` of the run folder."""

    def __init__(self, started: Any) -> None:
        self._started = started
        self.run: str = started.id
        started.define_metric("step")
        started.define_metric("*", step_metric="step")  # its own count would refuse steps that are done again

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Add numbers at a step."""
        self._started.log({"step": step, **numbers})

    def close(self) -> None:
        """Say that the run is over."""
        self._started.finish()


def follow(folder: Path, run: str | None, config: dict[str, Any]) -> Wandb:
    """Begin, or go on with ``run``; the project is ``WANDB_PROJECT``, else ``densekit``."""
    wandb = package("wandb")
    try:
        started = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "densekit"),
            name=folder.resolve().name,
            dir=str(folder),
            id=run,
            resume="allow",
            config=config,
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )
    except wandb.errors.Error as error:
        raise DensekitError(
            f"wandb: {' '.join(str(error).split())}; run wandb login, or set WANDB_MODE=offline"
        ) from None
    return Wandb(started)
