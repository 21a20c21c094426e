"""tools/train.py as a whole: what it leaves, ranks, losses that are not finite, disks that are full."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from densekit import console
from densekit.engine.checkpoint import load, previous
from densekit.engine.plan import METRICS
from densekit.engine.run_folder import RunFolder
from densekit.errors import DensekitError
from densekit.model import DenseModel
from tests.tools import runs


@pytest.fixture
def config(tmp_path, shapes):
    return runs.write_config(tmp_path / "run.yaml", runs.config_of("detection", shapes))


def lines(out: Path, kind: str = "train"):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_a_run_folder_holds_config_metrics_checkpoints_samples_events_and_csv(tmp_path, config):
    out = tmp_path / "run"
    options = ["log.tensorboard=true", "log.csv=true", "evaluation.pictures=2", "train.steps=3"]
    assert runs.call("train", config, "--out", out, *options)[0] == 0
    files = {p.name for p in out.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "timing.jsonl", "metrics.csv", "last.pt", "best.pt", "samples"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert [row["step"] for row in lines(out)] == [1, 2, 3]
    assert (out / "metrics.csv").read_text().count("\n") == 1 + 3 + 1
    assert len(list((out / "samples" / "pictures").iterdir())) == 2
    content = load(out / "best.pt")
    assert content["classes"] == {"names": ["circle", "square", "triangle", "star"], "ids": [2, 5, 7, 11]}
    assert content["numbers"]["AP"] == lines(out, "val")[-1]["AP"]


def test_a_resolved_config_runs_again_to_the_same_metrics(tmp_path, config):
    first, second = tmp_path / "first", tmp_path / "second"
    assert runs.call("train", config, "--out", first, "train.steps=3")[0] == 0
    assert runs.call("train", first / "config.yaml", "--out", second)[0] == 0
    runs.assert_same_run(first, second)


def test_training_on_the_cpu_uses_the_deterministic_kernels(tmp_path, config):
    torch.use_deterministic_algorithms(False)
    assert runs.call("train", config, "--out", tmp_path / "run", "train.steps=1")[0] == 0
    assert torch.are_deterministic_algorithms_enabled(), "an index's backward adds in any order on several threads"


def test_a_first_step_imports_neither_torchvision_nor_the_compiler(tmp_path, config):
    """Either takes as long to import as the rest of the way to the first step, and comes in by many a side door."""
    tool, out = str(runs.TOOLS / "train.py"), str(tmp_path / "run")
    arguments = [tool, config, "--device", "cpu", "--out", out, "train.steps=1"]
    arguments.append("data.train_transforms=[]")  # else the test would import albumentations, and that the compiler
    code = f"""if True:
        import runpy, sys
        sys.argv = {arguments}
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            assert not end.code, end.code
        print([name for name in ("torchvision", "torch._dynamo", "torch._inductor") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr


def test_a_finished_run_resumed_changes_nothing(tmp_path, config):
    out = tmp_path / "run"
    assert runs.call("train", config, "--out", out, "train.steps=2")[0] == 0
    before = {name: (out / name).read_bytes() for name in ("last.pt", "best.pt", "metrics.jsonl")}
    assert runs.call("train", config, "--out", out, "train.steps=2", "--resume")[0] == 0
    assert {name: (out / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(("options", "step"), [([], 4), (["data.val=null"], 3)], ids=["evaluation", "step"])
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_it_used(tmp_path, config, options, step):
    """The one before is that before the last evaluation, or that of the step before."""
    alone, out = tmp_path / "alone", tmp_path / "run"
    assert runs.call("train", config, "--out", alone, "train.steps=4", *options)[0] == 0
    shutil.copytree(alone, out)
    content = bytearray((out / "last.pt").read_bytes())
    content[len(content) // 2] ^= 4
    (out / "last.pt").write_bytes(content)
    code, printed = runs.call("train", config, "--out", out, "train.steps=4", "--resume", *options)
    assert code == 0
    assert f"checkpoint {out / 'last.pt'} is damaged" in printed
    assert f"going on from last.previous.pt (step {step})" in printed
    assert f"going on from step {step} of 4" in printed
    runs.assert_same_run(alone, out)
    assert load(previous(out / "last.pt"))["made"]["step"] == step, "the damaged file took the place of a good one"


def test_a_run_that_ran_out_of_time_goes_on_with_more_of_it(tmp_path, config):
    out = tmp_path / "run"
    options = ["--out", out, "train.steps=3", "--resume"]
    assert runs.call("train", config, *options, "train.max_minutes=1e-9")[0] == 0
    assert lines(out)[-1]["step"] == 1
    assert runs.call("train", config, *options, "train.max_minutes=10")[0] == 0
    assert [row["step"] for row in lines(out)] == [1, 2, 3]


def interrupt(monkeypatch, at):
    """A Ctrl-C during the evaluation batch of that number; the list of the batches that were evaluated."""
    real, seen = DenseModel.losses_and_predictions, []

    def interrupted(model, batch, heads):
        seen.append(batch)
        if len(seen) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return real(model, batch, heads)

    monkeypatch.setattr(DenseModel, "losses_and_predictions", interrupted)
    return seen


@pytest.mark.parametrize(("at", "step"), [(1, 3), (6, 6), (8, 9)])
def test_ctrl_c_leaves_an_evaluation_which_the_resumed_run_makes_anew(tmp_path, shapes, alone, monkeypatch, at, step):
    """Three batches an evaluation: in the first of the first, in the last of the second, in the run's last one."""
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of("classification", shapes))
    undisturbed, out = alone("classification"), tmp_path / "run"
    seen = interrupt(monkeypatch, at)
    code, printed = runs.call("train", config, "--out", out)
    assert code == console.INTERRUPTED
    assert len(seen) == at, "batches were evaluated after the signal"
    assert f"stopped after step {step}; go on with the same command and --resume" in printed
    state = load(out / "last.pt")["training"]["state"]
    assert (state["step"], state["evaluation_due"], state["finished"]) == (step, True, False)
    assert [row["step"] for row in lines(out, "val")] == list(range(3, step, 3))
    monkeypatch.undo()

    # A kill between the evaluation's line and the checkpoint behind it: the line must not stand there twice.
    def killed(*_):
        raise DensekitError("killed")

    monkeypatch.setattr(RunFolder, "save_last", killed)
    assert "killed" in runs.refused("train", config, "--out", out, "--resume")
    assert lines(out, "val")[-1]["step"] == step
    monkeypatch.undo()
    assert runs.call("train", config, "--out", out, "--resume")[0] == 0
    runs.assert_same_run(undisturbed, out)


@pytest.mark.parametrize(("at", "step"), [(1, 3), (9, 9)])
def test_an_evaluation_that_fails_loses_no_step_and_is_made_anew(tmp_path, shapes, alone, monkeypatch, at, step):
    """Three batches an evaluation: in the first of the first, in the last of all."""
    tree = runs.config_of("classification", shapes, save_every=None)
    config, out = runs.write_config(tmp_path / "run.yaml", tree), tmp_path / "run"
    undisturbed = alone("classification", save_every=None)
    real, calls = DenseModel.losses_and_predictions, iter(range(1, 100))

    def fails(model, batch, heads):
        if next(calls) == at:
            raise RuntimeError("an operator that this machine lacks")
        return real(model, batch, heads)

    monkeypatch.setattr(DenseModel, "losses_and_predictions", fails)
    with pytest.raises(RuntimeError, match="this machine lacks"):
        runs.call("train", config, "--out", out)
    monkeypatch.undo()
    state = load(out / "last.pt")["training"]["state"]
    assert (state["step"], state["evaluation_due"], state["finished"]) == (step, True, False)
    assert [row["step"] for row in lines(out)] == list(range(1, step + 1))
    assert [row["step"] for row in lines(out, "val")] == list(range(3, step, 3))
    code, printed = runs.call("train", config, "--out", out, "--resume")
    assert code == 0
    assert f"going on from step {step} of 9" in printed
    runs.assert_same_run(undisturbed, out)


def test_early_stopping_ends_the_run_and_stays_ended(tmp_path, config):
    out = tmp_path / "run"
    options = ["--out", out, "--resume", "evaluation.patience=1", "train.optimizer.lr=1e-9", "train.steps=60"]
    assert runs.call("train", config, *options)[0] == 0
    ended = lines(out)[-1]["step"]
    assert ended < 60
    assert runs.call("train", config, *options)[0] == 0
    assert lines(out)[-1]["step"] == ended


# Ranks.


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_two_ranks_see_the_losses_of_one(tmp_path, shapes, norm):
    tree = runs.config_of("detection", shapes, steps=5, accumulate=1, ema=None)
    tree["model"]["backbone"] = {"name": "resnet8", "norm": norm}
    config = runs.write_config(tmp_path / "run.yaml", tree)
    rows = {}
    for ranks in (1, 2):
        out = tmp_path / f"ranks{ranks}"
        processes = runs.start("train", [config, "--out", out, "--device", "cpu"], tmp_path / "log", ranks=ranks)
        assert runs.finish(processes) == [0] * ranks, (tmp_path / "log").read_text()
        rows[ranks] = lines(out)
    for one, two in zip(rows[1], rows[2], strict=True):
        for name in ("loss", "norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-4), f"step {one['step']}: {name}"


@pytest.mark.parametrize("task", ["detection", "segmentation", "classification"])
def test_a_checkpoint_has_the_same_numbers_on_one_rank_and_on_two(tmp_path, shapes, task):
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of(task, shapes, steps=2, accumulate=1))
    assert runs.call("train", config, "--out", tmp_path / "run")[0] == 0
    numbers = {}
    for ranks in (1, 2):
        file = tmp_path / f"{ranks}.json"
        arguments = [tmp_path / "run" / "best.pt", "--json", file, "--device", "cpu"]
        assert runs.finish(runs.start("evaluate", arguments, tmp_path / "log", ranks=ranks)) == [0] * ranks
        numbers[ranks] = json.loads(file.read_text())
    losses = [n.pop("loss") for n in numbers.values()]
    parts = [n.pop("losses") for n in numbers.values()]
    assert numbers[1] == numbers[2]
    assert numbers[1]["images"] == 5
    assert set(METRICS[task]) <= numbers[1].keys(), "a metric that may choose the best checkpoint does not exist"
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert parts[0] == pytest.approx(parts[1], rel=1e-6)


def test_a_batch_that_the_ranks_can_not_share_is_refused(tmp_path, config):
    log = tmp_path / "log"
    arguments = [config, "--out", tmp_path / "run", "--device", "cpu", "train.batch_size=6"]
    assert set(runs.finish(runs.start("train", arguments, log, ranks=2))) <= {2, -9}
    assert "= 3 images can't be shared by 2 ranks; make it a multiple of 2" in log.read_text()
    assert not (tmp_path / "run").exists()


def test_a_bad_image_on_one_rank_ends_both_in_one_line_each(tmp_path, shapes):
    data = shutil.copytree(shapes, tmp_path / "data")
    (data / "images" / "train" / "000004.jpg").write_bytes(b"no image")
    config, log = runs.write_config(tmp_path / "run.yaml", runs.config_of("detection", data)), tmp_path / "log"
    arguments = [config, "--out", tmp_path / "run", "--device", "cpu", "data.workers=1"]
    assert runs.finish(runs.start("train", arguments, log, ranks=2)) == [2, 2], log.read_text()
    printed = log.read_text()
    assert "train/000004.jpg" in printed
    assert "lost another rank, whose own message says why" in printed
    assert "Traceback" not in printed


def test_a_loader_worker_that_is_killed_ends_the_run_in_one_line(tmp_path, config):
    out, log = tmp_path / "run", tmp_path / "log"
    processes = runs.start("train", [config, "--out", out, "train.steps=500", "data.workers=2"], log)
    while processes[0].is_alive() and not (out / "metrics.jsonl").exists():
        time.sleep(0.01)
    os.kill(runs.children(processes[0].pid)[0], signal.SIGKILL)
    assert runs.finish(processes) == [2], log.read_text()
    assert "error: DataLoader worker" in log.read_text()
    assert "lower data.workers" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.long
def test_several_threads_give_the_same_bits(tmp_path, config):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in ("one", "two"):
            arguments = ["train.steps=2", "train.batch_size=8", "train.precision=auto"]
            assert runs.call("train", config, "--out", tmp_path / name, *arguments)[0] == 0
    finally:
        torch.set_num_threads(threads)
    runs.assert_same_run(tmp_path / "one", tmp_path / "two")


# Losses that are not finite.


def test_a_loss_that_is_not_finite_leaves_a_bundle_that_replays(tmp_path, config):
    out = tmp_path / "run"
    line = runs.refused("train", config, "--out", out, "train.optimizer.lr=1e30", "train.schedule.warmup=0")
    (bundle,) = out.glob("bundle_step*_rank0.pt")
    step = int(bundle.name.split("step")[1].split("_")[0])
    assert f"step {step}: the loss or its gradient is not finite" in line
    assert f"tools/replay.py {bundle}" in line
    assert "images/train/0000" in line
    assert load(out / "last.pt")["made"]["step"] == step, "the last good checkpoint is that of the step before"
    code, printed = runs.call("replay", bundle, "--device", "cpu")
    assert code == 0
    assert f"step {step} on rank 0" in printed
    assert "first not finite: forward backbone." in printed
    assert "images/train/0000" in printed
    assert "not a bundle" in runs.refused("replay", out / "last.pt")


def _make_bad(monkeypatch, *bad_calls):
    """Let some forward passes, counted from 0, give a loss of NaN."""
    forward, count = DenseModel.forward, iter(range(10**6))

    def bad(model, batch):
        losses = forward(model, batch)
        if next(count) in bad_calls:
            losses = {name: value * float("nan") for name, value in losses.items()}
        return losses

    monkeypatch.setattr(DenseModel, "forward", bad)


def test_steps_that_are_not_finite_are_skipped_up_to_the_limit(tmp_path, config, monkeypatch):
    out = tmp_path / "run"
    _make_bad(monkeypatch, 2, 7)  # steps 1 and 3, of two micro-batches each
    code, printed = runs.call("train", config, "--out", out, "train.steps=5", "train.skip_non_finite=2")
    assert code == 0
    assert printed.count("the loss was not finite, step skipped (images ") == 2
    assert "step 1: the loss was not finite" in printed
    assert [row["step"] for row in lines(out) if row["loss"] is None] == [2, 4]
    content = load(out / "last.pt")
    assert content["training"]["state"]["skipped_steps"] == 2
    for state in (content["model"], content["training"]["model"]):
        assert all(bool(torch.isfinite(v).all()) for v in state.values() if v.is_floating_point())


def test_one_step_too_many_that_is_not_finite_stops_the_run(tmp_path, config, monkeypatch):
    _make_bad(monkeypatch, 2, 7)
    line = runs.refused("train", config, "--out", tmp_path / "run", "train.skip_non_finite=1")
    assert "step 3: the loss or its gradient is not finite" in line
    assert load(tmp_path / "run" / "last.pt")["made"]["step"] == 3


# The machine.


def test_out_of_memory_says_what_was_in_the_batch_and_what_to_change(tmp_path, config, monkeypatch):
    def hungry(model, batch, heads=None):
        torch.empty(2**50, dtype=torch.uint8)

    monkeypatch.setattr(DenseModel, "forward", hungry)
    line = runs.refused("train", config, "--out", tmp_path / "run")
    assert "out of memory in a training step on a batch of 2 x 3 x " in line
    assert "boxes an image, images " in line
    assert "train.batch_size" in line
    monkeypatch.undo()
    monkeypatch.setattr(DenseModel, "losses_and_predictions", hungry)
    line = runs.refused("train", config, "--out", tmp_path / "other")
    assert "out of memory while evaluating a batch of 2 x 3 x " in line
    assert "evaluation.batch_size" in line


def test_a_model_that_the_machine_can_not_hold_is_refused_before_the_first_batch(tmp_path, config):
    line = runs.refused("train", config, "--out", tmp_path / "run", "model.heads.main.pool_size=40000")
    assert "out of memory while building the model" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError()])
def test_memory_that_runs_out_anywhere_else_is_one_line(error, capsys, monkeypatch):
    def hungry(_):
        raise error

    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        console.run(hungry)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: out of memory (")


def test_a_full_disk_is_told_in_one_line_and_leaves_the_last_good_checkpoint(tmp_path, config):
    out = tmp_path / "run"
    assert runs.call("train", config, "--out", out, "train.max_minutes=1e-9")[0] == 0
    before = {name: (out / name).read_bytes() for name in ("last.pt", "best.pt")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        line = runs.refused("train", config, "--out", out, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(out / "last.pt") in line
    assert "could not be written" in line
    assert {name: (out / name).read_bytes() for name in before} == before
    assert not list(out.glob(".*.tmp"))


@pytest.mark.parametrize("name", ["last.pt", "metrics.jsonl"])
def test_no_space_left_says_so(tmp_path, config, monkeypatch, name):
    out = tmp_path / "run"
    target, real = str(out / name), os.fsync

    def full(handle):
        where = os.readlink(f"/proc/self/fd/{handle}")
        if f"/.{name}." in where or where == target:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    line = runs.refused("train", config, "--out", out)
    assert f"{target} could not be written: the disk is full; free some space" in line


def test_a_folder_that_can_not_be_written_is_named(tmp_path, config):
    if not Path("/sys/kernel").is_dir():
        pytest.skip("needs a folder in which even root may not write")
    line = runs.refused("train", config, "--out", "/sys/kernel/densekit-run")
    assert "/sys/kernel/densekit-run" in line
    assert "choose a folder that you may write to" in line


def test_two_processes_do_not_train_in_one_folder(tmp_path, config):
    out = tmp_path / "run"
    first = runs.start("train", [config, "--out", out, "train.steps=500", "--device", "cpu"], tmp_path / "first.log")
    try:
        while first[0].is_alive() and not (out / "metrics.jsonl").exists():
            time.sleep(0.01)
        second = runs.start("train", [config, "--out", out, "train.steps=500", "--resume"], tmp_path / "second.log")
        assert runs.finish(second) == [2]
        assert f"{out}: another process writes there" in (tmp_path / "second.log").read_text()
    finally:
        runs.kill(first)
    third = runs.start(
        "train", [config, "--out", out, "train.steps=500", "--resume", "train.max_minutes=1e-9"], tmp_path / "third.log"
    )
    assert runs.finish(third) == [0], "a killed run must not leave its claim behind"
