"""YOLO folders as ultralytics, Roboflow, CVAT and LabelImg write them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from densekit.data.formats.yolo.yolo import recognise
from densekit.errors import DensekitError
from densekit.registry import DATASETS
from tests.data.formats import folders


def build(**options):
    return DATASETS.build("yolo", {name: str(value) for name, value in options.items()})


@pytest.fixture
def ultralytics(tmp_path):
    """data.yaml with names as a map, splits as folders; boxes, a polygon, images without objects."""
    for split, count in (("train", 3), ("val", 1)):
        for i in range(count):
            folders.image(tmp_path / f"images/{split}/{i}.jpg", 40 + i, 30)
    folders.text(tmp_path / "labels/train/0.txt", "0 0.5 0.5 0.25 0.2\n1 0.1 0.2 0.1 0.1\n")
    folders.text(tmp_path / "labels/train/1.txt", "1 0.1 0.1 0.5 0.1 0.3 0.6\n")
    folders.text(tmp_path / "labels/val/0.txt", "")
    names = "names:\n  0: cat\n  1: dog\n"
    return folders.text(tmp_path / "data.yaml", f"path: .\ntrain: images/train\nval: images/val\n{names}")


def test_boxes_and_polygons_are_those_that_the_numbers_say(ultralytics):
    data = build(folder=ultralytics, split="train")
    assert (data.classes.names, data.classes.ids) == (("cat", "dog"), (0, 1))
    boxes = [("0.jpg", "cat", 15, 12, 10, 6), ("0.jpg", "dog", 2, 4.5, 4, 3), ("1.jpg", "dog", 4.1, 3, 16.4, 15)]
    assert folders.close(folders.objects(data), [(*box, False) for box in boxes])
    assert np.allclose(data.file.segmentation(2), [[4.1, 3, 20.5, 3, 12.3, 18]])
    assert data.file.areas[2] == pytest.approx(16.4 * 15 / 2)
    assert len(data) == 3
    assert data.sample(0, 2).boxes.shape == (0, 4)
    assert any("1 images without a label file" in note for note in data.notes)


def test_a_folder_a_yaml_and_all_splits_at_once_are_the_same_images(ultralytics):
    assert len(build(folder=ultralytics.parent)) == 4
    assert folders.objects(build(folder=ultralytics.parent, split="val")) == []


@pytest.mark.parametrize("train", ["list.txt", "[images/train, images/val]", "../train/images"])
def test_splits_are_folders_lists_or_several_of_them(tmp_path, train):
    for split in ("train", "val"):
        folders.image(tmp_path / f"images/{split}/{split}.jpg")
        folders.text(tmp_path / f"labels/{split}/{split}.txt", "0 .5 .5 .5 .5\n")
    folders.image(tmp_path / "train/images/r.jpg")
    folders.text(tmp_path / "train/labels/r.txt", "0 .5 .5 .5 .5\n")
    folders.text(tmp_path / "list.txt", f"./images/train/train.jpg\n{tmp_path}/images/val/val.jpg\n")
    path = folders.text(tmp_path / "data.yaml", f"train: {train}\nval: images/val\nnc: 1\nnames: [cell]\n")
    found = {row[0].split("/")[-1] for row in folders.objects(build(folder=path, split="train"))}
    assert found == ({"r.jpg"} if train.startswith("..") else {"train.jpg", "val.jpg"})


def test_labels_of_cvat_stand_beside_the_images_and_lists_name_other_places(tmp_path):
    folders.image(tmp_path / "obj_train_data/a.png")
    folders.text(tmp_path / "obj_train_data/a.txt", "1 .5 .5 .5 .5\n")
    folders.text(tmp_path / "obj.names", "cat\ndog\n")
    folders.text(tmp_path / "train.txt", "data/obj_train_data/a.png\n")
    data = build(folder=tmp_path, list=tmp_path / "train.txt")
    assert folders.close(folders.objects(data), [("a.png", "dog", 10, 7.5, 20, 15, 0)])


def test_without_names_the_numbers_are_the_classes_or_the_option_names_them(tmp_path):
    folders.image(tmp_path / "images/a.jpg")
    folders.text(tmp_path / "labels/a.txt", "2 .5 .5 .5 .5\n0 .5 .5 .25 .5\n")
    assert build(folder=tmp_path).classes.ids == (0, 2)
    named = DATASETS.build("yolo", {"folder": str(tmp_path), "classes": ["a", "b", "c"]})
    assert [row[1] for row in folders.objects(named)] == ["a", "c"]


def test_an_image_with_an_orientation_has_the_size_that_it_is_shown_in(tmp_path):
    folders.image(tmp_path / "images/a.jpg", 40, 30, orientation=6)
    folders.text(tmp_path / "labels/a.txt", "0 .5 .5 .2 .1\n")
    assert folders.close(folders.objects(build(folder=tmp_path)), [("a.jpg", "0", 12, 18, 6, 4, 0)])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 .5 .5 .5", "4 values; a line is a class and a box"),
        ("0 .5 .5 .5 .5 .9", "6 values"),
        ("0 .5 x .5 .5", "'x' is no finite number"),
        ("0 .5 nan .5 .5", "'nan' is no finite number"),
        ("7 .5 .5 .5 .5", "class 7 is not among the 2 of"),
        ("0.5 .5 .5 .5 .5", "class '0.5' is no whole number"),
        ("0 120 .5 .5 .5", "120 is no part of the image's width or height"),
        ("0 .5 .5 0 .5", "has no area"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_value(ultralytics, line, said):
    folders.text(ultralytics.parent / "labels/train/0.txt", f"0 .5 .5 .5 .5\n\n{line}\n")
    with pytest.raises(DensekitError) as error:
        build(folder=ultralytics, split="train")
    assert "0.txt" in str(error.value)
    assert ":3" in str(error.value)
    assert said in str(error.value)


def test_labels_that_nobody_finds_are_an_error(tmp_path):
    folders.image(tmp_path / "images/a.jpg")
    folders.text(tmp_path / "anno/a.txt", "0 .5 .5 .5 .5\n")
    with pytest.raises(DensekitError, match=r"none of the 1 images has a label file, such as .*labels/a\.txt"):
        build(folder=tmp_path)


def test_label_files_without_an_image_are_told(ultralytics):
    folders.text(ultralytics.parent / "labels/train/gone.txt", "0 .5 .5 .5 .5\n")
    assert any("1 label files belong to no image" in note and "gone.txt" in note
               for note in build(folder=ultralytics, split="train").notes)  # fmt: skip


def test_other_splits_and_files_that_are_not_there_are_named(ultralytics):
    with pytest.raises(DensekitError, match="there is no split 'test'; it has 'train', 'val'"):
        build(folder=ultralytics, split="test")
    with pytest.raises(DensekitError, match=r"dta\.yaml: there is no such file or folder; did you mean 'data\.yaml'"):
        build(folder=ultralytics.parent / "dta.yaml")


def test_a_folder_is_recognised_with_its_splits(ultralytics, tmp_path_factory):
    found = recognise(ultralytics.parent)
    assert list(found.splits) == ["train", "val"]
    assert sum(len(build(**options)) for options in found.splits.values()) == 4
    other = tmp_path_factory.mktemp("other")
    folders.image(other / "a.jpg")
    folders.text(other / "a.txt", "some words\n")
    assert recognise(other) is None


def test_columns_of_a_large_set_are_cached_until_a_file_changes(ultralytics, tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("densekit.data.formats.labels.columns.CACHE_FROM", 1)
    first = build(folder=ultralytics, split="train")
    assert first.file.store is not None
    again = pickle.loads(pickle.dumps(build(folder=ultralytics, split="train")))
    assert again.file.store == first.file.store
    assert folders.objects(again) == folders.objects(first)
    assert again.file.segmentation(2) == first.file.segmentation(2)
    folders.text(ultralytics.parent / "labels/train/0.txt", "0 0.5 0.5 0.25 0.2\n")
    assert len(folders.objects(build(folder=ultralytics, split="train"))) == 2


def test_many_files_are_read_in_processes_to_the_same_columns(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for i in range(40):
        folders.image(tmp_path / f"images/{i:02}.png", 16 + i, 16)
        rows = "".join(f"{i % 3} .5 .5 {w:.4f} .5\n" for w in rng.uniform(0.1, 0.9, i % 4))
        folders.text(tmp_path / f"labels/{i:02}.txt", rows)
    alone = folders.objects(build(folder=tmp_path))
    monkeypatch.setattr("densekit.data.formats.labels.reading._SHARED_FROM", 1)
    monkeypatch.setattr("densekit.data.formats.labels.reading._PIECE", 7)
    assert folders.objects(build(folder=tmp_path)) == alone
    assert len(alone) == 60
