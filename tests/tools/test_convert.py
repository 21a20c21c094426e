"""Folders of every program become COCO jsons that pycocotools reads."""

from __future__ import annotations

import json

import pytest
from pycocotools.coco import COCO

from tests.data.formats import folders
from tests.tools import runs


def coco(path, names, *, categories=None, annotations=True):
    """A COCO json of images of 40 x 30 with one box each."""
    return folders.text(path, json.dumps({
        "images": [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 10, 5], "area": 50, "iscrowd": 0}
            for i in range(len(names) if annotations else 0)
        ],
        "categories": categories or [{"id": 1, "name": "cell"}],
    }))  # fmt: skip


def yolo(folder):
    folders.image(folder / "images/a.jpg")
    folders.text(folder / "labels/a.txt", "0 .5 .5 .5 .5\n0 .1 .1 .5 .1 .3 .6\n")
    folders.text(folder / "classes.txt", "cell\n")


def voc(folder):
    folders.image(folder / "JPEGImages/a.jpg")
    folders.xml(folder / "Annotations/a.xml", "a.jpg", [folders.xml_object("cell", (1, 1, 9, 9), d) for d in (0, 1)])


def labelme(folder):
    folders.image(folder / "a.jpg")
    shape = ("cell", "rectangle", [[1, 1], [9, 9]])
    folders.labelme(folder / "a.json", "a.jpg", [shape, ("cell", "circle", [[10, 10], [12, 10]])])


def table(folder):
    folders.image(folder / "a.jpg")
    folders.text(folder / "boxes.csv", "filename,xmin,ymin,xmax,ymax,class\na.jpg,1,1,9,9,cell\na.jpg,3,3,9,9,cell\n")


@pytest.mark.parametrize("make", [yolo, voc, labelme, table])
def test_a_folder_becomes_a_json_that_pycocotools_reads(tmp_path, make):
    make(tmp_path / "in")
    code, printed = runs.call("convert", tmp_path / "in", "--to", "coco", tmp_path / "out.json")
    assert code == 0, printed
    read = COCO(tmp_path / "out.json")
    assert [image["file_name"].removeprefix("images/") for image in read.imgs.values()] == ["a.jpg"]
    assert [(i["width"], i["height"]) for i in read.imgs.values()] == [(40, 30)]
    assert sorted(read.anns) == [1, 2]
    assert [category["name"] for category in read.cats.values()] == ["cell"]
    assert sum(a["iscrowd"] for a in read.anns.values()) == (make is voc)
    assert f"labels of the format {'csv' if make is table else make.__name__}" in printed
    assert "1 images in" in printed
    assert all(a["area"] > 0 for a in read.anns.values())
    if make in (yolo, labelme):
        assert read.annToMask(read.anns[2]).sum() > 0


def test_roboflows_splits_become_a_file_each_without_its_category_0(tmp_path):
    heading = [{"id": 0, "name": "cells", "supercategory": "none"}, {"id": 1, "name": "cell", "supercategory": "cells"}]
    for split in ("train", "valid", "test"):
        folders.image(tmp_path / f"in/{split}/{split}.jpg")
        coco(tmp_path / f"in/{split}/_annotations.coco.json", [f"{split}.jpg"], categories=heading)
    code, printed = runs.call("convert", tmp_path / "in", "--to", "coco", tmp_path / "out.json")
    assert code == 0, printed
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["out_test.json", "out_train.json", "out_val.json"]
    assert [c["name"] for c in COCO(tmp_path / "out_val.json").cats.values()] == ["cell"]
    assert "category 0, 'cells', is the heading of the others and has no objects" in printed


def test_cvats_and_label_studios_folders_are_found(tmp_path):
    folders.image(tmp_path / "cvat/images/default/a.jpg")
    coco(tmp_path / "cvat/annotations/instances_default.json", ["a.jpg"])
    folders.image(tmp_path / "studio/images/12-a.jpg")
    coco(tmp_path / "studio/result.json", ["..\\\\label-studio\\\\media\\\\upload/1/12-a.jpg"])
    for name, where in (("cvat", "images/default"), ("studio", "images")):
        code, printed = runs.call("convert", tmp_path / name, "--to", "coco", tmp_path / f"{name}.json")
        assert code == 0, printed
        assert f"1 images in {tmp_path / name / where}, 1 objects" in printed


@pytest.mark.parametrize("name", ["/home/me/photos/a.jpg", "https://host/bucket/a.jpg", "C:\\photos\\a.jpg"])
def test_paths_of_other_machines_and_addresses_are_matched_by_their_end(tmp_path, name):
    folders.image(tmp_path / "in/images/a.jpg")
    coco(tmp_path / "in/a.json", [name])
    code, printed = runs.call("convert", tmp_path / "in", "--to", "coco", tmp_path / "out.json")
    assert code == 0, printed
    assert (
        f"1 of 1 file names are spelled unlike the files, which are used all the same: {name!r} is 'a.jpg'" in printed
    )
    for place in ("x", "y"):
        folders.image(tmp_path / f"in/images/{place}/a.jpg")
    (tmp_path / "in/images/a.jpg").unlink()
    coco(tmp_path / "in/a.json", ["../a.jpg"])
    line = runs.refused("convert", tmp_path / "in/a.json", "--to", "coco", tmp_path / "2.json")
    assert "are not beside it, nor in images/" in line


def test_several_jsons_of_no_split_are_one_set_and_captions_are_left_aside(tmp_path):
    for name in ("a", "b"):
        folders.image(tmp_path / f"in/images/{name}.jpg")
        coco(tmp_path / f"in/annotations/{name}.json", [f"{name}.jpg"])
    coco(tmp_path / "in/annotations/captions.json", ["a.jpg"])
    code, printed = runs.call("convert", tmp_path / "in", "--to", "coco", tmp_path / "out.json")
    assert code == 0, printed
    assert len(COCO(tmp_path / "out.json").imgs) == 2
    assert "captions.json: labels of another kind, left aside" in printed


def test_nothing_is_written_where_a_line_is_bad_or_a_file_is_there(tmp_path):
    yolo(tmp_path / "in")
    folders.text(tmp_path / "in/labels/a.txt", "0 .5 .5\n")
    arguments = ("convert", tmp_path / "in", "--to", "coco", tmp_path / "out.json")
    assert "a.txt:1: 3 values" in runs.refused(*arguments)
    assert not (tmp_path / "out.json").exists()
    folders.text(tmp_path / "in/labels/a.txt", "")
    folders.text(tmp_path / "out.json", "mine")
    assert "is there already" in runs.refused(*arguments)
    assert (tmp_path / "out.json").read_text() == "mine"


def test_a_folder_that_nobody_recognises_says_what_is_there(tmp_path):
    folders.image(tmp_path / "in/a.jpg")
    folders.text(tmp_path / "in/a.txt", "a cell at the left\n")
    line = runs.refused("convert", tmp_path / "in", "--to", "coco", tmp_path / "out.json")
    assert (
        "1 images, but no labels of coco, yolo, voc, labelme, csv (files that may be labels: 1 .txt, such as a.txt)"
        in line
    )
    assert "did you mean 'yolo'" in runs.refused(
        "convert", tmp_path / "in", "--to", "coco", tmp_path / "o.json", "--from", "yollo"
    )
    assert "there is no format 'voc' to write" in runs.refused("convert", tmp_path, "--to", "voc", tmp_path / "o")


def test_labels_of_other_formats_beside_are_told_and_may_be_chosen(tmp_path):
    yolo(tmp_path / "in")
    voc(tmp_path / "in")
    code, printed = runs.call("convert", tmp_path / "in", "--to", "coco", tmp_path / "out.json")
    assert code == 0, printed
    assert "there are labels of voc too, which are left aside; --from voc reads them" in printed
    assert runs.call("convert", tmp_path / "in", "--to", "coco", tmp_path / "2.json", "--from", "voc")[0] == 0
    assert sum(a["iscrowd"] for a in COCO(tmp_path / "2.json").anns.values()) == 1
