"""calibrate.py writes into the checkpoint and nothing else in it changes; predict.py reads scores so, and says it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from densekit import Predictor
from densekit.calibrate import calibrate, store
from densekit.engine import checkpoint, distributed
from densekit.errors import DensekitError
from tests.tools import runs
from tests.tools.conftest import TASKS


@pytest.fixture(scope="module")
def calibrated(checkpoints, tmp_path_factory):
    """Copies of the checkpoints, calibrated."""
    folder, said = tmp_path_factory.mktemp("calibrated"), {}
    for task in TASKS:
        shutil.copy(checkpoints[task], folder / f"{task}.pt")
        options = ("--recall", 0.5) if task == "detection" else ()
        code, said[task] = runs.call("calibrate", folder / f"{task}.pt", *options)
        assert code == 0, said[task]
    return folder, said


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return one == other


@pytest.mark.parametrize("task", TASKS)
def test_nothing_else_in_the_checkpoint_changes(checkpoints, calibrated, task):
    folder, said = calibrated
    before, after = checkpoint.load(checkpoints[task]), checkpoint.load(folder / f"{task}.pt")
    held = after.pop("calibration")
    assert same(before, after)
    assert len(held["temperatures"]) == (len(before["classes"]["names"]) if task == "detection" else 1)
    assert "expected calibration error" in said[task]


def test_predict_reads_scores_so_says_it_and_leaves_it_where_asked(calibrated, shapes, tmp_path):
    content = checkpoint.load(calibrated[0] / "detection.pt")
    count = len(content["classes"]["names"])
    content["calibration"] |= {"temperatures": [2.0, *[0.5] * (count - 1)], "cuts": [0.9] * count}
    checkpoint.save(tmp_path / "it.pt", content)
    arguments = ("predict", tmp_path / "it.pt", shapes / "images" / "val", "--no-pictures", "--out")
    code, said = runs.call(*arguments, tmp_path / "a")
    assert code == 0
    assert "scores are calibrated on val" in said
    assert "boxes (0 with a score of at least their class's" in said
    raw = runs.call(*arguments, tmp_path / "b", "--uncalibrated")[1]
    assert "calibrated on" not in raw
    assert "with a score of at least 0.5" in raw
    first, second = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in "ab")
    assert len(first) == len(second) > 0
    found = {(row["image_id"], *row["bbox"], row["category_id"]): row["score"] for row in second}
    temperatures = dict(zip(content["classes"]["ids"], content["calibration"]["temperatures"]))
    for row in first:
        score = found[row["image_id"], *row["bbox"], row["category_id"]]
        logit = np.log(score / (1 - score)) / temperatures[row["category_id"]]
        assert row["score"] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-4)
    for image in {row["image_id"] for row in first}:
        scores = [row["score"] for row in first if row["image_id"] == image]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_probabilities_are_calibrated_and_what_is_predicted_is_not_changed(calibrated, shapes, tmp_path, task):
    content = checkpoint.load(calibrated[0] / f"{task}.pt")
    content["calibration"]["temperatures"] = [3.0]
    checkpoint.save(tmp_path / "it.pt", content)
    image = next((shapes / "images" / "val").glob("*.jpg"))
    read, raw = (Predictor(tmp_path / "it.pt", calibrated=c)(image, probabilities=True) for c in (True, False))
    assert np.array_equal(read.masks, raw.masks) if task == "segmentation" else read.best == raw.best
    expected = torch.softmax(torch.from_numpy(raw.probabilities).log() / 3, 0)
    np.testing.assert_allclose(read.probabilities, expected, rtol=1e-4)


def test_results_are_drawn_from_the_cuts_of_their_classes(calibrated, shapes, tmp_path):
    content = checkpoint.load(calibrated[0] / "detection.pt")
    count = len(content["classes"]["names"])
    content["calibration"] |= {"temperatures": [1.0] * count, "cuts": [0.0, *[1.0] * (count - 1)]}
    checkpoint.save(tmp_path / "it.pt", content)
    result = Predictor(tmp_path / "it.pt")(next((shapes / "images" / "val").glob("*.jpg")))
    assert set(result.ids) > {content["classes"]["ids"][0]}
    assert set(result.above().ids) == {content["classes"]["ids"][0]}
    assert len(result.above(0.0)) == len(result)


def test_a_checkpoint_that_was_replaced_meanwhile_is_left_alone(checkpoints, tmp_path):
    path = shutil.copy(checkpoints["classification"], tmp_path / "it.pt")
    found = calibrate(path, [], "val", distributed.join("cpu"))
    checkpoint.save(path, {**checkpoint.load(path), "made": {"step": 7}})
    before = path.read_bytes()
    with pytest.raises(DensekitError, match=r"it.pt was replaced while it was measured; let its run end"):
        store(found)
    assert path.read_bytes() == before


def test_options_for_another_task_are_refused_before_anything_is_written(checkpoints, tmp_path):
    path = shutil.copy(checkpoints["classification"], tmp_path / "it.pt")
    before = path.read_bytes()
    assert "are for detectors" in runs.refused("calibrate", path, "--precision", 0.9)
    assert path.read_bytes() == before
