"""The folder of a run: one config, its records, its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import torch
import yaml

import densekit
from densekit.config import dump, parse
from densekit.engine import checkpoint
from densekit.engine.distributed import World, barrier, gather
from densekit.engine.optim import restore
from densekit.engine.step import TrainStep
from densekit.errors import DensekitError
from densekit.files import only_process, remove_leftovers, write_text
from densekit.model import DenseModel

_MAY_CHANGE = (
    *("log.", "data.workers", "evaluation.pictures"),
    *("train.max_minutes", "train.save_every", "train.checkpoint_backbone"),
)
"""Config keys that do not change the weights, so a run may go on with other values."""


@dataclasses.dataclass(slots=True)
class RunState:
    """Where a run stands; all that a resumed run needs beside weights, optimiser and average.

    Attributes:
        step: updates done.
        seconds: spent in training steps.
        best: best value of the chosen metric so far; None before the first evaluation in which it is defined.
        best_step: of the weights in ``best.pt``.
        without_better: evaluations since in which the metric was defined.
        skipped_steps: steps whose loss was not finite and that the config allowed to skip.
        skipped_images: lines on images that could not be read, over all ranks, and how often each was met.
        evaluation_due: the evaluation after ``step`` was not begun or not finished; it comes before the next step.
        finished: the last step was done and evaluated.
    """

    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    without_better: int = 0
    skipped_steps: int = 0
    skipped_images: dict[str, int] = dataclasses.field(default_factory=dict)
    evaluation_due: bool = False
    finished: bool = False

    def add_skipped(self, lines: Sequence[str]) -> list[str]:
        """Count images that could not be read; the lines that were not known yet, in the order of the ranks.

        All ranks must call this together.
        """
        new = []
        for line in [line for share in gather(list(lines)) for line in share]:
            if line not in self.skipped_images:
                new.append(line)
            self.skipped_images[line] = self.skipped_images.get(line, 0) + 1
        return new


def holds_run(path: Path) -> bool:
    """Whether a folder holds a run that came to its first step; what one that failed before left may be replaced."""
    saved, metrics = path / "config.yaml", path / "metrics.jsonl"
    if not saved.exists():
        return False
    if any(path.glob("*.pt")) or (metrics.exists() and metrics.stat().st_size > 0):
        return True
    try:
        text = saved.read_text(encoding="utf-8")
        return dump(parse(yaml.safe_load(text), "it")) != text  # a config that no run wrote is someone's own
    except (DensekitError, yaml.YAMLError, UnicodeDecodeError, OSError):
        return True


class RunFolder:
    """Opens, fills and resumes a run folder.

    Args:
        path: the folder; made where it does not exist.
        config: the resolved config as YAML; saved as ``config.yaml``.
        resume: go on with the run that stands there.
        world: only the first rank writes.

    Raises:
        DensekitError: another run stands there, or the run there had another config.
    """

    def __init__(self, path: str | Path, config: str, *, resume: bool, world: World) -> None:
        self.path = Path(path)
        self.config = yaml.safe_load(config)
        self.world = world
        self._last_is_whole = True
        self._check(resume)
        barrier()  # every rank has looked before the first one writes
        if world.is_first:
            self._lock = only_process(self.path)
            remove_leftovers(self.path)
            write_text(self.path / "config.yaml", config)

    @property
    def last(self) -> Path:
        """The checkpoint that the run goes on from."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best value of the chosen metric."""
        return self.path / "best.pt"

    def _check(self, resume: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise DensekitError(f"--out {self.path} is a file; give a folder")
        saved = self.path / "config.yaml"
        if not saved.exists():
            if any(self.path.glob("*.pt")):
                raise DensekitError(f"{self.path} holds checkpoints but no config.yaml; give another --out")
            return
        if not holds_run(self.path):
            return
        if not resume:
            raise DensekitError(f"{self.path} holds another run; add --resume to go on with it or give another --out")
        try:
            before = yaml.safe_load(saved.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError):
            before = None
        if not isinstance(before, dict):
            raise DensekitError(f"{saved} is not a config any more; restore it or give another --out")
        with contextlib.suppress(DensekitError):  # keys that came later have their defaults
            before = parse(before, str(saved)).model_dump(mode="json")
        changed = [k for k in _differences(before, self.config) if not _may_change(k)]
        if changed:
            key = changed[0]
            raise DensekitError(
                f"{self.path} holds a run with another config: {key} was {_at(before, key)!r} and is now "
                f"{_at(self.config, key)!r}{f' (and {len(changed) - 1} more)' if len(changed) > 1 else ''}; "
                f"use the same values to resume, or another --out"
            )

    def resume(self, step: TrainStep) -> tuple[RunState, list[str]]:
        """Load the last checkpoint into the model, optimiser and average of a training step.

        Returns:
            Where the run stands (a fresh state where there is no checkpoint), and lines that the user should see: a
            damaged checkpoint, another number of ranks, another precision.

        Raises:
            DensekitError: no checkpoint can be read, it is of another model, or the ranks see different folders.
        """
        content, notes = self._read_last()
        state = RunState() if content is None else self._take(content, step)
        steps = gather(state.step)
        if len(set(steps)) > 1:
            raise DensekitError(
                f"{self.path}: the ranks see different checkpoints (steps {steps}); put --out on a file system that "
                f"all machines share"
            )
        step.resume_skipped(state.skipped_steps)
        ranks = self.world.size if content is None else content.get("made", {}).get("ranks")
        if ranks != self.world.size:
            notes.append(f"the run was on {ranks} ranks and goes on with {self.world.size}: bits will differ")
        before = step.precision if content is None else _precision(content)
        if before not in (step.precision, "auto"):
            notes.append(f"the run was in {before} and goes on in {step.precision}: bits will differ")
        return state, notes

    def _read_last(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest checkpoint that is whole."""
        before = checkpoint.previous(self.last)
        if self.last.is_file():
            content, damage = checkpoint.load_last(self.last)
            # A damaged last.pt must not take the place of the good one before it.
            self._last_is_whole = damage is None
            return content, [] if damage is None else [damage]
        if before.is_file():
            return checkpoint.load(before), [f"{self.last} is not there; going on from {before.name}"]
        return None, []

    def _take(self, content: dict[str, Any], step: TrainStep) -> RunState:
        training = content.get("training")
        if not isinstance(training, dict):
            raise DensekitError(f"{self.last} holds no training state; start with another --out")
        checkpoint.load_weights(step.model, training.get("model") or content["model"], self.last)
        if step.average is not None:
            checkpoint.load_weights(step.average.model, content["model"], self.last)
        try:
            _check_optimizer(step.optimizer, training["optimizer"])
            restore(step.optimizer, training["optimizer"])
            step.scaler.load_state_dict(training["scaler"])
            step.weights.load_state_dict(training.get("loss_weights", {}))  # older checkpoints have none
            state = pydantic.TypeAdapter(RunState).validate_python(dataclasses.asdict(RunState(**training["state"])))
            if min(state.step, state.best_step, state.without_better, state.skipped_steps, state.seconds) < 0:
                raise ValueError(f"a count below 0 in {training['state']}")
            return state
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise DensekitError(
                f"{self.last}: its training state does not fit this densekit's ({' '.join(str(error).split())[:200]}); "
                f"start with another --out, from its weights by model.weights"
            ) from None

    def save_last(self, step: TrainStep, state: RunState) -> None:
        """Write ``last.pt``: the weights to use, and all that resuming needs. The one before it is kept.

        The ranks wait for it, so that none ends (and takes the others along) before it is written.
        """
        if self.world.is_first:
            training = {
                "model": step.model.state_dict() if step.average is not None else None,
                "optimizer": step.optimizer.state_dict(),
                "scaler": step.scaler.state_dict(),
                "loss_weights": step.weights.state_dict(),
                "precision": step.precision,
                "state": dataclasses.asdict(state),
            }
            content = {**self._content(step.model_to_use, state), "training": training}
            checkpoint.save(self.last, content, keep_previous=self._last_is_whole)
            self._last_is_whole = True
        barrier()

    def save_best(self, model: DenseModel, state: RunState, numbers: dict[str, Any]) -> None:
        """Write ``best.pt``: everything that evaluation, prediction and fine-tuning need, and nothing more."""
        if self.world.is_first:
            # Plain numbers: numpy's own would not load without running code.
            plain = {k: v if isinstance(v, int) else float(v) for k, v in numbers.items() if isinstance(v, int | float)}
            checkpoint.save(self.best, {**self._content(model, state), "numbers": plain})

    def _content(self, model: DenseModel, state: RunState) -> dict[str, Any]:
        return {
            "config": self.config,
            **checkpoint.with_classes(model.classes_by_head),
            "model": model.state_dict(),
            "made": {
                "command": shlex.join(sys.argv),
                "densekit": densekit.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
                "device": str(self.world.device),
                "ranks": self.world.size,
                "step": state.step,
                "seconds": round(state.seconds, 1),
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
        }


def _may_change(key: str) -> bool:
    """Whether a run may go on with another value."""
    return key.startswith(_MAY_CHANGE) or re.fullmatch(r"data\.[^.]+\.workers", key) is not None


def _precision(content: dict[str, Any]) -> Any:
    """That of the steps before a checkpoint; what the config asked for where the checkpoint does not tell."""
    return content["training"].get("precision") or _at(content["config"], "train.precision")


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    """A tree of keys as ``key.path`` -> value."""
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{path}{key}.").items()}
    return {path.rstrip("."): tree}


def _check_optimizer(optimizer: torch.optim.Optimizer, given: Any) -> None:
    """Raise where a saved state does not fit; torch takes nearly anything, and fails in the middle of the next step."""
    for own, saved in zip(optimizer.state_dict()["param_groups"], given["param_groups"], strict=True):
        for key, value in own.items():
            if type(saved[key]) is not type(value):
                raise ValueError(f"{key} of the optimizer is {saved[key]!r}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = {frozenset(state) for state in given["state"].values()}
    if len(names) > 1:
        raise ValueError(f"parameters have different states, such as {' and '.join(map(str, map(sorted, names)))}")
    for index, state in given["state"].items():
        for name, value in state.items():
            if not isinstance(value, torch.Tensor) or value.shape not in ((), parameters[index].shape):
                raise ValueError(f"{name} of parameter {index} does not fit it")


def _differences(before: Any, now: Any) -> list[str]:
    old, new = _flat(before), _flat(now)
    return [k for k in {**old, **new} if old.get(k) != new.get(k) or (k in old) != (k in new)]


def _at(tree: Any, key: str) -> Any:
    return _flat(tree).get(key)
