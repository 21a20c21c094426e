from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from densekit.engine import checkpoint
from tests.tools import runs

TASKS = ("detection", "segmentation", "classification")
HOSTILE = '<script>alert("1")</script>&amp;'
HOSTILE_FILE = "<img src=x onerror=alert(2)>.jpg"


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


@pytest.fixture(scope="session")
def hostile(checkpoints, tmp_path_factory, shapes):
    """The report of a detector with a class and files whose names are HTML."""
    folder = tmp_path_factory.mktemp("hostile")
    source = json.loads((shapes / "annotations" / "val.json").read_text())
    content = checkpoint.load(checkpoints["detection"])
    old = content["classes"]["names"][0]
    content["classes"]["names"][0] = HOSTILE
    for category in source["categories"]:
        category["name"] = HOSTILE if category["name"] == old else category["name"]
    (folder / "images").mkdir()
    for image in source["images"]:
        (folder / "images" / f"{image['id']}{HOSTILE_FILE}").write_bytes(
            (shapes / "images" / image["file_name"]).read_bytes()
        )
        image["file_name"] = f"{image['id']}{HOSTILE_FILE}"
    (folder / "val.json").write_text(json.dumps(source))
    checkpoint.save(folder / "best.pt", content)
    where = (f"data.val.annotations={folder / 'val.json'}", f"data.val.images={folder / 'images'}")
    code, said = runs.call("report", folder, *where, "--pictures", 3)
    assert code == 0, said
    return folder / "report.html"
