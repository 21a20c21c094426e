"""When a run evaluates, saves and stops, and which evaluation was the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
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


GAIN = "gain"
"""The mean of the relative gains over the baselines."""


def choose_metric(
    heads: Mapping[str, tuple[Task, Sequence[str]]],
    asked: str | None,
    max_detections: int = 100,
    baselines: Mapping[str, float] | None = None,
) -> str:
    """The number that chooses the best checkpoint, checked before hours of training depend on it.

    Args:
        heads: by what the names of a head's numbers begin with: its task, and what the names of other numbers of
            objects begin with, such as ``mask_`` where it finds masks too.
        asked: what the config names; None: of baselines the gain over them, else the main number of the first head.
        max_detections: of COCO's numbers.
        baselines: numbers that gains are measured from.

    Raises:
        DensekitError: no head has such a number.
    """
    known = [f"{prefix}{name}" for prefix, own in heads.items() for name in _numbers(*own, max_detections)]
    known = [*known, "loss", *([GAIN] if baselines else [])]
    tasks = " and ".join(dict.fromkeys(task for task, _ in heads.values()))
    named = [("evaluation.metric", asked)] if asked is not None else []
    for place, name in [*named, *(("evaluation.baselines", name) for name in baselines or ())]:
        if name not in known:
            raise DensekitError(f"{place}: {tasks} has no number {name!r}; {nearest(name, known)}")
    prefix, (task, _) = next(iter(heads.items()))
    return asked or (GAIN if baselines else f"{prefix}{MAIN_METRIC[task]}")


def _numbers(task: Task, kinds: Sequence[str], max_detections: int) -> list[str]:
    known = [*METRICS[task], *([f"AR{max_detections}"] if task == "detection" else [])]
    return [*known, *(f"{kind}{name}" for kind in kinds for name in known)]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The timetable of a run, in updates of the weights.

    Attributes:
        steps: length of the run.
        steps_per_epoch: updates in which the training set is seen once.
        evaluate_every: updates between evaluations.
        save_every: updates between checkpoints beside those before and after evaluations; None: those alone.
        metric: number that chooses the best checkpoint; ``loss`` is better when lower, all others when higher.
        baselines: numbers above 0 by name, from which the mean relative gain is measured.
        patience: evaluations without a better one before the run stops; None never stops. Evaluations in which the
            number is not defined do not count.
    """

    steps: int
    steps_per_epoch: int
    evaluate_every: int
    metric: str
    save_every: int | None = None
    patience: int | None = None
    baselines: Mapping[str, float] = dataclasses.field(default_factory=dict)

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
        if self.metric == GAIN:
            gains = [self._defined(numbers, name) for name in self.baselines]
            known_gains = [v / base - 1 for v, base in zip(gains, self.baselines.values()) if v is not None]
            return sum(known_gains) / len(known_gains) if len(known_gains) == len(gains) else None
        return self._defined(numbers, self.metric)

    def _defined(self, numbers: dict[str, Any], name: str) -> float | None:
        if name not in numbers:
            known = [k for k, v in numbers.items() if isinstance(v, int | float | None)]
            raise DensekitError(f"evaluation.metric: the evaluation gives no number {name!r}; {nearest(name, known)}")
        value = numbers[name]
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
