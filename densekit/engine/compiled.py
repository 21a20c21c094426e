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
"""Of a run that ``auto`` compiles, for each shape of its batches.

Faster R-CNN on one H200: the first step of a shape takes 40 s, each later one 35 ms less.
"""

MOST_SHAPES = 4
"""Of batches. Torch keeps eight graphs of a function, of which stages of a backbone that begin to learn take some."""


def compiles(
    asked: Literal["auto"] | bool,
    device: torch.device,
    *,
    steps: int,
    shapes: int,
    tasks: Collection[Task],
    same_bits: bool,
) -> tuple[bool, str]:
    """Whether a run compiles, and how its summary says so.

    ``auto`` does so where it was measured to pay: detectors on a GPU, in runs that are long enough to earn the first
    steps, with batches of one shape or a few, as each is compiled anew: that many times the least number of steps.

    Args:
        asked: what the config says.
        device: of the run.
        steps: of the whole run, so that a run that goes on decides as it began.
        shapes: how many sizes batches are padded to; 0: any.
        tasks: of the heads.
        same_bits: the run must give the same bits each time.
    """
    if asked != "auto":
        return asked, "compiled" if asked else "not compiled"
    if device.type != "cuda":
        return False, "not compiled"
    least = LEAST_STEPS * max(shapes, 1)
    for holds, why in (
        (steps >= least, f"under {least:,} steps"),
        (shapes > 0, "batches of several shapes, see data.fixed_size"),
        (shapes <= MOST_SHAPES, f"{shapes} shapes of batches, over {MOST_SHAPES}"),
        (set(tasks) == {"detection"}, "measured for detectors alone"),
        (not same_bits, "train.deterministic"),
    ):
        if not holds:
            return False, f"not compiled (auto: {why})"
    return True, f"compiled (auto: {least:,} steps or more)"


class Compiled(nn.Module):
    """A model's losses through ``torch.compile``; where that fails, plain from there on, with one warning of why.

    The number of objects, which changes from batch to batch, stays open in the compiled graph. Other sizes of the
    images, or another number of them, are compiled anew.

    Args:
        model: gives losses for a batch.
        few_sizes: each size of the images has a graph of its own; else torch leaves sizes open from the second one on.
        backend: of ``torch.compile``.
    """

    def __init__(
        self, model: DenseModel, *, few_sizes: bool = False, backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        super().__init__()
        self.model = model
        self.failed = False
        self._compiled = torch.compile(model.forward, backend=backend, dynamic=False if few_sizes else None)

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
