"""One image set with labels of two kinds: what is learned from an image belongs together, whatever moved it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from densekit import build
from densekit.config import parse
from densekit.data.formats.shapes import generate_shapes
from densekit.errors import DensekitError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint") / "shapes"
    generate_shapes(folder, train=8, val=3, test=1, size=48, objects=2)
    return folder


def labels(folder, split):
    boxes = {"name": "coco", "images": f"{folder}/images", "annotations": f"{folder}/annotations/{split}.json"}
    places = {"images": f"{folder}/images/{split}", "masks": f"{folder}/masks/{split}"}
    return boxes, {"name": "masks", **places, "classes": f"{folder}/classes.txt"}


def config(train, transforms=(), heads=("boxes", "masks"), **data):
    parts = {"boxes": {"name": "faster_rcnn"}, "masks": {"name": "unet"}}
    tree = {
        "model": {"backbone": {"name": "resnet8"}, "heads": {name: parts[name] for name in heads}},
        "data": {"train": train, "train_transforms": list(transforms), **data},
        "train": {"steps": 1, "optimizer": {"lr": 0.1}},
    }
    return parse(tree, "test")


def joint(folder, split="train", **options):
    return {"name": "joint", "labels": [*reversed(labels(folder, split))], **options}


MOVING = (
    [{"name": "HorizontalFlip", "p": 0.5}, {"name": "ScaleJitter", "size": [64, 64], "scale": [0.8, 1.2]}],
    [{"name": "VerticalFlip", "p": 1}, {"name": "RandomRotate90", "p": 1}],
)


@pytest.mark.parametrize("transforms", MOVING, ids=["own", "albumentations"])
def test_boxes_and_mask_move_together(shapes, transforms):
    data = build.dataset(config(joint(shapes), transforms), "train", training=True)
    whole = 0
    for index in range(len(data)):
        sample = data.sample(1, index)
        for box, label, crowd in zip(sample.boxes, sample.labels, sample.crowd):
            rows, columns = np.nonzero(sample.mask == label + 1)
            if crowd or len(sample.boxes) != 1 or not len(rows):
                continue
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(seen - box).max() <= 2, "the box is that of the pixels"
            whole += 1
    assert whole >= 2


def test_an_image_has_the_id_of_its_boxes_and_the_classes_of_both(shapes):
    settings = config(joint(shapes, "val"))
    data = build.dataset(settings, "train", training=False)
    file = json.loads((shapes / "annotations/val.json").read_text())
    assert {data.sample(0, i).id for i in range(len(data))} == {image["id"] for image in file["images"]}
    known = build.classes_of(settings, data)
    assert known["boxes"].ids == (2, 5, 7, 11)
    assert known["masks"].names == ("background", "circle", "square", "triangle", "star")
    assert data.sample(0, 0).truth is not None


def test_images_with_one_kind_of_labels_are_left_out_and_counted(shapes, tmp_path):
    tree = json.loads((shapes / "annotations/train.json").read_text())
    lost = tree["images"].pop()["id"]
    tree["annotations"] = [a for a in tree["annotations"] if a["image_id"] != lost]
    (tmp_path / "fewer.json").write_text(json.dumps(tree))
    boxes, masks = labels(shapes, "train")
    train = {"name": "joint", "labels": [{**boxes, "annotations": str(tmp_path / "fewer.json")}, masks]}
    data = build.dataset(config(train), "train", training=True)
    assert len(data) == 7
    assert "1 images have labels of one kind alone" in data.notes[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda boxes, masks: [boxes], "at least two data sets"),
        (lambda boxes, masks: [boxes, boxes], "labels of an image are one of a kind, not detection, detection"),
        (
            lambda boxes, masks: [boxes, {k: v for k, v in masks.items() if k != "name"}],
            r"labels\[1\]: .* needs a name",
        ),
        (lambda boxes, masks: [boxes, {**masks, "mask": 1}], r"labels\[1\].mask: .* no such option"),
        (lambda boxes, masks: [boxes, {**masks, **MOVED}], "no image file has labels of all kinds"),
    ],
    ids=["one", "twice", "nameless", "option", "apart"],
)
def test_labels_that_do_not_fit_together_are_refused(shapes, change, words):
    boxes, masks = labels(shapes, "train")
    MOVED.update(images=f"{shapes}/images/val", masks=f"{shapes}/masks/val")
    with pytest.raises(DensekitError, match=words):
        build.dataset(config({"name": "joint", "labels": change(boxes, masks)}), "train", training=True)


MOVED: dict[str, str] = {}


def test_transforms_that_mix_images_are_refused(shapes):
    with pytest.raises(DensekitError, match="CopyPaste can't mix images that have labels of several kinds"):
        build.dataset(config(joint(shapes), [{"name": "CopyPaste"}]), "train", training=True)


def test_a_set_without_labels_for_one_of_its_heads_is_refused(shapes):
    with pytest.raises(DensekitError, match=r"data.train: it has labels for detection, and the head 'masks' does seg"):
        build.dataset(config(labels(shapes, "train")[0]), "train", training=True)
