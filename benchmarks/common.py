"""What the benchmarks share: two sides timed in turn on the same inputs, one table, one json."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from densekit import build, learning_sets
from densekit.config import Config
from densekit.console import print_table
from densekit.engine.distributed import join, keep_freed_memory
from densekit.files import write_text
from densekit.infer.evaluate import Measure, evaluate
from densekit.model import DenseModel
from densekit.precision import why_not
from densekit.types import Batch

Action = Callable[[], object]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        question: what was run, at what size.
        peer: what densekit was compared with.
        ours: seconds of each run of densekit. theirs: of each run of the peer.
        agreement: how the results were found to agree before anything was timed; benchmarks stop where they do not.
        goal: the ratio that we want, or None.
    """

    question: str
    peer: str
    ours: Sequence[float]
    theirs: Sequence[float]
    agreement: str
    goal: float | None = None

    @property
    def ratio(self) -> float:
        """How many times faster densekit is: the median of the ratios of neighbouring runs."""
        return statistics.median(t / o for o, t in zip(self.ours, self.theirs))

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of neighbouring runs."""
        ratios = [t / o for o, t in zip(self.ours, self.theirs)]
        return min(ratios), max(ratios)


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers of densekit alone.

    Attributes:
        title: what is shown.
        columns: names of the columns.
        rows: cells, floats with four digits.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer repeats and smaller inputs: minutes, not hours")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    return parser


def device_of(args: argparse.Namespace) -> torch.device:
    """The device to measure on; on the CPU the peer, too, profits from densekit's setting of the C library."""
    keep_freed_memory()
    return torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def with_mixed(plain: T, mixed: T, device: torch.device) -> tuple[T, ...]:
    """What stands for fp32 and for mixed precision; the former alone where the CPU does not run bf16, which is said."""
    if refusal := why_not("bf16", device):
        print(f"rows in mixed precision are left out: {refusal}")
        return (plain,)
    return plain, mixed


def all_in_turn(actions: Sequence[Action], *, repeats: int, warm_up: int = 1) -> list[list[float]]:
    """Time any number of actions in turn; seconds of each run of each."""
    for _ in range(warm_up):
        for action in actions:
            action()
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(repeats):
        for action, seconds in zip(actions, times):
            _wait()
            began = time.perf_counter()
            action()
            _wait()
            seconds.append(time.perf_counter() - began)
    return times


def in_turn(ours: Action, theirs: Action, *, repeats: int, warm_up: int = 1) -> tuple[list[float], list[float]]:
    """Time two actions alternately, so that what else the machine does meets both alike.

    Args:
        ours: densekit's side.
        theirs: the peer's.
        repeats: timed runs of each.
        warm_up: runs of each before.

    Returns:
        Seconds of each run of both.
    """
    first, second = all_in_turn((ours, theirs), repeats=repeats, warm_up=warm_up)
    return first, second


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def check(name: str, ours: Any, theirs: Any, *, atol: float, rtol: float = 0.0) -> str:
    """Stop where two results differ; a phrase that says how near they are.

    Args:
        name: of what is compared.
        ours: tensor or number.
        theirs: likewise.
        atol: largest difference.
        rtol: largest difference as a fraction of the peer's value.
    """
    a, b = torch.as_tensor(ours, dtype=torch.float64), torch.as_tensor(theirs, dtype=torch.float64)
    if a.shape != b.shape or not torch.allclose(a, b, atol=atol, rtol=rtol):
        difference = (a - b).abs().max().item() if a.shape == b.shape else f"shapes {tuple(a.shape)}, {tuple(b.shape)}"
        sys.exit(f"{name} of densekit and of the peer differ by {difference}: nothing is timed")
    return f"{name} within {(a - b).abs().max().item() if a.numel() else 0.0:.1g}"


@contextlib.contextmanager
def whole_float32() -> Iterator[None]:
    """Comparisons in float32 as such: by default a GPU rounds what its convolutions read to TF32, 10 bits."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, value in zip(switches, before):
            switch.allow_tf32 = value


def compared_on(device: torch.device) -> str:
    """What is to be said beside a comparison in float32."""
    return " (TF32 off)" if device.type == "cuda" else ""


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm", "densekit")},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else platform.processor() or platform.machine()


def report(title: str, rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Print the table of a benchmark, and write its json where that was asked for."""
    where = machine(device_of(args))
    table = [
        [
            row.question,
            row.peer,
            f"{statistics.median(row.ours):.4g}",
            f"{statistics.median(row.theirs):.4g}",
            f"{row.ratio:.2f}",
            "{:.2f} to {:.2f}".format(*row.spread),
            "-" if row.goal is None else f"{row.goal:g}",
            row.agreement,
        ]
        for row in rows
    ]
    print_table(title, ["what", "peer", "densekit s", "peer s", "ratio", "spread", "goal", "results agree"], table)
    print(", ".join(f"{k} {v}" for k, v in where.items()))
    if args.json:
        content = {"title": title, "machine": where, "rows": [_as_dict(row) for row in rows]}
        write_text(args.json, json.dumps(content, indent=1) + "\n")


def report_tables(title: str, tables: Sequence[Table], args: argparse.Namespace) -> None:
    """Print tables, and write their json where that was asked for."""
    where = machine(device_of(args))
    for table in tables:
        rows = [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in table.rows]
        print(f"\n{title}: {table.title}")  # not as the table's own title, which is cut to the width of the table
        print_table("", table.columns, rows)
    print(", ".join(f"{k} {v}" for k, v in where.items()))
    if args.json:
        content = {"title": title, "machine": where, "tables": [dataclasses.asdict(table) for table in tables]}
        write_text(args.json, json.dumps(content, indent=1) + "\n")


def _as_dict(row: Row) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "ratio": row.ratio, "spread": row.spread}


class Training:
    """A run of densekit's, step by step, whose weights are measured on the test images.

    Args:
        config: of the run.
    """

    def __init__(self, config: Config) -> None:
        self.world = join(None)
        sets = learning_sets.open_sets(config)
        self.config, _ = learning_sets.settle(config, self.world, sets)
        model, _ = build.model(self.config, learning_sets.classes_of(sets))
        self.model: DenseModel = model.to(self.world.device)
        self.plan = build.plan(self.config, [one.train for one in sets], self.model)
        self.batches = learning_sets.train_batches(self.config, sets, self.world, start=0)
        self.done = 0
        self.prepare()

    def prepare(self) -> None:
        """Make what updates the weights."""
        self.trainer = build.train_step(self.config, self.model, self.plan, self.world)

    def step(self) -> None:
        """One update from the next batches, one a data set."""
        self.update([batch.to(self.world.device) for batch in next(self.batches)])
        self.done += 1

    def update(self, batches: Sequence[Batch]) -> None:
        """One update."""
        self.trainer(batches, self.done)

    def measured(self) -> dict[str, Any]:
        """The numbers of the weights that are left, averaged where the config says so, on the test images."""
        measures = []
        for one in learning_sets.open_measured(self.config, self.model, "test", match_names=False):
            metrics = build.metrics(one.config, self.model, one.data, one.heads)
            measures.append(Measure(build.eval_batches(one.config, one.data, self.world), metrics))
        return self.counted(measures)

    def counted(self, measures: Sequence[Measure]) -> dict[str, Any]:
        """The numbers of ``measured``."""
        numbers = evaluate(self.trainer.model_to_use, measures, world=self.world, precision=self.trainer.precision)
        assert numbers is not None, "nobody asked it to stop"
        return numbers


def compared(before: Sequence[float], after: Sequence[float]) -> list[str]:
    """Mean and standard deviation of a number over the seeds, on both sides and of the differences of a seed."""
    differences = [b - a for a, b in zip(before, after)]
    sign = "+" if statistics.mean(differences) >= 0 else ""
    return [_spread(before), _spread(after), sign + _spread(differences)]


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"
