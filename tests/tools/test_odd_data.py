"""Data that is odd but means one thing trains, is evaluated and is told, as the same data written plainly."""

from __future__ import annotations

import copy
import json
import shutil

import pytest

from tests.tools import runs


@pytest.fixture
def data(tmp_path, shapes):
    return shutil.copytree(shapes, tmp_path / "data")


def edit(data, split, change):
    path = data / "annotations" / f"{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def train(folder, tree, *arguments):
    """What a run of two steps printed, and its lines of metrics."""
    config = runs.write_config(folder / "run.yaml", tree)
    code, printed = runs.call("train", config, "--out", folder / "run", *arguments)
    assert code == 0, printed
    return printed, [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def plain(tmp_path, shapes):
    """Metrics of the run on the data as it was generated."""
    (tmp_path / "plain").mkdir()
    return train(tmp_path / "plain", runs.config_of("detection", shapes, steps=2))[1]


def floats_and_texts(content):
    for image in content["images"]:
        image |= {"width": float(image["width"]), "height": str(image["height"])}
        image["file_name"] = image["file_name"].replace("/", "\\").removesuffix(".jpg")
    for row in content["annotations"]:
        row |= {"image_id": str(row["image_id"]), "category_id": float(row["category_id"])}


def test_numbers_and_names_in_other_spellings_give_the_same_run(tmp_path, data, plain):
    for split in ("train", "val"):
        edit(data, split, floats_and_texts)
    printed, metrics = train(tmp_path, runs.config_of("detection", data, steps=2))
    assert metrics == plain
    assert printed.count("13 numbers written as text are read as numbers") == 1
    assert printed.count("13 of 13 file names are spelled unlike the files") == 1
    assert printed.count("5 of 5 file names are spelled unlike the files") == 1


def renumbered(content):
    """Other ids, so that their order is another one too."""
    new = {c["id"]: 100 - c["id"] for c in content["categories"]}
    for category in content["categories"]:
        category["id"] = new[category["id"]]
    for row in content["annotations"]:
        row["category_id"] = new[row["category_id"]]


def test_a_validation_set_with_other_ids_is_measured_by_its_names(tmp_path, data, plain):
    edit(data, "val", renumbered)
    _, metrics = train(tmp_path, runs.config_of("detection", data, steps=2), "data.match_names=true")
    assert metrics == plain


def without_a_class(content):
    gone = content["categories"].pop()["id"]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != gone]


@pytest.mark.parametrize("arguments", [[], ["data.match_names=true"]])
def test_a_validation_set_may_lack_a_class(tmp_path, data, arguments):
    edit(data, "val", without_a_class)
    printed, metrics = train(tmp_path, runs.config_of("detection", data, steps=2), *arguments)
    lacking = json.loads((data / "annotations" / "train.json").read_text())["categories"][-1]["name"]
    assert f"data.val does not have all of the model's classes: nothing is measured for {lacking!r}" in printed
    rows = [row for row in metrics if "per_class" in row]
    assert rows
    assert all(row["per_class"][lacking]["objects"] == 0 for row in rows)
    code, printed = runs.call("evaluate", tmp_path / "run" / "best.pt")
    assert code == 0
    assert f"nothing is measured for {lacking!r}" in printed


def test_a_validation_set_of_masks_may_lack_a_class(tmp_path, data):
    tree = runs.config_of("segmentation", data, steps=2)
    for split in ("train", "val"):
        tree["data"][split] = {**runs.config_of("detection", data)["data"][split], "name": "coco_masks"}
    edit(data, "val", without_a_class)
    train(tmp_path, tree)


def test_a_validation_folder_may_lack_a_class(tmp_path, data):
    tree = copy.deepcopy(runs.config_of("classification", data, steps=2))
    shutil.rmtree(data / "folders" / "val" / "even")
    printed, _ = train(tmp_path, tree)
    assert "nothing is measured for 'even'" in printed
