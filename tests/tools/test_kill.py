"""kill -9 at seeded moments: the run that was killed and resumed leaves the same bits as the one left alone."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tools import runs

# A backbone that wakes in two moments, and the mean of weights in the place of the moving average.
FINE_TUNING = {
    "optimizer": {"name": "adamw", "lr": 1e-3, "layer_decay": 0.7},
    "freeze_until": [0.2, 0.4],
    "ema": None,
    "swa": {"start": 0.6, "every": 0.5, "lr": 0.5, "norm_batches": 2},
}
# One of the two sets a step, so that a head, its weight and its set's statistics have steps in which they rest.
IN_TURN = {"mixing": "turn", "loss_weights": "uncertainty", "norm_statistics": "each"}
TASKS = ("detection", "instances", "segmentation", "classification", "joint")


class Bench:
    """Runs of one test session: configs, and one run left alone for each task and number of ranks."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data = folder, data

    @functools.cache  # noqa: B019  # lives as long as the session
    def config(self, task: str) -> str:
        changes = {"classification": FINE_TUNING, "joint": IN_TURN}.get(task, {})
        return runs.write_config(self.folder / f"{task}.yaml", runs.config_of(task, self.data, **changes))

    @functools.cache  # noqa: B019
    def alone(self, task: str, ranks: int = 1) -> Path:
        out = self.folder / f"{task}_alone_{ranks}"
        assert runs.finish(self.start(task, out, ranks=ranks)) == [0] * ranks, self.printed(out)
        return out

    def start(self, task: str, out: Path, *, workers: int = 0, ranks: int = 1, die_at: int | None = None):
        sets = ("data.of_boxes", "data.of_masks") if task == "joint" else ("data",)
        arguments = [
            self.config(task),
            *(f"{one}.workers={workers}" for one in sets),
            "--out",
            out,
            "--resume",
            "--device",
            "cpu",
        ]
        return runs.start("train", arguments, out.with_suffix(".log"), ranks=ranks, die_at=die_at)

    def printed(self, out: Path) -> str:
        return out.with_suffix(".log").read_text()


@pytest.fixture(scope="session")
def bench(tmp_path_factory, shapes):
    return Bench(tmp_path_factory.mktemp("kill"), shapes)


def wait_for_progress(processes, out: Path) -> None:
    """Until the run has written down a step, or has ended."""
    metrics = out / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    end = time.monotonic() + 240
    while processes[0].is_alive() and not (metrics.exists() and metrics.stat().st_mtime_ns > before):
        assert time.monotonic() < end, "no progress in four minutes"
        time.sleep(0.005)


def kill_once(bench, task, out, random, *, workers, ranks) -> bool:
    """One life of a run; False where it came to its end before the kill."""
    if random.random() < 0.5:  # at a system call that writes
        processes = bench.start(task, out, workers=workers, ranks=ranks, die_at=int(random.integers(1, 40)))
        processes[0].join(240)
    else:  # at any time
        processes = bench.start(task, out, workers=workers, ranks=ranks)
        if random.random() < 0.9:
            wait_for_progress(processes, out)
        time.sleep(random.uniform(0, 0.3))
    ended = not processes[0].is_alive() and processes[0].exitcode == 0
    if not ended:
        runs.kill(processes)
    assert runs.finish(processes)[0] in (0, -signal.SIGKILL), bench.printed(out)
    return not ended


def survive(bench, task, *, kills, seed, workers=0, ranks=1) -> int:
    """Kill a run up to ``kills`` times, let it end, compare; how often it was killed."""
    random = np.random.default_rng(seed)
    out = bench.folder / f"{task}_{workers}_{ranks}_{seed}"
    died = 0
    while died < kills and kill_once(bench, task, out, random, workers=workers, ranks=ranks):
        died += 1
    assert runs.finish(bench.start(task, out, workers=workers, ranks=ranks)) == [0] * ranks, bench.printed(out)
    runs.assert_same_run(bench.alone(task, ranks), out)
    assert not list(out.glob(".*.tmp"))
    return died


@pytest.mark.parametrize(
    ("task", "workers", "ranks"),
    [("detection", 0, 1), ("segmentation", 2, 1), ("classification", 2, 1), ("instances", 0, 1), ("joint", 0, 2)],
)
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bits(bench, task, workers, ranks):
    assert survive(bench, task, kills=4, seed=1, workers=workers, ranks=ranks) >= 2


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_none_of_a_hundred_kills_loses_anything(bench, task):
    died = 0
    for seed in range(100, 200):
        workers, ranks = (0, 2)[seed % 2], (1, 1, 2)[seed % 3]
        died += survive(bench, task, kills=5, seed=seed, workers=workers, ranks=ranks)
        if died >= 34:
            return
    raise AssertionError(f"only {died} kills")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(bench, number):
    out = bench.folder / f"stopped_{number}"
    processes = bench.start("classification", out, workers=2)
    wait_for_progress(processes, out)
    for pid in [processes[0].pid, *runs.children(processes[0].pid)]:  # the whole group gets a Ctrl-C
        os.kill(pid, number)
    assert runs.finish(processes) == [130], bench.printed(out)
    printed = bench.printed(out)
    step = torch.load(out / "last.pt", weights_only=True)["training"]["state"]["step"]
    assert f"stopped after step {step}; go on with the same command and --resume" in printed
    assert 1 <= step < 9
    assert "Traceback" not in printed
    assert runs.finish(bench.start("classification", out)) == [0]
    assert f"going on from step {step} of 9" in bench.printed(out)
    runs.assert_same_run(bench.alone("classification"), out)


def test_a_second_signal_stops_at_once_and_damages_nothing(bench):
    out = bench.folder / "stopped_twice"
    processes = bench.start("segmentation", out, workers=2)
    wait_for_progress(processes, out)
    workers = runs.children(processes[0].pid)
    os.kill(processes[0].pid, signal.SIGINT)
    os.kill(processes[0].pid, signal.SIGTERM)
    (code,) = runs.finish(processes)
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT), bench.printed(out)  # threads may swap the two
    assert "stopped after step" not in bench.printed(out), "the step was finished and saved: that is one signal's way"
    assert workers
    time.sleep(0.2)
    assert not [pid for pid in workers if alive(pid)], "loader workers outlive the run"
    assert runs.finish(bench.start("segmentation", out)) == [0]
    runs.assert_same_run(bench.alone("segmentation"), out)


def test_ctrl_c_on_two_ranks_saves_before_one_of_them_ends(bench):
    out = bench.folder / "stopped_ranks"
    processes = bench.start("classification", out, workers=2, ranks=2)
    wait_for_progress(processes, out)
    for _ in range(2):  # torchrun hands on the signal that every process of the terminal has got already
        for process in processes:
            os.kill(process.pid, signal.SIGINT)
        time.sleep(0.02)
    assert runs.finish(processes) == [130, 130], bench.printed(out)
    assert_stopped_after_the_saved_step(bench, out)
    assert runs.finish(bench.start("classification", out, ranks=2)) == [0, 0]
    runs.assert_same_run(bench.alone("classification", 2), out)


def test_a_signal_to_one_rank_stops_both_at_the_same_step(bench):
    out = bench.folder / "stopped_one_rank"
    processes = bench.start("classification", out, ranks=2)
    wait_for_progress(processes, out)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert runs.finish(processes) == [130, 130], bench.printed(out)
    assert_stopped_after_the_saved_step(bench, out)
    assert runs.finish(bench.start("classification", out, ranks=2)) == [0, 0]
    runs.assert_same_run(bench.alone("classification", 2), out)


@pytest.mark.long
def test_ctrl_c_under_torchrun_saves_before_the_ranks_end(bench):
    out = bench.folder / "torchrun"
    arguments = [bench.config("detection"), "--out", out, "--resume", "--device", "cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone"]
    with out.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            [str(a) for a in (*launcher, runs.TOOLS / "train.py", *arguments)],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        end = time.monotonic() + 120
        while not (out / "last.pt").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    assert_stopped_after_the_saved_step(bench, out)
    assert runs.finish(bench.start("detection", out, ranks=2)) == [0, 0]
    runs.assert_same_run(bench.alone("detection", 2), out)


def assert_stopped_after_the_saved_step(bench, out: Path) -> None:
    step = torch.load(out / "last.pt", weights_only=True)["training"]["state"]["step"]
    assert f"stopped after step {step}; go on with" in bench.printed(out), bench.printed(out)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
