"""Training on sets that teach nothing is refused before the run folder is made; what can't be measured is said."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

from densekit import build
from densekit.config import load
from densekit.doctor.quick import quick_check
from tests.tools import runs


@pytest.fixture
def data(tmp_path, shapes):
    """A copy of the generated data set, to be damaged."""
    return shutil.copytree(shapes, tmp_path / "data")


def edit(data, change, split="train"):
    path = data / "annotations" / f"{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def all_crowds(content):
    for a in content["annotations"]:
        a["iscrowd"] = 1


def no_objects(content):
    content["annotations"] = []


def in_parts(content):
    sizes = {i["id"]: (i["width"], i["height"]) for i in content["images"]}
    for a in content["annotations"]:
        (x, y, w, h), (width, height) = a["bbox"], sizes[a["image_id"]]
        a["bbox"] = [x / width, y / height, w / width, h / height]


REFUSED = {all_crowds: "are crowds (iscrowd 1)", no_objects: "none of the 13 images", in_parts: "in parts of the image"}


@pytest.mark.parametrize("change", REFUSED, ids=lambda f: f.__name__)
def test_a_training_set_that_teaches_nothing_is_refused(tmp_path, data, change):
    edit(data, change)
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of("detection", data))
    line = runs.refused("train", config, "--out", tmp_path / "run")
    assert "train.json" in line
    assert REFUSED[change] in line
    assert not (tmp_path / "run").exists()


def test_boxes_in_parts_are_refused_in_the_validation_set_too(tmp_path, data):
    edit(data, in_parts, "val")
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of("detection", data))
    assert "val.json" in runs.refused("train", config, "--out", tmp_path / "run")


def test_without_objects_to_measure_on_the_last_weights_are_kept(tmp_path, data):
    edit(data, all_crowds, "val")
    tree = runs.config_of("detection", data, steps=3)
    tree["evaluation"]["patience"] = 1
    config = runs.write_config(tmp_path / "run.yaml", tree)
    code, said = runs.call("train", config, "--out", tmp_path / "run", "train.ema=null")
    assert code == 0
    assert "data.val: " in said
    assert "AP is not defined on it" in said
    assert said.count("AP - (not defined") == 1  # one epoch has three steps
    assert "best.pt holds step 3's weights" in said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (numbers,) = [line for line in lines if line["kind"] == "val"]
    assert numbers["AP"] is None
    assert {row["AP"] for row in numbers["per_class"].values()} == {None}
    last, best = (torch.load(tmp_path / "run" / f"{n}.pt", weights_only=True) for n in ("last", "best"))
    assert all(torch.equal(v, best["model"][k]) for k, v in last["model"].items())
    code, said = runs.call("evaluate", tmp_path / "run" / "best.pt", "--json", tmp_path / "numbers.json")
    assert code == 0
    assert "AP is not defined: the 5 images have no object but crowds" in said
    assert json.loads((tmp_path / "numbers.json").read_text())["AP50"] is None


def test_more_objects_than_a_detector_may_find_are_told_with_the_values_to_set(tmp_path, data):
    def crowded(content):
        first, image = content["annotations"][0], content["images"][0]
        for i in range(150):
            box = [i % 15 * 2, i // 15 * 2, 3, 3]
            new = {**first, "id": 9000 + i, "image_id": image["id"], "bbox": box, "area": 9, "iscrowd": 0}
            content["annotations"].append({**new, "segmentation": []})

    edit(data, crowded)
    path = runs.write_config(tmp_path / "run.yaml", runs.config_of("detection", data))
    said = noted(load(path))
    assert "1 of 10 images with objects have more than 32, up to" in said
    assert "model.heads.main.max_detections is 100 and model.heads.main.rpn_after_nms is 32" in said
    assert "set model.heads.main.max_detections=200 model.heads.main.rpn_after_nms=[32,200]" in said
    assert "evaluation.max_detections=200" in said
    code, examined = runs.call("doctor", path)
    assert code in (3, 4)
    assert "warning: max_detections" in examined
    limits = re.search(r"recall can be \S+ at most; set (.*)", said)[1].split()
    assert "recall can be" not in noted(load(path, limits))


def noted(config):
    """What is said of the data at the start of a run."""
    train, val = (build.dataset(config, split, training=False) for split in ("train", "val"))
    return "\n".join(quick_check(train, val=val, config=config))


def test_a_classifier_with_one_class_is_told(tmp_path, data):
    for split in ("train", "val"):
        shutil.rmtree(data / "folders" / split / "odd")
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of("classification", data, steps=1))
    assert "every image is of class 'even'" in runs.call("train", config, "--out", tmp_path / "run")[1]
