"""The doctor reads the labels of other programs, and never passes over some that it cannot read."""

from __future__ import annotations

import json

import pytest

from densekit.doctor.examine import examine
from densekit.doctor.fixes.fix import write_fixed
from densekit.errors import DensekitError
from tests.data.formats import folders


def look(path, images=None):
    return examine(path, images, processes=1, shown=False)


def codes(report):
    return {defect.code for defect in report.defects if defect.severity != "note"}


@pytest.fixture
def yolo(tmp_path):
    for i in range(4):
        folders.image(tmp_path / f"images/train/{i}.jpg", 40 + i)
        folders.text(tmp_path / f"labels/train/{i}.txt", f"{i % 2} .5 .5 .5 .5\n")
    folders.image(tmp_path / "images/val/v.jpg", 50)
    folders.text(tmp_path / "labels/val/v.txt", "0 .5 .5 .5 .5\n1 .3 .3 .5 .5\n")
    return folders.text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")


@pytest.mark.parametrize("whole", [True, False])
def test_a_yolo_folder_and_its_yaml_are_examined_split_by_split(yolo, whole):
    report = look(yolo.parent if whole else yolo)
    assert [(split.name, len(split.rows.annotations)) for split in report.splits] == [("train", 4), ("val", 2)]
    assert report.exit_code == 0, report.defects
    assert report.annotations == 6


def test_defects_are_told_with_file_and_line(yolo):
    folders.text(yolo.parent / "labels/train/0.txt", "0 .5 .5 .5 .5\n0 .5 .5 .5 .5\n1 .5 .5 0 .5\n")
    report = look(yolo)
    assert codes(report) == {"near_duplicate", "box_without_area"}
    assert {d.annotation_id for d in report.defects if d.code == "box_without_area"} == {"labels/train/0.txt:3"}


def test_lines_that_cannot_be_read_are_errors_and_all_are_told(yolo):
    for i in (0, 1):
        folders.text(yolo.parent / f"labels/train/{i}.txt", "0 .5 .5 .5\n")
    report = look(yolo)
    messages = [d.message for d in report.defects if d.code == "label_unreadable"]
    assert len(messages) == 2
    assert "1.txt:1: 4 values" in messages[1]
    assert report.exit_code == 4


def test_pascal_voc_labelme_and_tables_are_examined(tmp_path):
    box = (2, 2, 20, 20)
    for name in ("voc/JPEGImages", "labelme", "table"):
        folders.image(tmp_path / name / "a.jpg")
    folders.xml(tmp_path / "voc/Annotations/a.xml", "a.jpg", [folders.xml_object("cat", box)])
    folders.labelme(tmp_path / "labelme/a.json", "a.jpg", [("cat", "rectangle", [box[:2], box[2:]])])
    folders.text(tmp_path / "table/boxes.csv", "a.jpg,2,2,20,20,cat\n")
    for path in (tmp_path / "voc", tmp_path / "labelme", tmp_path / "table", tmp_path / "table/boxes.csv"):
        report = look(path)
        assert report.annotations == 1
        assert report.images == 1
        assert report.exit_code == 0, report.defects


def test_a_broken_json_hides_no_other_labels(tmp_path):
    for name in "ab":
        folders.image(tmp_path / f"{name}.jpg", 40 + ord(name))
        folders.labelme(tmp_path / f"{name}.json", f"{name}.jpg", [("cat", "rectangle", [[2, 2], [20, 20]])])
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text[: text.index("imagePath")])
    report = look(tmp_path)
    assert codes(report) == {"label_unreadable"}
    assert report.annotations == 1
    (tmp_path / "a.json").write_text("{")
    assert codes(look(tmp_path)) == {"file_unreadable"}


def test_labels_that_nobody_reads_are_an_error_and_images_alone_are_none(tmp_path):
    folders.image(tmp_path / "a.jpg")
    assert look(tmp_path).exit_code == 0
    folders.text(tmp_path / "a.txt", "one cell at the left\n")
    report = look(tmp_path)
    assert codes(report) == {"labels_unread"}
    assert report.exit_code == 4
    assert "1 files look like labels and are of no format that is read: a.txt" in report.defects[0].message


def test_the_correction_is_a_coco_json(yolo, tmp_path):
    folder = yolo.parent / "images/val"
    folders.text(yolo.parent / "labels/val/v.txt", "0 .5 .5 .5 .5\n1 .3 .3 0 .5\n0 .2 .2 .5 .5\n")
    yolo.write_text("val: images/val\nnames: [cat, dog]\n")
    report = look(yolo)
    assert codes(report) == {"box_without_area", "box_partly_outside"}
    target = tmp_path / "fixed.json"
    write_fixed(report, target, may_remove=0.5)
    content = json.loads(target.read_text())
    assert [a["bbox"] for a in content["annotations"]] == [[12.5, 7.5, 25, 15], [0, 0, 22.5, 13.5]]
    assert (folder / content["images"][0]["file_name"]).is_file()
    folders.text(yolo.parent / "labels/val/v.txt", "0 .5 .5\n")
    with pytest.raises(DensekitError, match=r"--fix: 1 labels can't be read: .*v\.txt:1"):
        write_fixed(look(yolo), tmp_path / "2.json")


def test_a_configs_labels_are_examined(yolo, tmp_path):
    options = f"{{name: yolo, folder: {yolo}, split: train}}"
    config = folders.text(
        tmp_path / "run.yaml",
        "model:\n  backbone: {name: resnet20}\n  heads: {boxes: {name: faster_rcnn, neck: c5}}\n"
        f"data:\n  train: {options}\ntrain: {{steps: 1, batch_size: 2, optimizer: {{lr: 0.01}}}}\n",
    )
    folders.text(yolo.parent / "labels/train/2.txt", "7 .5 .5 .5 .5\n")
    report = look(config)
    assert "label_unreadable" in codes(report)
    assert report.annotations == 3
