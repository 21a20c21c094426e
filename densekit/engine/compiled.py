"""Forward and losses compiled: when that pays, and the way back where it fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from densekit.errors import DensekitError
from densekit.memory import is_out_of_memory
from densekit.model import DenseModel
from densekit.types import Batch, Task

LEAST_STEPS = 2_500
"""Of a run that ``auto`` compiles, for each shape of its batches.

Faster R-CNN on one H200: the first step of a shape takes 40 s, each later one 35 ms less.
"""

MOST_SHAPES = 4
"""Of batches. Torch keeps eight graphs of a function, of which stages of a backbone that begin to learn take some."""


def compiles(
    asked: Literal["auto", "captured"] | bool,
    device: torch.device,
    *,
    steps: int,
    shapes: int,
    micro_batches: int,
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
        shapes: how many batches have; 0: any.
        micro_batches: of a step.
        tasks: of the heads.
        same_bits: the run must give the same bits each time.

    Raises:
        DensekitError: ``captured`` where a step can't be.
    """
    if asked == "captured":
        _check_captured(device, shapes, micro_batches)
        return True, "compiled and captured"
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


def _check_captured(device: torch.device, shapes: int, micro_batches: int) -> None:
    """Refuse steps that would be recorded again and again, or whose gradients the next forward would write over."""
    several = f"{micro_batches} micro-batches a step are over 1; set train.accumulate=1"
    for holds, rule in (
        (device.type == "cuda", f"a CUDA GPU replays its steps, and this run is on {device}; set it to auto"),
        (shapes > 0, "a step is recorded for each size of the images; set data.fixed_size, or this to true"),
        (shapes <= MOST_SHAPES, f"{shapes} sizes of images are over {MOST_SHAPES}; give fewer in data.fixed_size"),
        (micro_batches == 1, f"{several} and, of several data sets, train.mixing=turn, or this to true"),
    ):
        if not holds:
            raise DensekitError(f"train.compile=captured: {rule}")


class Compiled(nn.Module):
    """A model's losses through ``torch.compile``; where that fails, plain from there on, with one warning of why.

    The number of objects, which changes from batch to batch, stays open in the compiled graph. Other sizes of the
    images, or another number of them, are compiled anew.

    Args:
        model: gives losses for a batch.
        few_sizes: each size of the images has a graph of its own; else torch leaves sizes open from the second one on.
        captured: replay forward and backward as CUDA graphs. Gradients lie in these graphs' memory until the next step.
        backend: of ``torch.compile``.
    """

    def __init__(
        self,
        model: DenseModel,
        *,
        few_sizes: bool = False,
        captured: bool = False,
        backend: str | Callable[..., Any] = "inductor",
    ) -> None:
        super().__init__()
        self.model, self.captured = model, captured
        self.failed = False
        dynamic, mode = False if few_sizes else None, "reduce-overhead" if captured else None
        self._compiled = torch.compile(model.forward, backend=backend, dynamic=dynamic, mode=mode)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of every head."""
        if not self.failed:
            _leave_objects_open(batch)
            try:
                return self._replayed(batch) if self.captured else self._compiled(batch)
            except RuntimeError as error:
                if not self.give_way(error):
                    raise
        return cast("dict[str, Tensor]", self.model(batch))

    def _replayed(self, batch: Batch) -> dict[str, Tensor]:
        boxes = batch.targets.boxes if batch.targets is not None else None
        if boxes is not None and boxes.masks is not None:
            raise DensekitError(
                "train.compile=captured: instance masks have another number of pixels in each batch, which would be "
                "recorded anew each time; set it to true"
            )
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        # The next step writes where these lie.
        return {name: loss.clone() for name, loss in self._compiled(batch).items()}

    def give_way(self, error: RuntimeError) -> bool:
        """Run plain from here on if the compiler failed, which it may do in a backward pass too; whether it did.

        What stops a recording has no type of its own: if it is the model's fault, it comes up again in the plain step.
        """
        recording = self.captured and not is_out_of_memory(error)
        if self.failed or not (recording or isinstance(error, torch._dynamo.exc.TorchDynamoException)):
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
