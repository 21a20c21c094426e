"""A training run that is under way: what it is made of, and what happens in it. ``tools/train.py`` tells the story."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from densekit import build
from densekit.config import Config
from densekit.console import say
from densekit.data.loading.loader import EvalLoader
from densekit.engine import distributed
from densekit.engine.ahead import CopiedAhead
from densekit.engine.distributed import World
from densekit.engine.guard import FiniteGuard, Stop
from densekit.engine.plan import Plan
from densekit.engine.record import Record, memory_in_use
from densekit.engine.run_folder import RunFolder, RunState
from densekit.engine.step import TrainStep
from densekit.engine.swa import EqualAverage, renew_statistics
from densekit.forecast.disk import sizes_of
from densekit.forecast.pace import Pace
from densekit.infer.evaluate import Measure, evaluate
from densekit.learning_sets import LearningSet, file_names, train_batches
from densekit.model import DenseModel
from densekit.show import report
from densekit.show.batches import draw_batch
from densekit.types import Batch, Dataset

PICTURED = 3
"""Training batches that are drawn, from the first step on."""


@dataclasses.dataclass(slots=True)
class Run:
    """What a run is made of.

    Attributes:
        config: settled, of the run.
        world: its ranks.
        step: the model with its optimiser.
        plan: its timetable.
        folder: where it is kept.
        state: where it stands.
        record: what it writes down.
        sets: what is learned, and what the best weights are chosen by.
        batches: this rank's micro-batches of each update, without end.
        ahead: the same, on the device.
        measured: the sets that have something to measure on, and this rank's share of that.
        guard: looks for losses that are not finite.
        pace: tells it when its first steps are done.
        unread: images of the steps since the last save that could not be read.
    """

    config: Config
    world: World
    step: TrainStep
    plan: Plan
    folder: RunFolder
    state: RunState
    record: Record
    sets: Sequence[LearningSet]
    batches: Iterator[list[Batch]]
    ahead: CopiedAhead = dataclasses.field(init=False)
    measured: list[tuple[LearningSet, EvalLoader]] = dataclasses.field(init=False)
    guard: FiniteGuard = dataclasses.field(init=False)
    pace: Pace = dataclasses.field(init=False)
    unread: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.ahead = CopiedAhead(self.batches, self.world.device)
        self.guard = FiniteGuard(self.folder, self.step, functools.partial(file_names, self.sets))
        self.pace = Pace(self.plan.steps, sizes_of(self.step.model, self.config.train).folder)
        self.measured = [
            (one, build.eval_batches(one.config, one.val, self.world)) for one in self.sets if one.val is not None
        ]

    @property
    def first(self) -> bool:
        """Whether this is the first rank, which writes and speaks."""
        return self.world.is_first

    @property
    def out(self) -> Path:
        """The run folder."""
        return self.folder.path

    def out_of_time(self) -> bool:
        """Whether ``train.max_minutes`` are over on any rank. All ranks must call this together."""
        limit = 60 * (self.config.train.max_minutes or float("inf"))
        return distributed.any_rank(self.state.seconds >= limit)

    def advance(self) -> str | None:
        """One update of the weights, written down; a few words on it where it is told."""
        state, began = self.state, time.perf_counter()
        micro_batches = next(self.ahead)
        result = self.step(micro_batches.device, state.step)
        self.ahead.begin_next()
        self.guard.check(result, state)
        self.unread += [line for batch in micro_batches.host for line in batch.skipped]
        state.step += 1
        state.seconds += (seconds := time.perf_counter() - began)
        if line := self.pace.line(state.step, seconds, memory_in_use(self.world.device)):
            say(line, self.first)
        self._picture(micro_batches.host, state.step - 1)
        return self.record.step(result, self.step.rate(result.step), seconds, self.config.train.batch_size)

    def model_to_use(self) -> DenseModel:
        """What is evaluated and saved as best: a mean of weights gets statistics of batch norm of its own first."""
        step, swa, average = self.state.step, self.config.train.swa, self.step.average
        if swa is not None and isinstance(average, EqualAverage) and average.holds_several(step):
            self.step.begin(step - 1)
            count = min(swa.norm_batches, self.plan.steps_per_epoch * self.config.train.accumulate)
            batches = itertools.chain.from_iterable(train_batches(self.config, self.sets, self.world, start=step))
            renew_statistics(
                average.model,
                self.step.model,
                itertools.islice(batches, count),
                step=step,
                seed=self.config.seed,
                precision=self.step.precision,
                world=self.world,
            )
        return self.step.model_to_use

    def evaluate(self, stop: Stop) -> bool:
        """Measure the weights and keep them where they are the best; False where a signal came before the end."""
        state, used = self.state, self.model_to_use()
        measures = [
            Measure(batches, build.metrics(one.config, used, cast(Dataset, one.val), one.heads))
            for one, batches in self.measured
        ]
        precision, world = self.step.precision, self.world
        numbers = evaluate(used, measures, world=world, precision=precision, stopping=stop.here)
        if numbers is None:
            return False
        state.evaluation_due = False
        self.record.write("val", state.step, numbers)
        improved = self.plan.judge(numbers, state)
        state.finished |= self.out_of_time()
        say(self.plan.verdict(numbers, state, improved), self.first)
        if improved:
            self.folder.save_best(used, state, numbers)
            if self.first:
                for head, metric in [pair for measure in measures for pair in measure.metrics.items()]:
                    prefix, names = used.prefix(head), used.classes_of(head).names
                    own = {**report.of_head(numbers, prefix), **report.details(metric)}
                    report.write_pictures(self.out, own, names, prefix)
        self.save()
        return True

    def save(self) -> None:
        """Write all that is needed to go on from here."""
        self.guard.drain(self.state)
        for line in self.state.add_skipped(self.unread):
            say(f"skipped: {line}", self.first)
        self.unread.clear()
        self.record.flush()
        self.folder.save_last(self.step, self.state)

    def _picture(self, batches: Sequence[Batch], step: int) -> None:
        """What the model sees of each set in its first steps, once: a run that goes on leaves the pictures alone."""
        for batch in {batch.data_set: batch for batch in reversed(batches)}.values():
            path = self.out / f"train_batch_{'_'.join(filter(None, (batch.data_set, str(step))))}.jpg"
            if self.first and step < PICTURED and batch.maps is None and not path.exists():
                model = self.step.model
                draw_batch(batch, {model.head(n).task: model.classes_of(n) for n in model.learning(batch)}, path)
