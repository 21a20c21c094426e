"""A folder whose labels serve several tasks: the first by default, another by --task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from pycocotools import mask as coco_mask

from densekit.registry import DATASETS
from tests.data.formats import folders
from tests.tools import runs
from tests.tools.test_init_masks import SMALL, mask

WIDTH, HEIGHT = 40, 30
OUTLINE = [5, 4, 25, 4, 25, 20, 9, 24]


def init(folder, target, *options):
    code, printed = runs.call(
        "init", folder, "--out", target, "--weights", "none", "--backbone", "resnet8", "--size", 32, *options
    )
    assert code == 0, printed
    return printed, yaml.safe_load(target.read_text())


def yolo(folder, names=range(5)):
    words = " ".join(str(v / (WIDTH, HEIGHT)[i % 2]) for i, v in enumerate(OUTLINE))
    for i in names:
        folders.image(folder / f"images/{i}.png", WIDTH, HEIGHT)
        folders.text(folder / f"labels/{i}.txt", f"1 {words}\n" if i else "")
    folders.text(folder / "classes.txt", "cat\ndog\n")


def labelme(folder):
    points = np.array(OUTLINE).reshape(-1, 2).tolist()
    for i in range(5):
        folders.image(folder / f"{i}.png", WIDTH, HEIGHT)
        shapes = [("dog", "polygon", points)] if i else []
        folders.labelme(folder / f"{i}.json", f"{i}.png", shapes, (WIDTH, HEIGHT))


def coco(folder):
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(5)]
    rows = [
        {"id": i, "image_id": i, "category_id": 7, "segmentation": [OUTLINE], "bbox": [5, 4, 20, 20], "area": 350}
        for i in range(1, 5)
    ]
    for i in range(5):
        folders.image(folder / f"images/{i}.png", WIDTH, HEIGHT)
    content = {"images": images, "annotations": rows, "categories": [{"id": 7, "name": "dog"}]}
    folders.text(folder / "result.json", json.dumps(content))


@pytest.fixture(autouse=True)
def different_images(monkeypatch):
    """Fixtures of one size are images of their own."""
    random = np.random.default_rng(0)
    monkeypatch.setattr(folders.np.random, "default_rng", lambda seed=None: random)


@pytest.mark.parametrize("make", [yolo, labelme, coco], ids=lambda make: make.__name__)
def test_outlines_are_boxes_by_default_and_masks_where_that_is_the_task(tmp_path, make):
    make(tmp_path / "in")
    printed, tree = init(tmp_path / "in", tmp_path / "boxes.yaml")
    assert "there are outlines too; --task segmentation" in printed
    assert list(tree["model"]["heads"]) == ["boxes"]

    printed, tree = init(tmp_path / "in", tmp_path / "masks.yaml", "--task", "segmentation")
    assert f"segmentation, labels of the format {make.__name__}" in printed
    expected = coco_mask.decode(coco_mask.frPyObjects([OUTLINE], HEIGHT, WIDTH))[:, :, 0].astype(bool)
    seen = {}
    for split in ("train", "val"):
        part = tree["data"][split]
        data = DATASETS.build(part["name"], {k: v for k, v in part.items() if k != "name"}, path=split)
        names = data.classes.names
        for i in range(len(data)):
            seen[data.path(i).name] = {names[v] for v in np.unique(data.source.mask(i)).tolist()}
            if data.path(i).name != "0.png":
                assert np.array_equal(data.source.mask(i) == names.index("dog"), expected)
    assert seen == {f"{i}.png": {"background", "dog"} if i else {"background"} for i in range(5)}


def test_outlines_train_a_segmenter(tmp_path):
    yolo(tmp_path / "in")
    init(tmp_path / "in", tmp_path / "run.yaml", "--task", "segmentation")
    code, trained = runs.call("train", tmp_path / "run.yaml", "--out", tmp_path / "run", "--device", "cpu", *SMALL)
    assert code == 0, trained


def test_boxes_alone_are_no_masks_but_rectangles_of_labelme_are(tmp_path):
    yolo(tmp_path / "in")
    folders.text(tmp_path / "in/labels/3.txt", "0 .5 .5 .2 .2\n")
    line = runs.refused("init", tmp_path / "in", "--out", tmp_path / "a.yaml", "--task", "segmentation")
    assert "1 of 4 objects have a box and no outline" in line
    labelme(tmp_path / "other")
    folders.labelme(
        tmp_path / "other/0.json", "0.png", [("cat", "rectangle", [[4, 6], [20, 16]])], (WIDTH, HEIGHT)
    )  # fmt: skip
    printed, tree = init(tmp_path / "other", tmp_path / "b.yaml", "--task", "segmentation")
    assert "1 rectangles are drawn as rectangles" in printed
    train, val = tree["data"]["train"], tree["data"]["val"]
    part = train if "0.png" in Path(train["annotations"]).read_text() else val
    data = DATASETS.build(part.pop("name"), part, path="data")
    drawn = data.source.mask([data.path(i).name for i in range(len(data))].index("0.png"))
    assert np.argwhere(drawn == data.classes.names.index("cat")).tolist() == [
        [y, x] for y in range(6, 16) for x in range(4, 20)
    ]


def test_masks_are_preferred_to_outlines_where_segmentation_is_the_task(tmp_path):
    coco(tmp_path / "in")
    for i in range(5):
        mask(tmp_path / f"in/masks/{i}.png", np.eye(HEIGHT, WIDTH, dtype=np.uint8))
    printed, tree = init(tmp_path / "in", tmp_path / "a.yaml")
    assert tree["data"]["train"]["name"] == "coco"
    assert "there are masks too, which are left aside; --task segmentation reads them" in printed
    _, tree = init(tmp_path / "in", tmp_path / "b.yaml", "--task", "segmentation")
    assert tree["data"]["train"]["name"] == "masks"
    _, tree = init(tmp_path / "in", tmp_path / "c.yaml", "--task", "segmentation", "--from", "coco")
    assert tree["data"]["train"]["name"] == "coco_masks"


def test_a_format_that_has_no_labels_for_the_task_is_refused(tmp_path):
    yolo(tmp_path / "in")
    line = runs.refused("init", tmp_path / "in", "--out", tmp_path / "a.yaml", "--task", "classification")
    assert "yolo was recognised, which is for detection" in line
    line = runs.refused("init", tmp_path / "in", "--out", tmp_path / "a.yaml", "--task", "detection", "--from", "masks")
    assert "--task detection: masks has no labels for it" in line


@pytest.mark.parametrize(
    ("head", "said"),
    [("unet", "--head unet: is for segmentation, and this is detection"), ("retinnet", "did you mean 'retinanet'")],
)
def test_a_head_of_another_task_or_name_is_refused(tmp_path, head, said):
    yolo(tmp_path / "in")
    assert said in runs.refused("init", tmp_path / "in", "--out", tmp_path / "a.yaml", "--head", head)
    assert list(tmp_path.glob("a*")) == []


def test_the_head_that_is_named_is_taken(tmp_path):
    yolo(tmp_path / "in")
    _, tree = init(tmp_path / "in", tmp_path / "a.yaml", "--head", "retinanet")
    head = tree["model"]["heads"]["boxes"]
    assert head["name"] == "retinanet"
    assert head["anchor_sizes"]
