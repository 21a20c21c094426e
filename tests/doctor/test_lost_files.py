"""Every file of every split is looked for at the start of a run."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from densekit.data.formats.coco.coco import coco
from densekit.data.formats.image_folder import image_folder
from densekit.data.formats.masks.masks import masks
from densekit.data.images import present
from densekit.doctor.lost_files import lost_files
from densekit.errors import DensekitError
from tests.tools import runs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture
def data(tmp_path, made):
    return shutil.copytree(made, tmp_path / "data")


def train(tmp_path, tree, *options):
    config = runs.write_config(tmp_path / "run.yaml", tree)
    return runs.call("train", config, "--out", tmp_path / "run", "train.steps=1", *options)


@pytest.mark.parametrize("listed_from", [1, 500])
def test_what_is_absent_is_what_the_system_says_is_no_file(tmp_path, monkeypatch, listed_from):
    monkeypatch.setattr(present, "_LISTED_FROM", listed_from)
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "in/b.jpg", "größe.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.jpg").mkdir()
    os.symlink(tmp_path / "a.jpg", tmp_path / "link.jpg")
    os.symlink(tmp_path / "gone", tmp_path / "broken.jpg")
    names = ["a.jpg", "no.jpg", "in/b.jpg", "in/no.jpg", "./a.jpg", "in//b.jpg", "folder.jpg", "link.jpg", "broken.jpg"]
    names += ["größe.jpg", "no/way.jpg", "A.JPG"]
    expected = [i for i, name in enumerate(names) if not os.path.isfile(tmp_path / name)]
    assert present.absent(tmp_path, names) == expected
    assert present.absent(tmp_path, ["../out.jpg", "/etc/no.jpg", "nul\0.jpg"]) == []


def test_the_lost_files_of_each_format_are_named(data):
    first = data / "images/train/000003.jpg"
    first.unlink()
    assert lost_files(coco(images=data / "images", annotations=data / "annotations/train.json")) == [first]

    image, mask = data / "images/val/000001.jpg", next((data / "masks/val").glob("000002*"))
    folder = masks(images=data / "images/val", masks=data / "masks/val", classes=data / "classes.txt")
    assert lost_files(folder) == []
    image.unlink()
    mask.unlink()
    assert lost_files(folder) == [image, mask]

    classes = image_folder(images=data / "folders/train")
    link = data / "folders/train/odd/link.jpg"
    link.symlink_to(data / "nowhere.jpg")
    assert lost_files(classes) == []
    assert lost_files(image_folder(images=data / "folders/train")) == [link]


def test_missing_validation_images_stop_a_run_before_its_folder_is_made(tmp_path, data):
    for number in (1, 3):
        (data / f"images/val/{number:06}.jpg").unlink()
    code, said = train(tmp_path, runs.config_of("detection", data))
    assert code == 2
    assert "data.val: 2 files of 5 images are not there" in said
    assert "val/000001.jpg" in said
    assert "val/000003.jpg" in said
    assert not (tmp_path / "run").exists()


def test_of_many_missing_images_all_are_counted_and_ten_named(tmp_path, data):
    for path in sorted((data / "images/train").glob("*.jpg"))[:12]:
        path.unlink()
    code, said = train(tmp_path, runs.config_of("detection", data))
    assert code == 2
    assert "data.train: 12 files of 13 images are not there" in said
    assert len(re.findall(r"train/\d+\.jpg", said)) == 10
    assert "and 2 more" in said


def test_a_missing_test_image_is_told_and_does_not_stop_a_run(tmp_path, data):
    (data / "images/test/000001.jpg").unlink()
    tree = runs.config_of("detection", data)
    tree["data"]["test"] = {**tree["data"]["val"], "annotations": f"{data}/annotations/test.json"}
    code, said = train(tmp_path, tree)
    assert code == 0
    assert "data.test: 1 files of 2 images are not there" in said
    tree["data"]["test"]["annotations"] = f"{data}/annotations/none.json"
    shutil.rmtree(tmp_path / "run")
    code, said = train(tmp_path, tree)
    assert code == 0
    assert "none.json" in said
    assert "training does not need it" in said


def test_where_bad_images_are_skipped_missing_ones_are_told_unless_all_are(tmp_path, data):
    (data / "images/train/000001.jpg").unlink()
    code, said = train(tmp_path, runs.config_of("detection", data), "data.on_bad_image=skip")
    assert code == 0
    assert "data.train: 1 files of 13 images are not there" in said
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(data / "images/val")
    (data / "images/val").mkdir()
    code, said = train(tmp_path, runs.config_of("detection", data), "data.on_bad_image=skip")
    assert code == 2
    assert "data.val: 5 files of 5 images are not there" in said


def test_a_name_that_leaves_the_folder_keeps_its_own_message(data):
    path = data / "annotations/train.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "../secret.jpg"
    path.write_text(json.dumps(content))
    with pytest.raises(DensekitError, match="leaves the image folder"):
        lost_files(coco(images=data / "images", annotations=path))
