"""Label files beside COCO json and CSV, read by what reads such files: xml.etree, json, numpy; and lists of images."""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densekit import console
from densekit.console import RESULT_FORMATS
from densekit.infer import label_files
from tests.tools import runs

SCORE = 0.2


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, size in {"a": (32, 40), "b & c": (50, 36), "größe": (33, 33)}.items():
        Image.fromarray(random.integers(0, 256, (*size, 3)).astype(np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def out(checkpoints, photos, tmp_path_factory):
    """All formats of one prediction."""
    place = tmp_path_factory.mktemp("out") / "out"
    arguments = (photos, "--out", place, "--score", SCORE, "--no-pictures", "--formats", *RESULT_FORMATS)
    code, printed = runs.call("predict", checkpoints["detection"], *arguments)
    assert code == 0, printed
    return place


@pytest.fixture(scope="module")
def expected(checkpoints, out):
    """For each image its entry and the boxes of at least the score, xyxy and name, from COCO's results."""
    names = dict(
        zip(*(torch.load(checkpoints["detection"], weights_only=True)["classes"][k] for k in ("ids", "names")))
    )
    images, rows = (json.loads((out / f"{name}.json").read_text()) for name in ("images", "predictions"))
    found = []
    for image in images:
        own = [r for r in rows if r["image_id"] == image["id"] and r["score"] >= SCORE]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (r["bbox"] for r in own)]
        found.append((image, [names[r["category_id"]] for r in own], np.array(boxes).reshape(-1, 4)))
    assert sum(len(boxes) for *_, boxes in found) > 3
    assert sum(len(boxes) for *_, boxes in found) < len(rows)
    return found


def test_yolo_lines_are_the_boxes(out, expected):
    classes = (out / "classes.txt").read_text().splitlines()
    assert len(list((out / "labels").iterdir())) == len(expected)
    for image, names, boxes in expected:
        table = np.loadtxt(out / "labels" / f"{image['output']}.txt", ndmin=2).reshape(-1, 5)
        assert [classes[int(k)] for k in table[:, 0]] == names
        x, y, w, h = (table[:, 1:] * np.tile([image["width"], image["height"]], 2)).T
        np.testing.assert_allclose(np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1), boxes, atol=1e-3)


def test_voc_corners_are_the_boxes_to_half_a_pixel(out, expected):
    for image, names, boxes in expected:
        root = ET.parse(out / "voc" / f"{image['output']}.xml").getroot()
        assert root.findtext("filename") == os.path.basename(image["file_name"])
        assert [int(root.findtext(f"size/{side}")) for side in ("width", "height")] == [image["width"], image["height"]]
        assert [entry.findtext("name") for entry in root.iter("object")] == names
        corners = [[int(entry.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
                   for entry in root.iter("object")]  # fmt: skip
        corners = np.array(corners).reshape(-1, 4)
        assert (corners >= 1).all()
        assert (corners[:, 2:] >= corners[:, :2]).all()
        assert (corners[:, 2:] <= [image["width"], image["height"]]).all()
        large = (boxes[:, 2:] - boxes[:, :2] > 1).all(1)
        np.testing.assert_allclose((corners - [1, 1, 0, 0])[large], boxes[large], atol=0.501)


def test_labelme_rectangles_are_the_boxes_and_find_their_image(out, expected):
    for image, names, boxes in expected:
        path = out / "labelme" / f"{image['output']}.json"
        tree = json.loads(path.read_text())
        assert [shape["label"] for shape in tree["shapes"]] == names
        assert {shape["shape_type"] for shape in tree["shapes"]} <= {"rectangle"}
        points = np.array([shape["points"] for shape in tree["shapes"]]).reshape(-1, 4)
        np.testing.assert_allclose(points, boxes, atol=1e-3)
        with Image.open(path.parent / tree["imagePath"]) as picture:
            assert picture.size == (tree["imageWidth"], tree["imageHeight"])
        assert os.path.samefile(path.parent / tree["imagePath"], image["file_name"])


def test_only_the_formats_asked_for_are_written(checkpoints, photos, tmp_path):
    arguments = (photos, "--out", tmp_path / "out", "--no-pictures", "--formats", "voc")
    assert runs.call("predict", checkpoints["detection"], *arguments)[0] == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} - {".lock"} == {"voc", "images.json"}


def test_every_name_of_a_format_writes_something():
    assert {"coco", "csv", *label_files.LABEL_FORMATS} == set(RESULT_FORMATS)


def test_a_segmenter_has_no_boxes_to_write(checkpoints, photos):
    line = runs.refused("predict", checkpoints["segmentation"], photos, "--formats", "voc")
    assert "--formats is for detectors" in line


def test_labels_follow_the_images_as_they_come(checkpoints, photos, tmp_path, monkeypatch):
    """Whole files of the images before a full disk."""
    real = os.fsync

    def full(handle):
        if "größe.xml" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(28, os.strerror(28))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    arguments = (photos, "--out", tmp_path / "out", "--no-pictures", "--batch", 1, "--formats", "voc", "coco")
    assert "the disk is full" in runs.refused("predict", checkpoints["detection"], *arguments)
    assert {p.name for p in (tmp_path / "out/voc").iterdir()} == {"a.xml", "b & c.xml"}
    for path in (tmp_path / "out/voc").iterdir():
        ET.parse(path)


# Lists of images.


def names_of(out):
    return [os.path.basename(i["file_name"]) for i in json.loads((out / "images.json").read_text())]


def test_a_list_names_images_relative_to_itself_and_absolute(checkpoints, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "own")
    listing = tmp_path / "test.txt"
    listing.write_text(f"\ufeff# a comment\n\nown/größe.png\n{photos}/a.png\n  own/b & c.png  \n", encoding="utf-8")
    arguments = (listing, "--out", tmp_path / "out", "--no-pictures")
    assert runs.call("predict", checkpoints["classification"], *arguments)[0] == 0
    assert names_of(tmp_path / "out") == ["größe.png", "a.png", "b & c.png"]


def test_a_list_relative_to_the_current_folder_is_found_too(checkpoints, photos, tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/test.txt").write_text("photos/a.png\n")
    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    arguments = ("lists/test.txt", "--out", "out", "--no-pictures")
    assert runs.call("predict", checkpoints["classification"], *arguments)[0] == 0
    assert names_of(Path("out")) == ["a.png"]


def test_a_missing_image_of_a_list_is_named_and_an_empty_list_refused(checkpoints, photos, tmp_path):
    listing = tmp_path / "test.txt"
    listing.write_text(f"{photos}/a.png\n{photos}/none.png\n")
    arguments = (listing, "--out", tmp_path / "out", "--no-pictures")
    code, printed = runs.call("predict", checkpoints["classification"], *arguments)
    assert code == console.SKIPPED
    assert "none.png: there is no such image" in printed
    listing.write_text("# nothing\n")
    assert "test.txt: names nothing" in runs.refused("predict", checkpoints["classification"], *arguments)
