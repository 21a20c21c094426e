"""Precision over recall and the confusion matrix, in the run folder and beside evaluate.py's samples."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.tools import runs


@pytest.mark.parametrize("task", ["detection", "segmentation", "classification"])
def test_a_run_leaves_the_pictures_of_its_best_numbers(checkpoints, task):
    found = {path.name for path in checkpoints[task].parent.glob("*.png")}
    expected = {"confusion.png", "curves.png"} | ({"precision_recall.png"} if task == "detection" else set())
    assert found == expected


def test_evaluate_draws_what_it_counted_and_writes_it_down(checkpoints, tmp_path):
    code, printed = runs.call(
        *("evaluate", checkpoints["detection"], "--json", tmp_path / "n.json", "--pictures", tmp_path / "pictures"),
    )
    assert code == 0, printed
    assert {"confusion.png", "precision_recall.png"} <= {path.name for path in (tmp_path / "pictures").iterdir()}
    numbers = json.loads((tmp_path / "n.json").read_text())
    for name, row in numbers["per_class"].items():
        curve = numbers["curves"]["precision"][name]
        assert (curve is None) == (row["AP50"] is None)
        assert curve is None or np.mean(curve) == pytest.approx(row["AP50"])
    objects = [row["objects"] for row in numbers["per_class"].values()]
    assert [sum(row) for row in numbers["confusion"][:-1]] == objects
    assert "F1_threshold" in printed
