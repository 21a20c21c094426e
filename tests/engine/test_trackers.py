"""W&B and MLflow follow a run, by their own files, without an account; each is skipped where it is not installed."""

from __future__ import annotations

import json
import math
import sys

import pytest

from densekit.config import parse
from densekit.engine.record import Record
from densekit.errors import DensekitError
from densekit.files import write_text
from tests.engine.test_fine_tuning import config_of


def record(folder, name, step=0):
    return Record(folder, step=step, tensorboard=False, trackers=[name])


@pytest.fixture
def folder(tmp_path):
    write_text(tmp_path / "config.yaml", "seed: 5\n")
    return tmp_path


def interrupted(folder, name):
    """A run that is left after two steps, and then goes on to the end."""
    first = record(folder, name)
    first.write("train", 1, {"loss": 2.0, "table": {"a": 1.0}})
    first.write("val", 2, {"AP": math.nan, "AP50": 0.5})
    first.close()  # as the end of its process does
    again = record(folder, name, step=2)
    again.write("train", 3, {"loss": 1.0})
    again.close()
    return json.loads((folder / "trackers.json").read_text())[name]


def test_mlflow_has_one_run_with_all_numbers(folder, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = interrupted(folder, "mlflow")
    client = mlflow.MlflowClient((folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("densekit").experiment_id
    (found,) = client.search_runs([experiment])
    assert (found.info.run_id, found.info.status) == (run, "FINISHED")
    assert [(m.step, m.value) for m in client.get_metric_history(run, "train/loss")] == [(1, 2.0), (3, 1.0)]
    assert found.data.metrics == {"train/loss": 1.0, "val/AP50": 0.5}


def test_a_run_that_mlflow_does_not_know_is_one_line(folder, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_text(folder / "trackers.json", json.dumps({"mlflow": "0" * 32}))
    with pytest.raises(DensekitError, match=r"mlflow: .*not found; correct MLFLOW_TRACKING_URI"):
        record(folder, "mlflow")


def test_wandb_goes_on_in_the_same_run_without_an_account(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = interrupted(folder, "wandb")
    files = list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert {file.name for file in files} == {f"run-{run}.wandb"}
    held = b"".join(file.read_bytes() for file in files)
    assert b"train/loss" in held
    assert b"val/AP50" in held
    assert b"val/AP\n" not in held


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_told_with_its_extra(folder, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        DensekitError, match=rf"log.trackers: {name} is not installed .*pip install 'densekit\[{name}\]'"
    ):
        record(folder, name)


def test_another_tracker_is_refused():
    tree = {**config_of().model_dump(mode="json"), "log": {"trackers": ["comet"]}}
    with pytest.raises(DensekitError, match=r"log\.trackers\.0: input should be 'wandb' or 'mlflow', not 'comet'"):
        parse(tree, "it")
