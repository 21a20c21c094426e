"""Tools that look at one head of a checkpoint with several: by name, or they say which."""

from __future__ import annotations

import pytest
import torch

from densekit import DensekitError, Predictor, build
from densekit import config as configs
from densekit.export import files
from tests.tools import joint, runs


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, shapes):
    """Of both heads, in the classes of the shapes, and of the segmenter alone."""
    folder = tmp_path_factory.mktemp("joint")
    tree = joint.two_heads(shapes)
    tissue = runs.config_of("segmentation", shapes)["data"]
    tree["data"] = {"cells": {**tree["data"], "heads": ["boxes"]}, "tissue": {**tissue, "heads": ["masks"]}}
    config = configs.parse(tree, "test").of_heads(["masks"])
    masks = build.dataset(config, "train", training=False).classes
    model = joint.write_joint(folder / "both.pt", tree, {**joint.CLASSES, "masks": masks})
    alone = joint.write_alone(folder / "masks.pt", model, {**tree, "data": tissue}, "masks")
    return {"both": folder / "both.pt", "masks": alone}


def test_scores_of_a_head_are_calibrated_by_its_name_and_the_others_stay(checkpoints, tmp_path):
    both = tmp_path / "both.pt"
    both.write_bytes(checkpoints["both"].read_bytes())
    code, printed = runs.call("calibrate", both, "--head", "masks")
    assert code == 0, printed
    (tmp_path / "masks.pt").write_bytes(checkpoints["masks"].read_bytes())
    assert runs.call("calibrate", tmp_path / "masks.pt")[0] == 0
    alone = torch.load(tmp_path / "masks.pt", weights_only=True)["calibration"]
    content = torch.load(both, weights_only=True)
    assert content["calibration_by_head"] == {"masks": alone}
    assert "calibration" not in content
    assert Predictor(both).model.calibrations.keys() == {"masks"}


def test_a_tool_for_one_head_takes_the_named_one_or_says_what_to_do(checkpoints, tmp_path, monkeypatch):
    out = tmp_path / "both.pt2"
    line = runs.refused("report", checkpoints["both"], "--head", "mask", "--out", tmp_path / "report.html")
    assert "there is no head 'mask'; did you mean 'masks'" in line

    def made(graph, *_):
        raise DensekitError(f"made of {list(graph.model.heads)} with {graph.model.classes.names}")

    monkeypatch.setattr(files, "made", made)
    line = runs.refused("export_model", checkpoints["both"], "--head", "masks", "--out", out)
    assert f"made of ['masks'] with {Predictor(checkpoints['masks']).model.classes.names}" in line


def test_the_doctor_says_which_data_set_of_a_config_it_looks_at(checkpoints, tmp_path):
    tree = torch.load(checkpoints["both"], weights_only=True)["config"]
    _, printed = runs.call("doctor", runs.write_config(tmp_path / "both.yaml", tree))
    assert "both.yaml: this is data.cells; data.tissue: give its own json or folder to examine it" in printed
