"""A checkpoint measured on a data set, for the tools that look further than at its numbers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from densekit import build
from densekit.build import Split
from densekit.config import Config
from densekit.console import say
from densekit.data.images.settings import unfit_range
from densekit.engine.distributed import World
from densekit.errors import DensekitError
from densekit.infer.evaluate import Measure, evaluate
from densekit.metrics.intervals import Resampled, Resampler
from densekit.model import DenseModel
from densekit.precision import settle_precision
from densekit.types import Batch, Dataset, Metric


@dataclasses.dataclass(frozen=True)
class Measured:
    """A checkpoint and what it does on a data set.

    Attributes:
        path: of the checkpoint.
        model: in evaluation mode.
        config: of its run, with overrides.
        data: that it was measured on.
        metric: that saw all images.
        numbers: what the metric and the losses come to.
        digest: SHA-256 of the checkpoint.
        beside: the second metric, where one was asked for.
    """

    path: Path
    model: DenseModel
    config: Config
    data: Dataset
    metric: Metric
    numbers: dict[str, Any]
    digest: str
    beside: Metric | None = None

    @functools.cached_property
    def resampler(self) -> Resampler:
        """What each image adds to the numbers; made once, for on a large data set it takes a minute."""
        assert isinstance(self.metric, Resampled)
        return self.metric.resampler()


def checkpoint_of(run: Path) -> Path:
    """The checkpoint that a word on the command line means: a file, or ``best.pt`` of a run folder.

    Raises:
        DensekitError: a folder without one.
    """
    if not run.is_dir():
        return run
    if not (run / "best.pt").is_file():
        raise DensekitError(
            f"{run} holds no best.pt; give the folder of a run that has been evaluated, or a checkpoint"
        )
    return run / "best.pt"


def digest(path: Path) -> str:
    """SHA-256 of a file; empty where there is none, which who reads it will say."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(
    run: Path,
    overrides: Sequence[str],
    split: Split,
    world: World,
    beside: Callable[[DenseModel, Dataset], Metric | None] = lambda model, data: None,
    *,
    head: str | None = None,
) -> Measured:
    """Evaluate a checkpoint as ``tools/evaluate.py`` does, and keep what its numbers are made of.

    Args:
        run: its folder, or the checkpoint.
        overrides: of its config.
        split: the data set.
        world: one rank.
        beside: makes a second metric that sees the same predictions, or None.
        head: the one that is measured; None: the first.
    """
    path = checkpoint_of(run)
    found = digest(path)
    model, config = build.from_checkpoint(path, overrides)
    config, told = build.of_one_head(model, config, head)
    precision, notes = settle_precision(config.train.precision, world.device, asked=False)
    notes += told
    data = build.dataset(config, split, training=False, classes=model.classes)
    model.classes = data.classes
    build.check_stores(config, model, data, training=False)
    metric, second = build.metric(config, model, data), beside(model, data)
    batches = build.eval_batches(config, data, world)
    say("\n".join([*notes, *unfit_range(config.data, data), f"{path} on {split}: {len(data)} images, {precision}"]))
    both: Metric = metric if second is None else _Both(metric, second)
    numbers = evaluate(
        model.to(world.device),
        [Measure(batches, {next(iter(model.heads)): both})],
        world=world,
        precision=precision,
        progress=True,
    )
    assert numbers is not None
    return Measured(path, model, config, data, metric, numbers, found, second)


class _Both:
    """Two metrics of the same predictions on one rank, of which the first is told."""

    def __init__(self, first: Metric, second: Metric) -> None:
        self._parts = (first, second)

    def update(self, predictions: Any, batch: Batch) -> None:
        for part in self._parts:
            part.update(predictions, batch)

    def state(self) -> Any:
        return [part.state() for part in self._parts]

    def merge(self, states: Sequence[Any]) -> None:
        for part, own in zip(self._parts, zip(*states)):
            part.merge(own)

    def compute(self) -> dict[str, Any]:
        return self._parts[0].compute()
