"""Forward and losses compiled: when that pays, and the way back where it fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from densekit.model import DenseModel
from densekit.types import Batch, Task

LEAST_STEPS = 2_500
"""Of a run that ``auto`` compiles. Faster R-CNN on one H200: the first step takes 40 s, each later one 35 ms less."""


def compiles(
    asked: Literal["auto"] | bool,
    device: torch.device,
    *,
    steps: int,
    one_shape: bool,
    tasks: Collection[Task],
    same_bits: bool,
) -> tuple[bool, str]:
    """Whether a run compiles, and how its summary says so.

    ``auto`` does so where it was measured to pay: detectors on a GPU, in runs that are long enough to earn the first
    step, with batches of one shape, as each other shape is compiled anew.

    Args:
        asked: what the config says.
        device: of the run.
        steps: of the whole run, so that a run that goes on decides as it began.
        one_shape: all batches are padded to the same size.
        tasks: of the heads.
        same_bits: the run must give the same bits each time.
    """
    if asked != "auto":
        return asked, "compiled" if asked else "not compiled"
    if device.type != "cuda":
        return False, "not compiled"
    for holds, why in (
        (steps >= LEAST_STEPS, f"under {LEAST_STEPS:,} steps"),
        (one_shape, "batches of several shapes, see data.fixed_size"),
        (set(tasks) == {"detection"}, "measured for detectors alone"),
        (not same_bits, "train.deterministic"),
    ):
        if not holds:
            return False, f"not compiled (auto: {why})"
    return True, f"compiled (auto: {LEAST_STEPS:,} steps or more)"


class Compiled(nn.Module):
    """A model's losses through ``torch.compile``; where that fails, plain from there on, with one warning of why.

    The number of objects, which changes from batch to batch, stays open in the compiled graph. Other sizes of the
    images, or another number of them, are compiled anew.

    Args:
        model: gives losses for a batch.
        backend: of ``torch.compile``.
    """

    def __init__(self, model: DenseModel, backend: str | Callable[..., Any] = "inductor") -> None:
        super().__init__()
        self.model = model
        self.failed = False
        self._compiled = torch.compile(model.forward, backend=backend)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of every head."""
        if not self.failed:
            _leave_objects_open(batch)
            try:
                return self._compiled(batch)
            except torch._dynamo.exc.TorchDynamoException as error:
                self.give_way(error)
        return cast("dict[str, Tensor]", self.model(batch))

    def give_way(self, error: BaseException) -> bool:
        """Run plain from here on if the compiler failed, which it may do in a backward pass too; whether it did."""
        if self.failed or not isinstance(error, torch._dynamo.exc.TorchDynamoException):
            return False
        self.failed = True
        why = " ".join(str(error).split())[:300]
        warnings.warn(f"train.compile: the step runs without compilation: {why}", RuntimeWarning, stacklevel=2)
        return True


def _leave_objects_open(batch: Batch) -> None:
    boxes = batch.targets.boxes if batch.targets is not None else None
    if boxes is None:
        return
    padded = [boxes.boxes, boxes.labels, boxes.crowd, boxes.valid]
    padded += [] if boxes.masks is None else [boxes.masks.starts, boxes.masks.cuts]
    for tensor in padded:
        torch._dynamo.maybe_mark_dynamic(tensor, 1)
    if boxes.masks is not None:
        torch._dynamo.maybe_mark_dynamic(boxes.masks.pixels, 0)
