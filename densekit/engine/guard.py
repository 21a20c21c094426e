"""Two ways in which a run stops before its end: a loss that is not finite, and a person's signal."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from densekit.engine import checkpoint
from densekit.engine.distributed import World, any_rank
from densekit.engine.run_folder import RunFolder, RunState
from densekit.engine.step import StepResult, TrainStep, describe_batch
from densekit.errors import DensekitError
from densekit.types import Batch, BoxTargets, Targets


class FiniteGuard:
    """Notices steps whose loss or gradient was not finite; their update never reached the weights.

    On the CPU a step is looked at at once. On a GPU the answer is read one step later, so that the host never waits
    for the step that it has just launched; no update is applied in between.

    Args:
        limit: how many such steps are skipped before the run stops.
        folder: where the bundle goes.
        step: gives the model that the bundle holds.
        lag: steps between a step and the look at it; None takes 1 on a GPU and 0 on the CPU.
    """

    def __init__(self, limit: int, folder: RunFolder, step: TrainStep, lag: int | None = None) -> None:
        self.limit, self.folder, self.step = limit, folder, step
        self.lag = lag if lag is not None else int(step.world.device.type == "cuda")
        self._waiting: list[StepResult] = []

    def check(self, result: StepResult, state: RunState) -> None:
        """Look at the oldest step that is due.

        Raises:
            DensekitError: one bad step too many; names the bundle and the command that replays it.
        """
        self._waiting.append(result)
        if len(self._waiting) > self.lag:
            self._look(self._waiting.pop(0), state)

    def drain(self, state: RunState) -> None:
        """Look at every step that is still unseen: before a checkpoint is written."""
        while self._waiting:
            self._look(self._waiting.pop(0), state)

    def _look(self, result: StepResult, state: RunState) -> None:
        if not bool(result.bad):
            return
        # The steps behind the bad one were skipped with it.
        state.skipped_steps += 1 + len(self._waiting)
        self._waiting.clear()
        self.step.forgive()
        if state.skipped_steps <= self.limit:
            names = ", ".join(str(i) for batch in result.batches for i in batch.ids)
            print(f"step {result.step}: the loss was not finite, step skipped (images {names})", file=sys.stderr)
            return
        path = write_bundle(self.folder, self.step, result)
        values = ", ".join(f"{name} {float(value):g}" for name, value in result.losses.items())
        raise DensekitError(
            f"step {result.step}: the loss or its gradient is not finite ({values}, gradient norm "
            f"{float(result.norm):g}) on {describe_batch(result.batches[0])}; the weights are as before that step. "
            f"See where it arises with tools/replay.py {path}; a lower train.optimizer.lr, train.clip or "
            f"train.precision=fp32 may help, train.skip_non_finite allows to skip such steps"
        )


def write_bundle(folder: RunFolder, step: TrainStep, result: StepResult) -> Path:
    """Write all that ``tools/replay.py`` needs to run a step again; one file a rank."""
    path = folder.path / f"bundle_step{result.step}_rank{step.world.rank}.pt"
    classes = step.model.classes
    checkpoint.save(
        path,
        {
            "config": folder.config,
            "classes": {"names": list(classes.names), "ids": list(classes.ids)},
            "model": step.model.state_dict(),
            "bundle": {
                "step": result.step,
                "seed": step.seed,
                "rank": step.world.rank,
                "precision": step.precision,
                "batches": [pack_batch(batch) for batch in result.batches],
            },
        },
    )
    return path


def pack_batch(batch: Batch) -> dict[str, Any]:
    """A batch as plain types that load without running code."""
    return dataclasses.asdict(batch.to(torch.device("cpu"), non_blocking=False))


def unpack_batch(packed: dict[str, Any]) -> Batch:
    """The batch that ``pack_batch`` packed.

    Raises:
        DensekitError: it is not of that form.
    """
    try:
        targets = packed["targets"]
        if targets is not None:
            boxes = BoxTargets(**targets["boxes"]) if targets["boxes"] is not None else None
            targets = Targets(**{**targets, "boxes": boxes})
        return Batch(**{**packed, "targets": targets})
    except (KeyError, TypeError) as error:
        raise DensekitError(f"the bundle's batch is not of this densekit's form ({error}); train again") from None


class Stop:
    """Turns the first Ctrl-C or SIGTERM into a request that the loop honours after its step; a second stops at once.

    Args:
        world: with several ranks, all stop when one is asked to.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            os._exit(128 + number)
        self._asked = True
        if self.world.is_first:
            print("stopping after this step; a second signal stops at once", file=sys.stderr, flush=True)

    def asked(self) -> bool:
        """Whether any rank was asked to stop."""
        return any_rank(self._asked)
