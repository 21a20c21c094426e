"""Causes are told, and not what only follows from them."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
from PIL import Image

from densekit.doctor.examine import examine
from densekit.doctor.fixes.fix import corrected
from tests.doctor.conftest import bad, found


def codes(report):
    return {d.code for d in report.defects}


def test_where_no_image_is_there_the_folder_is_told_and_where_they_lie(planted):
    moved = planted.root / "elsewhere"
    moved.mkdir()
    planted.json.write_text(planted.json.read_text())
    report = examine(planted.json, moved, processes=1, shown=False)
    assert bad(report) == {"images_missing": 1}
    assert "none of its 24 images is there" in report.defects[0].message
    shutil.move(planted.root / "images" / "train", moved / "train")
    report = examine(planted.json, planted.root / "images", processes=1, shown=False)
    assert bad(report) == {"images_missing": 1}
    content, _ = corrected(report.splits[0], report.defects)
    assert len(content["images"]) == 24
    report = examine(planted.json, moved / "train", processes=1, shown=False)
    assert bad(report) == {"image_name_differs": 24}  # which training reads too


def test_boxes_are_not_judged_by_a_size_that_is_wrong(planted):
    """The file is larger than the json says: its boxes fit the file."""
    planted.images[4] |= {"width": 40, "height": 40}
    for a in planted.own(4):
        a |= {"bbox": [30, 30, 25, 25], "segmentation": [], "area": 625}
    report = planted.examine()
    assert "image_size" in bad(report)
    assert not {"box_partly_outside", "box_outside", "boxes_of_other_images"} & codes(report)


def test_sizes_that_are_wrong_everywhere_are_no_way_of_writing_boxes(planted):
    """Width and height swapped: boxes as y, x, height, width would fit."""
    for image in planted.images:
        path = planted.root / "images" / image["file_name"]
        wide = Image.open(path).resize((96, 48))
        wide.save(path)
        image |= {"width": 48, "height": 96}
    random = np.random.default_rng(0)
    for a in planted.annotations:
        x, y, w, h = random.integers(30, 70), random.integers(0, 20), random.integers(10, 25), random.integers(10, 25)
        a |= {"bbox": [int(v) for v in (x, y, w, h)], "segmentation": [], "area": int(w * h), "iscrowd": 0}
    report = planted.examine()
    assert bad(report)["image_size"] == 24
    assert not {"box_layout", "boxes_of_other_images", "box_partly_outside", "box_outside"} & codes(report)


def test_classes_and_images_of_annotations_that_make_no_sense_are_not_called_empty(planted):
    for a in planted.annotations:
        if a["image_id"] == planted.images[0]["id"] or a["category_id"] == planted.categories[0]["id"]:
            a["bbox"] = ["one", 2, 3, 4]
    report = planted.examine()
    assert "row_malformed" in bad(report)
    empty = [d.file for d in found(report, "image_no_annotation")]
    assert not any(f.endswith(planted.images[0]["file_name"]) for f in empty)
    assert "class_without_objects" not in codes(report)


def test_crowds_alone_are_not_also_told_one_by_one(planted):
    for a in planted.annotations:
        a["iscrowd"] = 1
    assert bad(planted.examine()) == {"crowds_alone": 1}


def test_a_grey_set_is_not_compared_with_colour(tmp_path):
    for i in range(6):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.random.default_rng(i).integers(0, 255, (20, 20), np.uint8))
    report = examine(tmp_path, processes=1, shown=False)
    (defect,) = report.defects
    assert defect.code == "images_grey"
    assert "colour" not in defect.kind.why + defect.message
    cv2.imwrite(str(tmp_path / "odd.png"), np.random.default_rng(9).integers(0, 255, (20, 20, 3), np.uint8))
    assert codes(examine(tmp_path, processes=1, shown=False)) == {"images_grey"}


def test_grey_images_read_as_one_channel_need_no_word(tmp_path):
    images = tmp_path / "data" / "even"
    images.mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(images / f"{i}.png"), np.random.default_rng(i).integers(0, 255, (20, 20), np.uint8))
    config = "model: {backbone: {name: resnet18}, heads: {c: {name: classifier}}, channels: %d}\n"
    config += f"data: {{train: {{name: image_folder, images: {tmp_path / 'data'}}}}}\n"
    config += "train: {steps: 1, optimizer: {lr: 1.0e-3}}\n"
    for channels, expected in ((1, set()), (3, {"images_grey"})):
        (tmp_path / "c.yaml").write_text(config % channels)
        assert codes(examine(tmp_path / "c.yaml", processes=1, shown=False)) == expected
