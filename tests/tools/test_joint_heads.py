"""Tools that look at one head of a checkpoint with several: by name, or they say which."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from densekit import DensekitError, Predictor, build
from densekit.comparison import chosen_number
from densekit.export import files
from densekit.infer.predict import Options
from tests.tools import joint, runs


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, shapes):
    """Of both heads, and of the segmenter alone."""
    folder = tmp_path_factory.mktemp("joint")
    tree = joint.two_heads(shapes)
    tissue = runs.config_of("segmentation", shapes)["data"]
    tree["data"] = {"cells": {**tree["data"], "heads": ["boxes"]}, "tissue": {**tissue, "heads": ["masks"]}}
    model = joint.write_joint(folder / "both.pt", tree, joint.classes_in(tree))
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


def test_the_doctor_examines_all_data_sets_of_a_config_or_the_one_that_is_chosen(checkpoints, tmp_path):
    tree = torch.load(checkpoints["both"], weights_only=True)["config"]
    tree["data"]["tissue"]["val"] = dict(tree["data"]["tissue"]["train"])
    config = runs.write_config(tmp_path / "both.yaml", tree)
    reports = {}
    for name in ("cells", "tissue"):
        code, _ = runs.call("doctor", config, "--set", name, "--json", tmp_path / f"{name}.json")
        reports[name] = json.loads((tmp_path / f"{name}.json").read_text())
        assert code == reports[name]["exit_code"]
    found = {name: {defect["code"] for defect in report["defects"]} for name, report in reports.items()}
    assert reports["cells"]["annotations"] > 0
    assert (reports["tissue"]["annotations"], reports["tissue"]["images"]) == (0, 13)
    assert found["tissue"] - found["cells"]  # the same images to learn from and to evaluate on
    code, printed = runs.call("doctor", config)
    assert code == max(report["exit_code"] for report in reports.values())
    for name, codes in found.items():
        _, _, own = printed.partition(f"data.{name}:\n")
        assert all(one in own for one in codes)
    assert "choose by --set: cells, tissue" in runs.refused("doctor", config, "--html", tmp_path / "a.html")
    assert "has no data set 'cell'; did you mean 'cells'?" in runs.refused("doctor", config, "--set", "cell")


def test_the_doctor_examines_each_kind_of_labels_of_one_set_of_images(shapes, tmp_path):
    tree = joint.two_heads(shapes)
    boxes, masks = (runs.config_of(task, shapes)["data"]["train"] for task in ("detection", "segmentation"))
    masks["masks"] = f"{shapes}/no_masks"
    tree["data"] = {**tree["data"], "train": {"name": "joint", "labels": [boxes, masks]}}
    assert runs.call("doctor", runs.write_config(tmp_path / "a.yaml", tree), "--json", tmp_path / "a.json")[0] == 4
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["annotations"] > len(json.loads((shapes / "annotations" / "val.json").read_text())["annotations"])
    assert any("no_masks" in defect["message"] + defect["file"] for defect in report["defects"])


def test_the_runs_of_a_comparison_are_of_one_head_each_whatever_its_name(checkpoints, tmp_path):
    arguments = (checkpoints["both"], checkpoints["masks"], "--bootstrap", 5, "--json", tmp_path / "a.json")
    code, printed = runs.call("compare", *arguments, "--head", "masks")
    assert code == 0, printed
    rows = {tuple(row["name"]): row["by"] for row in json.loads((tmp_path / "a.json").read_text())["numbers"]}
    assert rows["mIoU",] == 0
    line = runs.refused("compare", *arguments)
    assert "can't be compared: one does detection, the other segmentation" in line
    assert "give it once for all, or once a run" in runs.refused("compare", *arguments, *["--head", "masks"] * 3)


def test_a_number_of_another_head_is_not_what_a_head_is_compared_by(checkpoints):
    _, config = build.from_checkpoint(checkpoints["masks"])
    for asked, number in (("masks.dice", "dice"), ("boxes.AP", "mIoU"), (None, "mIoU"), ("loss", "mIoU")):
        chosen = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"metric": asked})})
        run = SimpleNamespace(model=SimpleNamespace(heads=["masks"], task="segmentation"), config=chosen)
        assert chosen_number(run) == number


def test_several_heads_are_measured_on_mirrored_and_scaled_copies_as_each_alone(checkpoints, tmp_path):
    options = ("--flips", "--bootstrap", "0", "--json", tmp_path / "a.json")

    def numbers(name, *more):
        code, printed = runs.call("evaluate", checkpoints[name], *options, *more)
        assert code == 0, printed
        return json.loads((tmp_path / "a.json").read_text())

    both, alone, chosen = numbers("both"), numbers("masks"), numbers("both", "--heads", "masks")
    assert both["masks.mIoU"] == alone["mIoU"] == chosen["mIoU"]
    assert "boxes.AP" in both
    assert "loss" not in both
    line = runs.refused("evaluate", checkpoints["both"], "--tiles", 64)
    assert "this checkpoint's head 'masks' does segmentation: choose others by --heads boxes" in line


def test_tiles_of_several_detectors_are_refused_in_one_line():
    model = SimpleNamespace(heads=["a", "b"], head=lambda name: SimpleNamespace(task="detection"))
    with pytest.raises(DensekitError, match="for one head; of a, b choose one by --heads"):
        Options(tiles=64).check(model)
