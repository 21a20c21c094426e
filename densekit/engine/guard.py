"""Two ways in which a run stops before its end: a loss that is not finite, and a person's signal."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from densekit.console import end_children
from densekit.engine import checkpoint
from densekit.engine.distributed import World, any_rank
from densekit.engine.run_folder import RunFolder, RunState
from densekit.engine.step import StepResult, TrainStep
from densekit.errors import DensekitError
from densekit.memory import describe_batch
from densekit.types import Batch, BoxTargets, InstanceMasks, Targets


class FiniteGuard:
    """Notices steps whose loss or gradient was not finite; their update never reached the weights.

    On the CPU a step is looked at at once. On a GPU the answer is read one step later, so that the host never waits
    for the step that it has just launched. The step itself lets no update through behind one bad step too many
    (``TrainStep.skip_limit``), so the weights are still those before it when it is written down.

    Args:
        folder: where the bundle goes.
        step: gives the model that the bundle holds, and how many bad steps may be skipped.
        names: the image files of a batch, for the message and the bundle; None: the ids.
        lag: steps between a step and the look at it; None takes 1 on a GPU and 0 on the CPU.
    """

    def __init__(
        self,
        folder: RunFolder,
        step: TrainStep,
        names: Callable[[Batch], list[str]] | None = None,
        lag: int | None = None,
    ) -> None:
        self.folder, self.step, self.names = folder, step, names or _as_text
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
        state.skipped_steps += 1
        files = [self.names(batch) for batch in result.batches]
        if state.skipped_steps <= self.step.skip_limit:
            shown = ", ".join(name for batch in files for name in batch)
            print(f"step {result.step}: the loss was not finite, step skipped (images {shown})", file=sys.stderr)
            return
        path = write_bundle(self.folder, self.step, result, files)
        values = ", ".join(f"{name} {float(value):g}" for name, value in result.losses.items())
        raise DensekitError(
            f"step {result.step}: the loss or its gradient is not finite ({values}, gradient norm "
            f"{float(result.norm):g}) on {describe_batch(result.batches[0])} ({files[0][0]} ...); the weights are as "
            f"before that step. See where it arises with tools/replay.py {path}; a lower train.optimizer.lr, "
            f"train.clip or train.precision=fp32 may help, train.skip_non_finite allows to skip such steps"
        )


def _as_text(batch: Batch) -> list[str]:
    return [str(i) for i in batch.ids]


def write_bundle(folder: RunFolder, step: TrainStep, result: StepResult, files: list[list[str]]) -> Path:
    """Write all that ``tools/replay.py`` needs to run a step again; one file a rank.

    Args:
        folder: of the run.
        step: the weights as they were before the bad update.
        result: of the bad step.
        files: names of the images of each micro-batch.
    """
    path = folder.path / f"bundle_step{result.step}_rank{step.world.rank}.pt"
    checkpoint.save(
        path,
        {
            "config": folder.config,
            **checkpoint.with_classes(step.model.classes_by_head),
            "model": step.model.state_dict(),
            "bundle": {
                "step": result.step,
                "seed": step.seed,
                "rank": step.world.rank,
                "precision": step.precision,
                "loss_weights": {head: float(w) for head, w in (result.weights or step.weights.current()).items()},
                "files": files,
                "resting": [name for name, module in step.model.named_modules() if not module.training],
                "learning": [name for name, parameter in step.model.named_parameters() if parameter.requires_grad],
                "batches": [pack_batch(batch) for batch in result.batches],
            },
        },
    )
    return path


def pack_batch(batch: Batch) -> dict[str, Any]:
    """A batch as plain types that load without running code."""
    here = batch.to(torch.device("cpu"), non_blocking=False)
    return dataclasses.asdict(dataclasses.replace(here, host=()))  # numbers of sizes that are here already


def unpack_batch(packed: dict[str, Any]) -> Batch:
    """The batch that ``pack_batch`` packed.

    Raises:
        DensekitError: it is not of that form.
    """
    try:
        targets = packed["targets"]
        if targets is not None:
            boxes = None if targets["boxes"] is None else _unpack_boxes(targets["boxes"])
            targets = Targets(**{**targets, "boxes": boxes})
        return Batch(**{**packed, "targets": targets})
    except (KeyError, TypeError) as error:
        raise DensekitError(f"the bundle's batch is not of this densekit's form ({error}); train again") from None


def _unpack_boxes(packed: dict[str, Any]) -> BoxTargets:
    masks = packed.get("masks")  # bundles of before there were masks have no such key
    return BoxTargets(**{**packed, "masks": None if masks is None else InstanceMasks(**masks)})


class Stop:
    """Turns the first Ctrl-C or SIGTERM into a request that the loop honours after its step; a second stops at once.

    An evaluation is left at its next batch: the run goes on with that evaluation, from its beginning.

    Args:
        world: with several ranks, all stop when one is asked to.
        patience: seconds within which a second signal is taken for the first one; None: 2 under ``torchrun``, which
            hands a Ctrl-C that every process has received anyway on to its ranks, else 0.
    """

    def __init__(self, world: World, patience: float | None = None) -> None:
        self.world = world
        self.patience = patience if patience is not None else 2.0 * (world.size > 1)
        self._asked_at: float | None = None
        self._agreed = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            if self.world.is_first:
                # Not print: the signal may have come in the middle of one.
                os.write(2, b"stopping after this step; a second signal stops at once\n")
        elif time.monotonic() - self._asked_at >= self.patience:
            end_children()
            os._exit(128 + number)

    def asked(self) -> bool:
        """Whether any rank was asked to stop; all ranks must call this together."""
        self._agreed = any_rank(self.here())
        return self._agreed

    def here(self) -> bool:
        """Whether this rank was asked to stop, or has learned by ``asked`` that another one was."""
        return self._agreed or self._asked_at is not None
