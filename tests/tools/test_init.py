"""A folder of boxes becomes a config that trains."""

from __future__ import annotations

import json

import pytest
import yaml

from densekit import load_config
from densekit.errors import DensekitError
from tests.data.formats import folders
from tests.tools import runs
from tests.tools.test_convert import coco

SMALL = [
    "model.heads.boxes.channels=16", "model.heads.boxes.box_head_width=16", "model.heads.boxes.samples=16",
    "train.epochs=null", "train.steps=1", "train.batch_size=2", "train.schedule.warmup=0", "train.precision=fp32",
    "evaluation.pictures=0", "log.tensorboard=false", "data.workers=0",
]  # fmt: skip


def init(folder, target, *options):
    code, printed = runs.call(
        "init", folder, "--out", target, "--weights", "none", "--backbone", "resnet8", "--size", 32, *options
    )
    assert code == 0, printed
    return printed, yaml.safe_load(target.read_text())


def yolo(folder):
    """Ten images, two of the same bytes and two copies of one picture, as Roboflow writes them."""
    for i in range(6):
        folders.image(folder / f"images/{i}.png", 32 + i, 32)
        folders.text(folder / f"labels/{i}.txt", f"{i % 2} .5 .5 .{2 + i} .4\n")
    for name in ("5 copy", "p.rf.1", "p.rf.2", "7"):
        folders.image(
            folder / f"images/{name}.png", 37 if name == "5 copy" else 40 + len(name) + int(name[-1] == "2"), 32
        )
        folders.text(folder / f"labels/{name}.txt", "1 .5 .5 .5 .4\n")
    folders.text(folder / "classes.txt", "cat\ndog\n")


def voc(folder):
    for i in range(6):
        folders.image(folder / f"JPEGImages/{i}.jpg", 32 + i, 32)
        box = folders.xml_object("cat" if i else "dog", (3, 3, 20, 20 + i))
        folders.xml(folder / f"Annotations/{i}.xml", f"{i}.jpg", [box], (32 + i, 32))


def labelme(folder):
    for i in range(6):
        folders.image(folder / f"images/{i}.jpg", 32 + i, 32)
        shape = ("cat", "rectangle", [[2, 2], [20, 20 + i]])
        folders.labelme(folder / f"json/{i}.json", f"../images/{i}.jpg", [shape], (32 + i, 32))


def table(folder):
    rows = []
    for i in range(6):
        folders.image(folder / f"{i}.jpg", 32 + i, 32)
        rows.append(f"{i}.jpg,2,2,20,{20 + i},cat\n")
    folders.text(folder / "boxes.csv", "".join(rows))


def roboflow(folder):
    for split in ("train", "valid"):
        names = [f"{split}{i}.jpg" for i in range(3)]
        for name in names:
            folders.image(folder / split / name)
        coco(folder / split / "_annotations.coco.json", names)


def one_json(folder):
    names = [f"{i}.jpg" for i in range(6)]
    for i, name in enumerate(names):
        folders.image(folder / "images" / name, 40, 30 + i)
    coco(folder / "result.json", names)
    content = json.loads((folder / "result.json").read_text())
    for i, image in enumerate(content["images"]):
        image["height"] = 30 + i
    (folder / "result.json").write_text(json.dumps(content))


@pytest.mark.parametrize("make", [yolo, voc, labelme, table, roboflow, one_json])
def test_a_folder_of_each_program_is_one_command_to_a_config_that_trains(tmp_path, make):
    make(tmp_path / "in")
    printed, _ = init(tmp_path / "in", tmp_path / "run.yaml")
    load_config(tmp_path / "run.yaml")
    assert ("split by seed 0" in printed) is (make is not roboflow)
    code, trained = runs.call("train", tmp_path / "run.yaml", "--out", tmp_path / "run", "--device", "cpu", *SMALL)
    assert code == 0, trained
    assert (tmp_path / "run/best.pt").is_file()


def test_same_pictures_stay_in_one_part_and_the_seed_decides(tmp_path):
    yolo(tmp_path / "in")
    parts = []
    for seed in range(8):
        init(tmp_path / "in", tmp_path / f"{seed}.yaml", "--seed", seed)
        train, val = ((tmp_path / f"{seed}_{part}.txt").read_text().split("\n")[:-1] for part in ("train", "val"))
        assert sorted(train + val) == sorted(f"{n}.png" for n in (*range(6), "5 copy", "p.rf.1", "p.rf.2", 7))
        assert len(val) in (2, 3)
        for pair in ({"p.rf.1.png", "p.rf.2.png"}, {"5.png", "5 copy.png"}):
            assert len(pair & set(val)) in (0, 2)
        parts.append(tuple(val))
    assert len(set(parts)) > 1


def test_what_the_user_says_is_taken_and_the_rest_is_printed(tmp_path):
    voc(tmp_path / "in")
    printed, tree = init(tmp_path / "in", tmp_path / "a.yaml", "--epochs", 3, "--time", "5m", "--classes", "dog", "cat")
    assert tree["train"]["epochs"] == 3
    assert tree["train"]["max_minutes"] == 5
    assert tree["data"]["train"]["classes"] == tree["data"]["val"]["classes"] == ["dog", "cat"]
    assert "detection, labels of the format voc" in printed
    assert "images: 6 images, 6 objects" in printed
    assert "long side 32; anchors [[" in printed
    assert "is there already" in runs.refused("init", tmp_path / "in", "--out", tmp_path / "a.yaml")


def test_sizes_follow_the_boxes(tmp_path):
    folders.image(tmp_path / "in/images/a.png", 600, 400)
    folders.image(tmp_path / "in/images/b.png", 601, 400)
    for name, side in (("a", 0.02), ("b", 0.5)):
        folders.text(tmp_path / f"in/labels/{name}.txt", f"0 .5 .5 {side} {side}\n")
    code, printed = runs.call("init", tmp_path / "in", "--out", tmp_path / "a.yaml", "--weights", "none")
    assert code == 0, printed
    assert yaml.safe_load((tmp_path / "a.yaml").read_text())["data"]["eval_transforms"] == [
        {"name": "Resize", "long": 608}
    ]
    folders.text(tmp_path / "in/labels/a.txt", "0 .5 .5 .4 .4\n")
    assert runs.call("init", tmp_path / "in", "--out", tmp_path / "b.yaml", "--weights", "none")[0] == 0
    assert yaml.safe_load((tmp_path / "b.yaml").read_text())["data"]["eval_transforms"] == [
        {"name": "Resize", "long": 320}
    ]


def test_labels_that_cannot_be_read_write_nothing(tmp_path):
    yolo(tmp_path / "in")
    folders.text(tmp_path / "in/labels/1.txt", "0 .5\n")
    assert "1.txt:1: 2 values" in runs.refused("init", tmp_path / "in", "--out", tmp_path / "a.yaml")
    assert list(tmp_path.glob("a*")) == []


def test_training_on_a_folder_writes_its_config_beside_the_run_and_uses_it_again(tmp_path, monkeypatch, capsys):
    from densekit.__main__ import main

    monkeypatch.setattr("sys.argv", ["densekit"])
    table(tmp_path / "in")
    options = ["--weights", "none", "--backbone", "resnet8", "--size", "32", "--classes", "cat"]
    command = ["train", str(tmp_path / "in"), "--out", str(tmp_path / "runs/a"), "--device", "cpu", *options, *SMALL]
    assert main(command) == 0
    assert (tmp_path / "runs/a/best.pt").is_file()
    assert (tmp_path / "runs/a_val.txt").is_file()
    assert "labels of the format csv" in capsys.readouterr().out
    assert main([*command, "--resume"]) == 0
    assert "a.yaml is there and is used as it is" in capsys.readouterr().out


def test_training_on_a_folder_without_labels_that_can_be_read_is_refused(tmp_path):
    from densekit.__main__ import main

    folders.image(tmp_path / "a.jpg")
    folders.text(tmp_path / "a.txt", "a cell\n")
    with pytest.raises(DensekitError, match=r"1 images, but no labels of .*such as a\.txt"):
        main(["train", str(tmp_path)])
