from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tests.tools import runs

TASKS = ("detection", "segmentation", "classification")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A generated data set of a few tiny images, for all three tasks."""
    return runs.make_data(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, shapes):
    """A checkpoint of each task, one step old; the detector keeps boxes of any score."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for task in TASKS:
        tree = runs.config_of(task, shapes, steps=1)
        if task == "detection":
            tree["model"]["heads"]["main"]["score_threshold"] = 0.0
        assert runs.call("train", runs.write_config(folder / f"{task}.yaml", tree), "--out", folder / task)[0] == 0
    return {task: folder / task / "best.pt" for task in TASKS}


@pytest.fixture(scope="session")
def alone(tmp_path_factory, shapes):
    """Folder, to be read alone, of a run that nothing disturbed: of a task with ``train`` options of ``config_of``."""

    @functools.cache
    def run(task: str, **train: object) -> Path:
        folder = tmp_path_factory.mktemp("alone")
        config = runs.write_config(folder / "run.yaml", runs.config_of(task, shapes, **train))
        assert runs.call("train", config, "--out", folder / "run")[0] == 0
        return folder / "run"

    return run
