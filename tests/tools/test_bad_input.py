"""Bad input of training and evaluation: one line that names file, id, value and remedy, exit code 2, no damage."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch

from tests.tools import runs


@pytest.fixture
def data(tmp_path, shapes):
    """A copy of the generated data set, to be damaged."""
    return shutil.copytree(shapes, tmp_path / "data")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes):
    """A finished run of each task, two steps long."""
    folder = tmp_path_factory.mktemp("trained")
    for task in ("detection", "classification"):
        config = runs.write_config(folder / f"{task}.yaml", runs.config_of(task, shapes, steps=2))
        assert runs.call("train", config, "--out", folder / task)[0] == 0
    return folder


def train(tmp_path, tree, *arguments):
    """The line in which training refuses a config; nothing is left where the run would have been."""
    return runs.refused("train", runs.write_config(tmp_path / "run.yaml", tree), "--out", tmp_path / "run", *arguments)


def edit(data, change, split="train"):
    path = data / "annotations" / f"{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def first_images(data, split="train"):
    return sorted((data / "images" / split).glob("*.jpg"))


# Images, in the middle of an epoch.


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_image_is_named(tmp_path, data, workers):
    first_images(data)[5].unlink()
    line = train(tmp_path, runs.config_of("detection", data), f"data.workers={workers}")
    assert "train/000005.jpg" in line
    assert "missing" in line or "no such" in line or "not exist" in line


def test_a_truncated_image_is_named(tmp_path, data):
    path = first_images(data)[2]
    path.write_bytes(path.read_bytes()[:-400])
    line = train(tmp_path, runs.config_of("detection", data))
    assert "train/000002.jpg" in line


def test_an_image_of_another_size_than_its_json_says_is_named(tmp_path, data):
    shutil.copy(first_images(data, "val")[0], first_images(data)[3])
    edit(data, lambda content: content["images"][3].update(width=1000))
    line = train(tmp_path, runs.config_of("detection", data))
    assert "train/000003.jpg" in line
    assert "1000" in line


def test_bad_images_are_skipped_counted_and_listed_where_the_config_says_so(tmp_path, data):
    first_images(data)[5].unlink()
    first_images(data, "val")[1].write_bytes(b"no image")
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of("detection", data))
    out = tmp_path / "run"
    code, printed = runs.call("train", config, "--out", out, "data.on_bad_image=skip")
    assert code == 0
    assert "1 unreadable images were skipped (listed below)" in printed
    assert "skipped 3 times: " in printed or "skipped 2 times: " in printed
    assert "train/000005.jpg" in printed
    counts = torch.load(out / "last.pt", weights_only=True)["training"]["state"]["skipped_images"]
    assert [("train/000005.jpg" in line, count in (2, 3)) for line, count in counts.items()] == [(True, True)]
    val = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines() if '"val"' in line]
    assert all(len(line["skipped"]) == 1 and "val/000001.jpg" in line["skipped"][0] for line in val)
    assert all(line["images"] == 4 for line in val)


# Annotations, before anything is written.


def _set(key, value, which="annotations", at=0):
    return lambda content: content[which][at].update({key: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("category_id", 99), ["category_id 99", "annotation 1:", "'11', '2', '5', '7'"]),
        (_set("bbox", [1.0, 2.0, float("nan"), 4.0]), ["nan", "annotation 1 ", "train/000000.jpg", "on_bad_box"]),
        (_set("bbox", [3.0, 4.0, 0.0, 5.0]), ["[3, 4, 0, 5]", "annotation 1 ", "no area", "on_bad_box"]),
        (_set("bbox", [500.0, 400.0, 10.0, 5.0]), ["[500, 400, 10, 5]", "annotation 1 ", "outside", "on_bad_box"]),
        (_set("image_id", 12345), ["image_id 12345", "annotation 1:"]),
        (_set("id", 1, at=1), ["1", "twice"]),
        (lambda content: content.pop("images"), ["images"]),
        (lambda content: content["images"].clear(), ["image"]),
    ],
    ids=["category", "nan", "zero-area", "outside", "image", "twice", "no-images", "empty"],
)
def test_bad_annotations_are_refused_before_the_run_folder_is_made(tmp_path, data, change, words):
    path = edit(data, change)
    line = train(tmp_path, runs.config_of("detection", data))
    for word in [str(path), *words]:
        assert word.lower() in line.lower(), line
    assert not (tmp_path / "run").exists()


def test_a_file_name_that_leaves_the_image_folder_is_refused(tmp_path, data):
    (data / "secret.jpg").write_bytes(first_images(data)[0].read_bytes())
    edit(data, _set("file_name", "../secret.jpg", "images"))
    assert "'../secret.jpg'" in train(tmp_path, runs.config_of("detection", data))


@pytest.mark.parametrize("content", ["{", "[]", "hello", "", '{"a": 1}', "[" * 100000])
def test_json_that_is_not_coco_is_refused(tmp_path, data, content):
    path = data / "annotations" / "train.json"
    path.write_text(content)
    assert str(path) in train(tmp_path, runs.config_of("detection", data))
    assert not (tmp_path / "run").exists()


def test_a_validation_set_with_other_classes_is_refused_with_the_difference(tmp_path, data):
    edit(data, _set("name", "cirle", "categories", 1), "val")
    line = train(tmp_path, runs.config_of("detection", data))
    assert "data.val" in line
    assert "missing 'circle' (did you mean 'cirle'?)" in line


# The config.


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", ["train.epoch", "epochs"]),
        ("model.backbone.nrom=batch", ["model.backbone.nrom", "norm"]),
        ("model.backbone.name=resnet19", ["resnet19", "resnet18"]),
        ("model.heads.main.sampels=3", ["model.heads.main.sampels", "samples"]),
        ("data.train.image=x", ["data.train.image", "images"]),
        ("data.train.name=cocoo", ["cocoo", "coco"]),
        ("evaluation.metric=APP", ["evaluation.metric", "APP", "AP"]),
        ("train.batch_size=5", ["batch_size 5", "accumulate 2"]),
        ("train.optimizer.lr=fast", ["train.optimizer.lr", "fast"]),
        ("data.train.images=nowhere", ["nowhere"]),
        ("data.train_transforms=[{name: HorizontalFlop}]", ["HorizontalFlop", "HorizontalFlip"]),
    ],
)
def test_a_misspelt_key_or_value_is_refused_with_the_nearest(tmp_path, shapes, override, words):
    line = train(tmp_path, runs.config_of("detection", shapes), override)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_a_refusal_of_the_script_itself_is_one_line_on_stderr_and_code_2(tmp_path, shapes):
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of("detection", shapes))
    command = [sys.executable, runs.TOOLS / "train.py", config, "train.epoch=3"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


# Run folders and checkpoints.


def test_the_folder_of_another_run_is_left_alone(tmp_path, trained, shapes):
    config = trained / "detection.yaml"
    before = {p.name: p.read_bytes() for p in (trained / "detection").iterdir() if p.is_file()}
    assert "holds another run; add --resume" in runs.refused("train", config, "--out", trained / "detection")
    line = runs.refused("train", config, "--out", trained / "detection", "--resume", "train.optimizer.lr=0.5")
    assert "train.optimizer.lr was 0.001 and is now 0.5" in line
    other = runs.write_config(tmp_path / "c.yaml", runs.config_of("classification", shapes))
    assert "another config" in runs.refused("train", other, "--out", trained / "detection", "--resume")
    assert {p.name: p.read_bytes() for p in (trained / "detection").iterdir() if p.is_file()} == before
    assert "is a file" in runs.refused("train", config, "--out", config)


def test_a_checkpoint_of_another_model_is_refused(tmp_path, trained):
    checkpoint = trained / "detection" / "best.pt"
    line = runs.refused("evaluate", checkpoint, "model.backbone.name=resnet32")
    assert "another model" in line
    assert "best.pt" in line
    content = torch.load(checkpoint, weights_only=True)
    content["model"].popitem()
    torch.save(content, tmp_path / "other.pt")
    assert "1 missing such as" in runs.refused("evaluate", tmp_path / "other.pt")


def test_evaluation_on_other_classes_is_refused_with_the_difference(tmp_path, data, trained):
    checkpoint = trained / "detection" / "best.pt"

    def other(change, *arguments):
        place = shutil.copytree(data, tmp_path / "other", dirs_exist_ok=True)
        edit(place, change, "val")
        where = [f"data.val.annotations={place}/annotations/val.json", f"data.val.images={place}/images"]
        return runs.refused("evaluate", checkpoint, *where, *arguments)

    assert "missing 'star' (did you mean 'stars' or 'square'?)" in other(_set("name", "stars", "categories", 2))
    assert "'triangle' 7 -> 70" in other(_renumbered({7: 70}))
    assert "not known 'moon'" in other(lambda c: c["categories"].append({"id": 99, "name": "moon"}))


def _renumbered(ids):
    def change(content):
        for annotation in content["annotations"]:
            annotation["category_id"] = ids.get(annotation["category_id"], annotation["category_id"])
        for category in content["categories"]:
            category["id"] = ids.get(category["id"], category["id"])

    return change


def test_a_damaged_or_missing_checkpoint_is_refused(tmp_path, trained):
    damaged = tmp_path / "damaged.pt"
    content = bytearray((trained / "detection" / "best.pt").read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert "damaged" in runs.refused("evaluate", damaged)
    assert "does not exist" in runs.refused("evaluate", tmp_path / "none.pt")


@pytest.mark.parametrize("tool", ["evaluate", "predict"])
def test_flips_scales_and_tiles_are_refused_where_the_head_has_no_use_for_them(trained, shapes, tool):
    inputs = [shapes / "images/val"] if tool == "predict" else []
    line = runs.refused(tool, trained / "classification" / "best.pt", *inputs, "--flips")
    assert "--flips and --scales are for detectors and segmenters; this checkpoint's head does classification" in line
    line = runs.refused(tool, trained / "detection" / "best.pt", *inputs, "--tiles", 8)
    assert "tiles of 8 pixels are too small" in line


def test_pixels_are_counted_in_masks_alone(tmp_path, shapes):
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of("detection", shapes))
    assert "this data set is for detection" in runs.refused("class_weights", config)


def test_starting_from_a_checkpoint_of_other_classes_is_refused(tmp_path, trained, data):
    for split in ("train", "val"):
        edit(data, _set("name", "stars", "categories", 2), split)
    tree = copy.deepcopy(runs.config_of("detection", data))
    line = train(tmp_path, tree, f"model.weights={trained / 'detection' / 'best.pt'}")
    assert "missing 'star' (did you mean 'stars' or 'square'?)" in line
    assert "model.backbone.weights" in line


# Classes matched by name.


@pytest.fixture
def renamed(data):
    """The same data under other category ids and in another order."""
    for split in ("train", "val"):
        edit(data, _renumbered({2: 70, 5: 3, 7: 1, 11: 20}), split)
    return data


def numbers(tmp_path, *arguments):
    code, printed = runs.call("evaluate", *arguments, "--json", tmp_path / "numbers.json")
    assert code == 0, printed
    return json.loads((tmp_path / "numbers.json").read_text())


def test_other_ids_and_order_give_the_same_numbers_when_matched_by_name(tmp_path, renamed, trained):
    checkpoint = trained / "detection" / "best.pt"
    where = [f"data.val.annotations={renamed}/annotations/val.json", f"data.val.images={renamed}/images"]
    own = numbers(tmp_path, checkpoint)
    for flag in ("--match-names", "data.match_names=true"):
        matched = numbers(tmp_path, checkpoint, *where, flag)
        assert matched["loss"] == pytest.approx(own["loss"], rel=1e-6)
        assert matched["per_class"] == own["per_class"]
        assert matched["AP"] == pytest.approx(own["AP"], abs=1e-12)


def test_fine_tuning_on_other_ids_and_order_starts_from_the_same_loss_when_matched_by_name(tmp_path, renamed, trained):
    weights = trained / "detection" / "best.pt"

    def first_loss(tree, *arguments):
        config, out = runs.write_config(tmp_path / "run.yaml", tree), tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        code, printed = runs.call(
            "train", config, "--out", out, f"model.weights={weights}", "train.steps=1", *arguments
        )
        assert code == 0, printed
        assert runs.call("evaluate", out / "best.pt")[0] == 0
        return json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["loss"]

    original = runs.config_of("detection", trained.parent / "unused")
    original["data"] = json.loads(json.dumps(torch.load(weights, weights_only=True)["config"]["data"]))
    tree = runs.config_of("detection", renamed)
    assert "7 -> 1" in train(tmp_path, tree, f"model.weights={weights}")
    assert first_loss(tree, "data.match_names=true") == pytest.approx(first_loss(original), rel=1e-6)
