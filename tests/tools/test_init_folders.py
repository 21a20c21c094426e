"""A folder a class becomes a config that trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from densekit.registry import DATASETS
from tests.data.formats import folders
from tests.tools import runs

SMALL = [
    "train.epochs=null", "train.steps=1", "train.batch_size=2", "train.schedule.warmup=0", "train.precision=fp32",
    "evaluation.pictures=0", "log.tensorboard=false", "data.workers=0",
]  # fmt: skip


def init(folder, target, *options):
    code, printed = runs.call(
        "init", folder, "--out", target, "--weights", "none", "--backbone", "resnet8", "--size", 32, *options
    )
    assert code == 0, printed
    return printed, yaml.safe_load(target.read_text())


def classes(folder, cats=6, dogs=11):
    for name, count in (("Katze", cats), ("Hund", dogs)):
        for i in range(count):
            folders.image(folder / name / f"{i}.JPG", 40 + i, 30 + len(name))


def built(part):
    return DATASETS.build(part["name"], {k: v for k, v in part.items() if k != "name"}, path="data")


def test_a_folder_a_class_is_split_class_by_class_and_trains(tmp_path):
    classes(tmp_path / "in")
    (tmp_path / "in/empty").mkdir()
    folders.image(tmp_path / "in/lonely.jpg")
    printed, tree = init(tmp_path / "in", tmp_path / "run.yaml")
    assert "images: 17 images, of 2 classes: Hund 11, Katze 6" in printed
    assert "1 folders without an image are left aside: empty" in printed
    assert "1 images in no folder of a class are left aside: lonely.jpg" in printed
    train, val = built(tree["data"]["train"]), built(tree["data"]["val"])
    assert {*train.names} | {*val.names} == {f"{c}/{i}.JPG" for c, n in (("Katze", 6), ("Hund", 11)) for i in range(n)}
    assert sorted(Path(name).parent.name for name in val.names) == ["Hund", "Hund", "Katze"]
    assert len(train) == 14
    code, trained = runs.call("train", tmp_path / "run.yaml", "--out", tmp_path / "run", "--device", "cpu", *SMALL)
    assert code == 0, trained
    assert (tmp_path / "run/best.pt").is_file()


def test_splits_as_folders_are_taken_as_they_are(tmp_path):
    for split in ("train", "valid", "test"):
        classes(tmp_path / "in" / split, 2, 3)
    printed, tree = init(tmp_path / "in", tmp_path / "a.yaml")
    assert [len(built(tree["data"][split])) for split in ("train", "val", "test")] == [5, 5, 5]
    assert "split by seed" not in printed


def test_a_list_chooses_images_and_names_what_is_not_there(tmp_path):
    classes(tmp_path / "in")
    folders.text(tmp_path / "list.txt", "Katze/1.JPG\nHund/1.JPG\nHund/10.JPG\n")
    data = DATASETS.build("image_folder", {"images": tmp_path / "in", "list": tmp_path / "list.txt"}, path="data")
    assert [*data.names] == ["Hund/1.JPG", "Hund/10.JPG", "Katze/1.JPG"]
    assert data.labels.tolist() == [0, 0, 1]
    folders.text(tmp_path / "list.txt", "Katze/17.JPG\n")
    code, printed = runs.call("init", tmp_path / "in", "--out", tmp_path / "b.yaml", "--classes", "Katze", "Hand")
    assert code == 2
    assert "'Hand'" in printed
    assert "did you mean 'Hund'" in printed


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("detection", "image_folder was recognised, which is for classification; there is nothing to learn detection"),
        ("segmentation", "it needs masks, or outlines of COCO, YOLO or LabelMe"),
    ],
)
def test_another_task_than_the_labels_allow_is_refused(tmp_path, task, said):
    classes(tmp_path / "in")
    assert said in runs.refused("init", tmp_path / "in", "--out", tmp_path / "a.yaml", "--task", task)


def test_folders_with_labels_that_nobody_read_are_no_classes(tmp_path):
    classes(tmp_path / "in", 2, 2)
    folders.text(tmp_path / "in/Katze/1.json", "{}")
    assert "2 images" not in (line := runs.refused("init", tmp_path / "in", "--out", tmp_path / "a.yaml"))
    assert "such as Katze/1.json" in line


def test_classes_that_cannot_be_learned_or_measured_are_refused(tmp_path):
    classes(tmp_path / "in/train", 2, 2)
    classes(tmp_path / "in/val", 2, 2)
    folders.image(tmp_path / "in/val/Maus/1.jpg")
    assert "lacks: Maus" in runs.refused("init", tmp_path / "in", "--out", tmp_path / "a.yaml")
    classes(tmp_path / "few", 1, 1)
    line = runs.refused("init", tmp_path / "few", "--out", tmp_path / "a.yaml")
    assert "no class has two different images" in line


def test_a_val_set_may_lack_a_class(tmp_path):
    classes(tmp_path / "in/train", 4, 4)
    classes(tmp_path / "in/val", 2, 2)
    folders.image(tmp_path / "in/train/Maus/1.jpg")
    init(tmp_path / "in", tmp_path / "run.yaml")
    code, trained = runs.call("train", tmp_path / "run.yaml", "--out", tmp_path / "run", "--device", "cpu", *SMALL)
    assert code == 0, trained
