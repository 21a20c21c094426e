"""When a run evaluates, saves and stops, and which evaluation was the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densekit.engine.run_folder import RunState
from densekit.errors import DensekitError, nearest
from densekit.metrics import MAIN_METRIC
from densekit.types import Task

_COCO = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_small", "AR_medium", "AR_large", "AR1", "AR10")
METRICS: dict[Task, tuple[str, ...]] = {
    "detection": _COCO,
    "segmentation": ("mIoU", "dice", "mean_accuracy", "pixel_accuracy", "boundary_mIoU", "mIoU_per_image"),
    "classification": ("top1", "top5", "mean_accuracy"),
}
"""The numbers that may choose the best checkpoint, beside ``loss``."""


def choose_metric(task: Task, asked: str | None, max_detections: int = 100, kinds: Sequence[str] = ()) -> str:
    """The number that chooses the best checkpoint, checked before hours of training depend on it.

    Args:
        task: of the first head.
        asked: what the config names.
        max_detections: of COCO's numbers.
        kinds: what the names of other numbers of objects begin with: ``mask_`` where the head finds masks too.

    Raises:
        DensekitError: the task has no such number.
    """
    known: tuple[str, ...] = (*METRICS[task], *([f"AR{max_detections}"] if task == "detection" else []))
    known = (*known, *(f"{kind}{name}" for kind in kinds for name in known), "loss")
    if asked is not None and asked not in known:
        raise DensekitError(f"evaluation.metric: {task} has no number {asked!r}; {nearest(asked, known)}")
    return asked or MAIN_METRIC[task]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The timetable of a run, in updates of the weights.

    Attributes:
        steps: length of the run.
        steps_per_epoch: updates in which the training set is seen once.
        evaluate_every: updates between evaluations.
        save_every: updates between checkpoints beside those before and after evaluations; None: those alone.
        metric: number that chooses the best checkpoint; ``loss`` is better when lower, all others when higher.
        patience: evaluations without a better one before the run stops; None never stops. Evaluations in which the
            number is not defined do not count.
    """

    steps: int
    steps_per_epoch: int
    evaluate_every: int
    metric: str
    save_every: int | None = None
    patience: int | None = None

    def moment(self, when: float, key: str) -> int:
        """The update at which a moment of the run lies: a fraction of it, or epochs from 1 on.

        Args:
            when: above 0.
            key: of the config, for messages.

        Raises:
            DensekitError: it does not lie before the end of the run.
        """
        step = max(1, round(when * (self.steps if when < 1 else self.steps_per_epoch)))
        if step >= self.steps:
            raise DensekitError(
                f"{key} {when:g} lies at step {step}, and the run ends after {self.steps} steps "
                f"({self.steps / self.steps_per_epoch:.1f} epochs); give an epoch before, or a fraction below 1"
            )
        return step

    def evaluates(self, step: int) -> bool:
        """Whether to evaluate after ``step`` updates."""
        return step % self.evaluate_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        """Whether to write ``last.pt`` after ``step`` updates."""
        return self.evaluates(step) or (self.save_every is not None and step % self.save_every == 0)

    def judge(self, numbers: dict[str, Any], state: RunState) -> bool:
        """Take an evaluation into the state, and end the run when patience is out.

        Returns:
            Whether ``best.pt`` is to hold these weights: they are the best so far, or, as long as the number was never
            defined, the newest.

        Raises:
            DensekitError: the metric to choose by is not among the numbers.
        """
        value = self.value(numbers)
        sign = -1.0 if self.metric == "loss" else 1.0
        if value is None:
            chosen = state.best is None
            state.best_step = state.step if chosen else state.best_step
        else:
            chosen = state.best is None or sign * value > sign * state.best
            state.without_better = 0 if chosen else state.without_better + 1
            if chosen:
                state.best, state.best_step = value, state.step
        state.finished |= self.is_over(state)
        return chosen

    def is_over(self, state: RunState) -> bool:
        """Whether the last step was done and needs no evaluation any more, or patience is out."""
        out_of_patience = self.patience is not None and state.without_better >= self.patience
        return not state.evaluation_due and (state.step >= self.steps or out_of_patience)

    def value(self, numbers: dict[str, Any]) -> float | None:
        """The number to choose by; None where it is not defined (nothing to measure it on, or not finite)."""
        if self.metric not in numbers:
            known = [k for k, v in numbers.items() if isinstance(v, int | float | None)]
            raise DensekitError(
                f"evaluation.metric: the evaluation gives no number {self.metric!r}; {nearest(self.metric, known)}"
            )
        value = numbers[self.metric]
        return float(value) if value is not None and math.isfinite(value) else None

    def verdict(self, numbers: dict[str, Any], state: RunState, chosen: bool) -> str:
        """One line on an evaluation."""
        value = self.value(numbers)
        best = "" if state.best is None else f"best {state.best:.4f} at step {state.best_step}"
        if value is None:
            words = f"not defined; {best or 'best.pt takes these weights until it is'}"
        else:
            words = "the best so far" if chosen else best
        shown = "-" if value is None else f"{value:.4f}"
        return f"step {state.step} (epoch {state.step / self.steps_per_epoch:.1f}): {self.metric} {shown} ({words})"

    def farewell(self, state: RunState, out: Path) -> str:
        """The last line of a run."""
        best = f"best {self.metric} {state.best:.4f} at step {state.best_step}; " if state.best is not None else ""
        if state.best is None and state.best_step:
            best = f"{self.metric} was not defined in any evaluation: best.pt holds step {state.best_step}'s weights; "
        names = "".join(f"\n  skipped {count} times: {line}" for line, count in state.skipped_images.items())
        skipped = f"{len(state.skipped_images)} unreadable images were skipped (listed below); " if names else ""
        return (
            f"done: {state.step} steps in {state.seconds / 60:.1f} minutes of training; {best}{skipped}"
            f"measure it with tools/evaluate.py {out / 'best.pt'}, have it told with tools/report.py {out}{names}"
        )
