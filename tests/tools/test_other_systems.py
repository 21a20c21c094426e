"""The tools as they run where there are no forks, no Unix calls, and where open files are held fast."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from densekit.doctor.parallel import over_files
from densekit.engine.record import read
from tests import systems
from tests.tools import runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")


@pytest.fixture
def windows(monkeypatch):
    systems.as_windows(monkeypatch)


def test_training_and_what_follows_run_on_windows_to_the_same_files(shapes, tmp_path, monkeypatch):
    tree = runs.config_of("classification", shapes, steps=2, save_every=1)
    tree["log"]["csv"] = True
    config = runs.write_config(tmp_path / "run.yaml", tree)
    linux, out = tmp_path / "linux", tmp_path / "windows"
    assert runs.call("train", config, "--out", linux, "--device", "cpu")[0] == 0
    systems.as_windows(monkeypatch)
    for _ in range(2):  # the second goes on with the finished run
        code, printed = runs.call("train", config, "--out", out, "--device", "cpu", "--resume")
        assert code == 0, printed
    for name in ("metrics.jsonl", "metrics.csv", "config.yaml"):
        assert (out / name).read_bytes() == (linux / name).read_bytes()
    assert all("memory_gib" not in line for line in read(out / "timing.jsonl"))
    assert runs.call("evaluate", out / "best.pt", "--json", tmp_path / "numbers.json")[0] == 0
    assert json.loads((tmp_path / "numbers.json").read_text("utf-8"))["images"] == 5
    assert runs.call("predict", out / "best.pt", shapes / "images/val", "--out", tmp_path / "predicted")[0] == 0
    assert len(json.loads((tmp_path / "predicted" / "predictions.json").read_text("utf-8"))) == 5


def test_a_detector_trains_on_windows(shapes, tmp_path, windows):
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of("detection", shapes, steps=1))
    code, printed = runs.call("train", config, "--out", tmp_path / "run", "--device", "cpu")
    assert code == 0, printed
    assert (tmp_path / "run" / "best.pt").is_file()


def test_features_are_exported_and_verified_on_windows(shapes, tmp_path, windows):
    command = ["--backbone", "resnet8", "--images", shapes / "images/val", "--levels", "c4", "--workers", 1]
    for extra in ([], ["--verify"], ["--format", "npy", "--dtype", "float32"]):
        code, printed = runs.call("export_features", *command, "--out", tmp_path / f"store{len(extra) // 3}", *extra)
        assert code == 0, printed
    assert list((tmp_path / "store1").rglob("*.npy"))


def _halved(value):
    return value // 2


def test_the_doctor_shares_its_files_out_to_processes_that_start_anew(monkeypatch):
    systems.without_fork(monkeypatch)
    results = over_files(_halved, list(range(60)), "trying", lambda _: -1, processes=1, shown=False)
    assert results == [v // 2 for v in range(60)]
    results = over_files(np.sign, list(range(-30, 30)), "trying", lambda _: -1, processes=2, shown=False)
    assert results == [-1] * 30 + [0] + [1] * 29


def test_the_doctor_finds_the_same_on_windows(shapes, tmp_path, windows):
    code, printed = runs.call(
        "doctor", shapes / "annotations/train.json", "--images", shapes / "images", "--json", tmp_path / "d.json"
    )
    assert code in (0, 3), printed
    assert json.loads((tmp_path / "d.json").read_text("utf-8"))
