"""Run folders: one run each, resumed with the same config; plans, records and signals."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch
import yaml
from torch import nn

from densekit import config as configs
from densekit.engine import guard
from densekit.engine.distributed import World
from densekit.engine.guard import Stop, pack_batch, unpack_batch
from densekit.engine.optim import AveragedModel, make_optimizer, make_schedule
from densekit.engine.plan import Plan, choose_metric
from densekit.engine.record import Record, read
from densekit.engine.run_folder import RunFolder, RunState
from densekit.engine.step import TrainStep
from densekit.types import Batch, BoxTargets, Classes, DensekitError, Targets

WORLD = World(0, 1, 1, torch.device("cpu"))
CONFIG = {"seed": 0, "train": {"lr": 0.1, "max_minutes": None}, "log": {"every": 10}, "data": {"workers": 2}}


def open_folder(path, config=CONFIG, resume=False):
    return RunFolder(path, yaml.safe_dump(config), resume=resume, world=WORLD)


def make_step(average=True, momentum=0.9):
    model = nn.Linear(3, 2)
    model.classes_by_head = {"head": Classes(("a", "b"), (1, 2))}
    groups = [{"params": list(model.parameters()), "lr": 0.1, "base_lr": 0.1}]
    optimizer = make_optimizer("sgd", groups, momentum=momentum)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    averaged = AveragedModel(model, 0.9) if average else None
    return TrainStep(model, optimizer, make_schedule("constant", 9), world=WORLD, seed=0, average=averaged)


@pytest.mark.parametrize("average", [True, False])
def test_weights_optimiser_average_and_state_come_back(tmp_path, average):
    step, other = make_step(average), make_step(average)
    state = RunState(7, 1.5, 0.25, 6, 1, 2, {"a.jpg: broken": 3})
    open_folder(tmp_path).save_last(step, state)
    found, notes = open_folder(tmp_path, resume=True).resume(other)
    assert (found, notes) == (state, [])
    for one, two in zip(step.model.parameters(), other.model.parameters()):
        assert torch.equal(one, two)
        buffers = [s.optimizer.state[p]["momentum_buffer"] for s, p in ((step, one), (other, two))]
        assert torch.equal(*buffers)
    if average:
        assert torch.equal(step.average.model.weight, other.average.model.weight)
    assert float(other._skipped) == 2


def test_a_folder_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    assert open_folder(tmp_path / "new", resume=True).resume(make_step()) == (RunState(), [])


def test_a_run_on_another_number_of_ranks_is_told(tmp_path):
    open_folder(tmp_path).save_last(make_step(), RunState(step=1))
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    content["made"]["ranks"] = 8
    torch.save(content, tmp_path / "last.pt")
    assert "on 8 ranks and goes on with 1" in open_folder(tmp_path, resume=True).resume(make_step())[1][0]


def test_a_checkpoint_whose_state_does_not_fit_is_refused(tmp_path):
    open_folder(tmp_path).save_last(make_step(), RunState(step=1))
    whole = torch.load(tmp_path / "last.pt", weights_only=True)
    for key, value in (("state", {"stepp": 1}), ("optimizer", {}), ("optimizer", None), ("state", None)):
        torch.save({**whole, "training": {**whole["training"], key: value}}, tmp_path / "last.pt")
        with pytest.raises(DensekitError, match="does not fit"):
            open_folder(tmp_path, resume=True).resume(make_step())
    torch.save({k: v for k, v in whole.items() if k != "training"}, tmp_path / "last.pt")
    with pytest.raises(DensekitError, match="holds no training state"):
        open_folder(tmp_path, resume=True).resume(make_step())


def test_another_config_is_refused_with_the_key_named_unless_it_changes_no_weights(tmp_path):
    open_folder(tmp_path)
    with pytest.raises(DensekitError, match="holds another run; add --resume"):
        open_folder(tmp_path)
    with pytest.raises(DensekitError, match=r"train\.lr was 0\.1 and is now 0\.2; use the same"):
        open_folder(tmp_path, {**CONFIG, "train": {"lr": 0.2, "max_minutes": 5}}, resume=True)
    with pytest.raises(DensekitError, match=r"\(and 1 more\)"):
        open_folder(tmp_path, {"train": {"lr": 0.1}, "log": {"every": 10}, "new": 1}, resume=True)
    allowed = {**CONFIG, "train": {"lr": 0.1, "max_minutes": 5}, "log": {"every": 1}, "data": {"workers": 0}}
    open_folder(tmp_path, allowed, resume=True)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == allowed


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "\x00", "3"])
def test_a_saved_config_that_is_none_any_more_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DensekitError, match="not a config any more"):
        open_folder(tmp_path, resume=True)


def test_checkpoints_without_a_config_are_not_touched(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"someone's")
    with pytest.raises(DensekitError, match="holds checkpoints but no config"):
        open_folder(tmp_path, resume=True)


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    (tmp_path / ".last.pt.abc.tmp").write_bytes(b"half")
    (tmp_path / "notes.tmp").write_text("mine")
    open_folder(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*tmp")) == ["notes.tmp"]
    assert not (tmp_path / ".last.pt.abc.tmp").exists()


def test_numbers_in_the_best_checkpoint_load_without_running_code(tmp_path):
    np = pytest.importorskip("numpy")
    folder = open_folder(tmp_path)
    folder.save_best(make_step().model, RunState(), {"AP": np.float64(0.5), "n": 3, "per_class": {}, "x": None})
    assert torch.load(folder.best, weights_only=True)["numbers"] == {"AP": 0.5, "n": 3}


# Plans.


def make_plan(**options):
    return Plan(**{"steps": 10, "steps_per_epoch": 3, "evaluate_every": 3, "metric": "AP", **options})


def test_evaluations_and_checkpoints_come_when_they_should():
    plan = make_plan(save_every=2)
    assert [s for s in range(1, 11) if plan.evaluates(s)] == [3, 6, 9, 10]
    assert [s for s in range(1, 11) if plan.saves(s)] == [2, 3, 4, 6, 8, 9, 10]
    assert [s for s in range(1, 11) if make_plan().saves(s)] == [3, 6, 9, 10]


def judged(plan, values):
    state, better = RunState(), []
    for number, value in enumerate(values):
        state.step = number
        better.append(plan.judge({plan.metric: value}, state))
    return state, better


def test_the_best_is_the_highest_or_the_lowest_loss_and_never_nan():
    state, better = judged(make_plan(), [0.2, 0.1, math.nan, 0.3, math.inf, None])
    assert (state.best, state.best_step, better) == (0.3, 3, [True, False, False, True, False, False])
    state, better = judged(make_plan(metric="loss"), [2.0, 3.0, -math.inf, 1.0])
    assert (state.best, better) == (1.0, [True, False, False, True])


def test_while_the_metric_is_not_defined_the_newest_weights_are_kept_as_no_best():
    state, kept = judged(make_plan(patience=1), [None, math.nan, None])
    assert (state.best, state.best_step, state.without_better, kept) == (None, 2, 0, [True] * 3)
    assert not state.finished, "what is not defined uses no patience"
    state, kept = judged(make_plan(), [None, 0.0, None, 0.5])
    assert (state.best, state.best_step, kept) == (0.5, 3, [True, True, False, True])
    state, kept = judged(make_plan(metric="loss"), [math.nan, 5.0])
    assert (state.best, kept) == (5.0, [True, True])


def test_a_metric_that_is_not_defined_is_said_without_a_number(tmp_path):
    plan = make_plan()
    state = RunState(step=3)
    chosen = plan.judge({"AP": None}, state)
    assert plan.verdict({"AP": None}, state, chosen).endswith(
        "AP - (not defined; best.pt takes these weights until it is)"
    )
    assert "AP was not defined in any evaluation: best.pt holds step 3's weights" in plan.farewell(state, tmp_path)
    state.step = 6
    assert plan.verdict({"AP": 0.25}, state, plan.judge({"AP": 0.25}, state)).endswith("AP 0.2500 (the best so far)")
    state.step = 9
    assert plan.verdict({"AP": None}, state, plan.judge({"AP": None}, state)).endswith(
        "AP - (not defined; best 0.2500 at step 6)"
    )
    assert "best AP 0.2500 at step 6;" in plan.farewell(state, tmp_path)


def test_patience_ends_the_run():
    plan = make_plan(patience=2)
    assert not judged(plan, [0.3, 0.2])[0].finished
    state = judged(plan, [0.3, 0.2, 0.3])[0]
    assert state.finished
    assert plan.is_over(state)
    assert not plan.is_over(judged(plan, [0.3, 0.2, 0.4, 0.1])[0])
    assert plan.is_over(RunState(step=10))


DETECTOR = {"": ("detection", ())}


def test_a_metric_that_does_not_exist_is_refused():
    assert choose_metric(DETECTOR, None) == "AP"
    assert choose_metric(DETECTOR, "AR7", 7) == "AR7"
    assert choose_metric({"": ("classification", ())}, "loss") == "loss"
    assert choose_metric({"": ("detection", ["mask_"])}, "mask_AP50") == "mask_AP50"
    with pytest.raises(DensekitError, match="detection has no number 'mask_AP'"):
        choose_metric(DETECTOR, "mask_AP")
    with pytest.raises(
        DensekitError, match=r"evaluation\.metric: segmentation has no number 'miou'; did you mean 'mIoU"
    ):
        choose_metric({"": ("segmentation", ())}, "miou")
    with pytest.raises(DensekitError, match="gives no number 'AP'"):
        make_plan().value({"mIoU": 0.5})


# Records.


def test_lines_behind_the_checkpoint_and_half_a_line_are_cut_on_resume(tmp_path):
    record = Record(tmp_path, tensorboard=False)
    for step in range(1, 6):
        record.write("train", step, {"loss": step / 3})
    whole = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    again = Record(tmp_path, step=3, tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(whole[:3])
    again.write("train", 4, {"loss": 4 / 3})
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(whole[:4])
    Record(tmp_path, step=0, tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("garbage", [b"\xff\xfe", b"3\n", b'{"kind": 1}\n', b'{"step": "x"}\n', b"[" * 50])
def test_garbage_behind_the_lines_is_no_reason_to_fail(tmp_path, garbage):
    good = {"kind": "train", "step": 1, "loss": 0.1}
    (tmp_path / "metrics.jsonl").write_bytes(json.dumps(good).encode() + b"\n" + garbage)
    assert read(tmp_path / "metrics.jsonl") == [good]
    Record(tmp_path, step=1, tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(good) + "\n"


def test_numbers_that_json_does_not_know_are_null(tmp_path):
    Record(tmp_path, tensorboard=False).write("val", 1, {"AP": math.nan, "rows": {"a": [math.inf, 1.0]}})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "kind": "val", "step": 1, "AP": None, "rows": {"a": [None, 1.0]}
    }  # fmt: skip


def test_other_ranks_write_nothing(tmp_path):
    record = Record(tmp_path, enabled=False)
    record.write("train", 1, {"loss": 1.0})
    record.flush()
    record.close()
    assert not list(tmp_path.iterdir())


# Signals and bundles.


def test_the_first_signal_asks_and_the_second_stops_at_once(monkeypatch, capfd):
    left = []
    monkeypatch.setattr(guard.os, "_exit", left.append)
    before = signal.getsignal(signal.SIGTERM)
    with Stop(WORLD) as stop:
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked()
        assert left == []
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [128 + signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is before
    assert capfd.readouterr().err == "stopping after this step; a second signal stops at once\n"


def test_the_launcher_s_copy_of_a_signal_is_no_second_one(monkeypatch):
    left, now = [], [100.0]
    monkeypatch.setattr(guard.os, "_exit", left.append)
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    with Stop(World(1, 2, 2, torch.device("cpu"))) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.asked(), left) == (True, [])
        now[0] += 3
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [130]


def test_a_batch_packed_and_unpacked_is_the_same():
    boxes = BoxTargets(torch.rand(2, 8, 4), torch.ones(2, 8).long(), *(torch.rand(2, 8) > 0.5 for _ in range(2)))
    for targets in (Targets(boxes), Targets(masks=torch.ones(2, 8, 8).long()), None):
        sizes = torch.full((2, 2), 8)
        batch = Batch(torch.ones(2, 3, 8, 8), sizes, sizes, ["a", 3], torch.arange(2), targets, skipped=["x"])
        assert str(unpack_batch(pack_batch(batch))) == str(batch)
    with pytest.raises(DensekitError, match="not of this densekit's form"):
        unpack_batch({"images": 3})


def test_a_run_from_before_a_key_existed_goes_on_with_its_default(tmp_path):
    written = {
        "model": {"backbone": {"name": "resnet18"}, "heads": {"main": {"name": "classifier"}}},
        "data": {"train": {"name": "image_folder"}},
        "train": {"steps": 1, "optimizer": {"lr": 0.1}},
    }
    full = yaml.safe_load(configs.dump(configs.parse(written, "a.yaml")))
    older = {**full, "data": {key: value for key, value in full["data"].items() if key != "range"}}
    open_folder(tmp_path, older)
    open_folder(tmp_path, full, resume=True)
    with pytest.raises(DensekitError, match=r"data.range was None and is now \[0.0, 4095.0\]"):
        open_folder(tmp_path, {**full, "data": {**full["data"], "range": [0.0, 4095.0]}}, resume=True)
