"""A folder with several jsons: all are examined, each by its name, and what is not is said."""

from __future__ import annotations

import json
import shutil

import pytest

from densekit.data.formats.labels.listing import role_of
from densekit.doctor.coco.sets import family_of
from densekit.doctor.examine import examine
from densekit.doctor.telling.report import as_json, print_report
from tests.doctor.conftest import bad


def look(folder, images=None):
    return examine(folder, images, processes=1, shown=False)


def read(folder, name="train"):
    return json.loads((folder / "annotations" / f"{name}.json").read_text())


@pytest.fixture
def plain(clean, tmp_path):
    """The generated set without masks."""
    root = tmp_path / "set"
    shutil.copytree(clean, root, ignore=lambda _, names: {"masks", "classes.txt"} & set(names))
    return root


def spoil(path):
    """Take the area of one box."""
    content = json.loads(path.read_text())
    row = next(a for a in content["annotations"] if not a["iscrowd"])
    row |= {"bbox": [5, 5, 0, 0], "segmentation": []}
    path.write_text(json.dumps(content))


def test_files_named_as_cocos_are_all_read(plain, capsys):
    for name in ("train", "val", "test"):
        (plain / "annotations" / f"{name}.json").rename(plain / "annotations" / f"instances_{name}2017.json")
    spoil(plain / "annotations" / "instances_val2017.json")
    report = look(plain)
    assert {s.name for s in report.splits} == {"instances_train2017", "instances_val2017", "instances_test2017"}
    assert (report.images, bad(report)) == (36, {"box_without_area": 1})
    print_report(report)
    printed = capsys.readouterr().out
    assert "(in instances_val2017.json)" in printed
    assert "instances_train2017.json: 24 images" in printed


def test_each_json_beside_its_images_is_read_and_compared_with_the_others(plain, tmp_path):
    root = tmp_path / "export"
    for name, other in (("train", "train"), ("valid", "val"), ("test", "test")):
        shutil.copytree(plain / "images" / other, root / name)
        content = read(plain, other)
        for image in content["images"]:
            image["file_name"] = image["file_name"].rpartition("/")[2]
        (root / name / "_annotations.coco.json").write_text(json.dumps(content))
    report = look(root)
    assert {s.name for s in report.splits} == {"train", "valid", "test"}
    assert all(s.rows.folder == root / s.name for s in report.splits)
    assert (report.images, bad(report)) == (36, {})
    shutil.copy(root / "train" / "000000.jpg", root / "valid" / "000000.jpg")
    assert "leak_identical" in bad(look(root))
    assert look(root / "train").images == 24


def test_exports_of_several_tasks_are_read(plain, tmp_path):
    for name in ("train", "val"):
        (tmp_path / "tasks" / f"task_{name}" / "annotations").mkdir(parents=True)
        shutil.copytree(plain / "images", tmp_path / "tasks" / f"task_{name}" / "images")
        target = tmp_path / "tasks" / f"task_{name}" / "annotations" / "instances_default.json"
        shutil.copy(plain / "annotations" / f"{name}.json", target)
    report = look(tmp_path / "tasks")
    assert {s.name for s in report.splits} == {"task_train", "task_val"}
    assert (report.images, bad(report)) == (30, {})


def test_images_may_lie_in_a_folder_named_as_the_json_is(plain):
    for name in ("train", "val", "test"):
        content = read(plain, name)
        for image in content["images"]:
            image["file_name"] = image["file_name"].rpartition("/")[2]
        (plain / "annotations" / f"{name}.json").write_text(json.dumps(content))
    report = look(plain)
    assert {s.rows.folder.name for s in report.splits} == {"train", "val", "test"}
    assert bad(report) == {}


def test_the_image_folder_may_be_given_for_all(plain, tmp_path):
    shutil.move(plain / "images", tmp_path / "pictures")
    report = look(plain / "annotations", tmp_path / "pictures")
    assert (len(report.splits), report.images, bad(report)) == (3, 36, {})


def test_what_is_no_set_of_objects_is_named_and_left_out(plain, capsys):
    annotations = plain / "annotations"
    content = read(plain)
    captions = [{"id": 1, "image_id": content["images"][0]["id"], "caption": "a dog"}]
    (annotations / "captions_train.json").write_text(json.dumps({"images": content["images"], "annotations": captions}))
    (annotations / "image_info_test.json").write_text(json.dumps({"images": content["images"], "categories": []}))
    (annotations / "results.json").write_text("[]")
    (plain / "notes.json").write_text('{"author": "me"}')
    report = look(plain)
    assert bad(report) == {}
    assert len(report.splits) == 3
    told = " ".join(report.left_out)
    for name in ("captions_train.json", "image_info_test.json", "results.json"):
        assert name in told
    assert "notes.json" not in told
    print_report(report)
    assert "captions_train.json" in capsys.readouterr().out
    assert as_json(report)["left_out"] == report.left_out


def test_a_json_that_cannot_be_read_is_an_error_not_left_out(plain):
    (plain / "annotations" / "extra.json").write_text('{"images": [')
    report = look(plain)
    assert bad(report) == {"file_unreadable": 1}
    assert report.defects[0].source.endswith("extra.json")


def test_the_whole_and_other_annotations_of_the_splits_are_left_out(plain):
    content = [read(plain, name) for name in ("train", "val")]
    whole = {**content[0], "images": content[0]["images"] + content[1]["images"]}
    (plain / "annotations" / "all.json").write_text(json.dumps(whole))
    (plain / "annotations" / "train_raw.json").write_text(json.dumps(content[0]))
    report = look(plain)
    assert {s.name for s in report.splits} == {"train", "val", "test"}
    assert "all.json" in report.left_out[0]
    assert "train_raw.json" in report.left_out[0]


def test_two_annotations_of_the_same_images_are_no_leak(plain):
    for name in ("train", "val"):
        source = plain / "annotations" / f"{name}.json"
        content = read(plain, name)
        content["categories"] = [{"id": 1, "name": "person"}]
        for row in content["annotations"]:
            row["category_id"] = 1
        (plain / "annotations" / f"person_keypoints_{name}2017.json").write_text(json.dumps(content))
        source.rename(plain / "annotations" / f"instances_{name}2017.json")
    (plain / "annotations" / "test.json").unlink()
    report = look(plain)
    assert len(report.splits) == 4
    assert (report.images, bad(report)) == (30, {})


def test_masks_are_examined_where_a_folder_has_them_and_the_jsons_are_named(clean):
    report = look(clean)
    assert all(split.rows is None for split in report.splits)
    assert "annotations/train.json" in report.left_out[0]


def test_a_split_may_lack_a_class_and_may_not_have_another_one(plain):
    path = plain / "annotations" / "val.json"
    content = read(plain, "val")
    gone = content["categories"].pop()
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != gone["id"]]
    path.write_text(json.dumps(content))
    for name in ("test", "train"):  # the first split has all classes
        (plain / "annotations" / f"{name}.json").rename(plain / "annotations" / f"a_{name}.json")
    path.rename(plain / "annotations" / "a_val.json")
    assert "classes_differ" not in bad(look(plain))
    content["categories"].append({"id": 99, "name": "moon"})
    (plain / "annotations" / "a_val.json").write_text(json.dumps(content))
    assert bad(look(plain))["classes_differ"] == 1


@pytest.mark.parametrize(
    ("name", "role", "family"),
    [
        ("instances_train2017", "train", "instances"),
        ("valid", "val", ""),
        ("test-dev", "test", ""),
        ("default", None, "default"),
        ("task_1/instances_val", "val", "task instances"),
        ("latest", None, "latest"),
    ],
)
def test_names_tell_the_role(name, role, family):
    assert (role_of(name), family_of(name)) == (role, family)
