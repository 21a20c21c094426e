"""What a run writes down: ``metrics.jsonl``, ``timing.jsonl``, ``metrics.csv``, TensorBoard and other trackers.

``metrics.jsonl`` holds only what follows from config and data, so a killed and resumed run leaves the same bytes as
one left alone; seconds, images/s and memory stand in ``timing.jsonl``.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from densekit import machine
from densekit.config_file import read_yaml
from densekit.engine.step import StepResult
from densekit.engine.trackers.tracker import Tracker, open_trackers
from densekit.errors import DensekitError
from densekit.files import explain_os_error, whole_file


class Record:
    """Lines of numbers in a run folder.

    Args:
        folder: of the run.
        step: where the run goes on; later lines of a run that was killed are dropped.
        evaluation_due: drop the evaluation at ``step`` too, if its line stands there: it is made anew.
        every: training steps between those that are written down; the first one is too.
        tensorboard: write events too.
        csv: write ``metrics.csv`` when the record is closed.
        trackers: names of services that follow the run too.
        enabled: False on all ranks but the first.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int = 0,
        evaluation_due: bool = False,
        every: int = 1,
        tensorboard: bool = True,
        csv: bool = False,
        trackers: Sequence[str] = (),
        enabled: bool = True,
    ) -> None:
        self.folder, self.every, self.enabled, self._csv = folder, every, enabled, csv
        self._seconds, self._images = 0.0, 0
        self._writer: Any = None
        self._trackers: list[Tracker] = []
        if not enabled:
            return
        again = ("val", step) if evaluation_due else None
        for name in ("metrics.jsonl", "timing.jsonl"):
            _keep(folder / name, lambda line: 0 < line["step"] <= step and (line.get("kind"), line["step"]) != again)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # 2 s to import

            with self._explained():
                self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        if trackers:
            with self._explained("trackers"):
                self._trackers = open_trackers(trackers, folder, read_yaml(folder / "config.yaml"))

    def write(self, kind: str, step: int, numbers: dict[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``.

        Args:
            kind: ``train``, ``val`` or ``test``.
            step: updates done so far.
            numbers: by name; nested ones allowed.
        """
        self._line("metrics.jsonl", {"kind": kind, "step": step, **numbers})
        self._events(kind, step, numbers)

    def timing(self, step: int, numbers: dict[str, float]) -> None:
        """Add a line to ``timing.jsonl``: what depends on the machine and the hour."""
        self._line("timing.jsonl", {"step": step, "time": round(time.time(), 3), **numbers})
        self._events("timing", step, numbers)

    def step(self, result: StepResult, rate: float, seconds: float, images: int) -> str | None:
        """Write down a training step where one is due, and say it in a few words.

        Args:
            result: of the step; its values are not read where no line is due.
            rate: its learning rate.
            seconds: that it took, with the wait for its images.
            images: seen in that time, over all ranks.
        """
        self._seconds, self._images = self._seconds + seconds, self._images + images
        if (result.step + 1) % self.every and result.step:
            return None
        losses = {name: float(value) for name, value in result.losses.items()}
        total = sum(losses.values())
        numbers: dict[str, Any] = {"loss": total, **losses, "norm": float(result.norm), "lr": rate}
        if result.weights:
            numbers["weights"] = {head: float(value) for head, value in result.weights.items()}
        self.write("train", result.step + 1, numbers)
        speed, memory = self._images / max(self._seconds, 1e-9), memory_in_use(result.norm.device)
        self._seconds, self._images = 0.0, 0
        known = {} if memory is None else {"memory_gib": memory}
        self.timing(result.step + 1, {"images_per_s": speed, **known})
        return f"loss {total:.4f}  {speed:.1f} images/s" + ("" if memory is None else f"  {memory:.1f} GiB")

    def flush(self) -> None:
        """Let what was written reach the disk; called before a checkpoint that counts on it."""
        if self._writer is not None:
            with self._explained():
                self._writer.flush()
        path = self.folder / "metrics.jsonl"
        if self.enabled and path.exists():
            with self._explained(path.name), path.open("ab") as file:  # Windows syncs no file that is open for reading
                os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """What ``metrics.jsonl`` holds."""
        return read(self.folder / "metrics.jsonl")

    def close(self) -> None:
        """Finish: TensorBoard events, and the CSV where it was asked for."""
        if self._writer is not None:
            with self._explained():
                self._writer.close()
        for tracker in self._trackers:
            tracker.close()
        if self.enabled and self._csv:
            _to_csv(self.folder)

    def _line(self, name: str, numbers: dict[str, Any]) -> None:
        if not self.enabled:
            return
        with self._explained(name), (self.folder / name).open("a", encoding="utf-8", newline="") as file:
            file.write(json.dumps(finite(numbers)) + "\n")

    def _events(self, kind: str, step: int, numbers: dict[str, Any]) -> None:
        weights = {f"weights.{head}": value for head, value in numbers.get("weights", {}).items()}
        flat = {**numbers, **weights}
        plain = {f"{kind}/{name}": value for name, value in flat.items() if isinstance(value, int | float)}
        if self._writer is not None:
            with self._explained():
                for name, value in plain.items():
                    self._writer.add_scalar(name, value, step)
        shown = {name: value for name, value in plain.items() if math.isfinite(value)}
        for tracker in self._trackers:
            tracker.write(step, shown)

    @contextlib.contextmanager
    def _explained(self, name: str = "TensorBoard events") -> Iterator[None]:
        """A full disk is the user's to solve: one line."""
        try:
            yield
        except OSError as error:
            raise DensekitError(explain_os_error(error, self.folder / name)) from None


def finite(value: Any) -> Any:
    """The same numbers, but null for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def memory_in_use(device: torch.device) -> float | None:
    """Memory in GiB: of a CUDA GPU the most, of a Mac's what is held now; on the CPU this process's; None: not told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    return machine.memory_in_use()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a jsonl file; a last line that a kill cut short is left out."""
    lines = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else []:
        try:
            content = json.loads(line)
        except ValueError:
            break
        if not isinstance(content, dict) or not isinstance(content.get("step"), int):
            break
        lines.append(content)
    return lines


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the other lines, and half a line at the end: the run writes them again."""
    if not path.exists():
        return
    kept = [line for line in read(path) if wanted(line)]
    with whole_file(path, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)


def _to_csv(folder: Path) -> None:
    lines = read(folder / "metrics.jsonl")
    columns = list(dict.fromkeys(k for line in lines for k, v in line.items() if not isinstance(v, dict | list)))
    with whole_file(folder / "metrics.csv", "w") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
