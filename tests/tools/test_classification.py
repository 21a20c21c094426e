"""The whole story of a classifier: pretrain a backbone, evaluate, predict, and put it under a detector."""

import csv
import json
import runpy
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from densekit import build
from densekit import config as configs
from densekit.data.formats.shapes import generate_shapes
from densekit.types import Classes

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.backbone.name=resnet8",
    "data.workers=0",
    "train.epochs=null",
    "train.batch_size=8",
    "train.precision=fp32",
    "train.schedule.warmup=0",
    "evaluation.every=100",
    "evaluation.batch_size=8",
    "log.every=1",
    "log.tensorboard=false",
]


def tool(name, *args):
    """Run a tool's main in this process."""
    return runpy.run_path(str(ROOT / "tools" / f"{name}.py"))["main"]([str(a) for a in args])


def write_idx(path, values):
    path.write_bytes(struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes())


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Three classes of grey noise: bright above, bright below, bright all over."""
    folder = tmp_path_factory.mktemp("mnist")
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 48).astype(np.uint8)
    images = random.integers(0, 60, (48, 16, 16)).astype(np.uint8)
    images[labels != 1, :8] += 180
    images[labels != 0, 8:] += 180
    write_idx(folder / "images", images)
    write_idx(folder / "labels", labels)
    (folder / "files").mkdir()
    for number in range(4):
        cv2.imwrite(str(folder / "files" / f"{number}.png"), images[number])
    return folder, labels


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    folder, _ = digits
    out = tmp_path_factory.mktemp("runs") / "run"
    splits = {"train": [0, 32], "val": [32, 48], "test": [32, 48]}
    paths = [f"data.{split}.{kind}={folder}/{kind}" for split in splits for kind in ("images", "labels")]
    parts = [f"data.{split}.part={part}" for split, part in splits.items()]
    transforms = ["data.train_transforms=[]", "data.eval_transforms=[]", "train.steps=20"]
    config = ROOT / "configs/classification/mnist.yaml"
    assert tool("train", config, "--out", out, *SMALL, *paths, *parts, *transforms) == 0
    return out


def test_what_was_learned_is_measured(trained, tmp_path):
    assert tool("evaluate", trained / "best.pt", "--data", "test", "--json", tmp_path / "n.json") == 0
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["top1"] >= 0.9
    assert numbers["top5"] == 1.0
    assert numbers["images"] == 16
    assert set(numbers["per_class"]) == {"0", "1", "2"}
    assert numbers["loss"] > 0


def test_predictions_name_the_class_of_each_file(trained, digits, tmp_path):
    folder, labels = digits
    assert tool("predict", trained / "best.pt", folder / "files", "--out", tmp_path) == 0
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert [row["category_id"] for row in rows] == labels[:4].tolist()
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4) for row in rows)
    with (tmp_path / "predictions.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == [str(n) for n in labels[:4]]


def test_the_pretrained_backbone_goes_under_a_detector(trained, tmp_path, capsys):
    generate_shapes(tmp_path / "shapes", train=4, val=2, test=2, size=48, seed=1)
    overrides = [
        *SMALL,
        f"model.backbone.weights={trained}/best.pt",
        "model.backbone.frozen_stages=2",
        "model.heads.boxes.anchor_sizes=[[16], [32]]",
        "model.heads.boxes.channels=16",
        "model.heads.boxes.box_head_width=32",
        "train.batch_size=2",
        "train.steps=1",
        "evaluation.pictures=0",
    ]
    for split in ("train", "val", "test"):
        overrides += [f"data.{split}.images={tmp_path}/shapes/images"]
        overrides += [f"data.{split}.annotations={tmp_path}/shapes/annotations/{split}.json"]
    path = ROOT / "configs/detection/faster_rcnn_r18_shapes.yaml"
    assert tool("train", path, "--out", tmp_path / "run", *overrides) == 0
    printed = capsys.readouterr().out
    assert "best.pt (sha256 " in printed
    assert "input channels of conv1.weight adapted" in printed

    classes = Classes(("one", "two"), (1, 2))
    model, _ = build.model(configs.load(path, overrides), classes)
    pretrained = torch.load(trained / "best.pt", weights_only=True)["model"]
    own = model.backbone.state_dict()
    assert torch.allclose(own["conv1.weight"].sum(1, keepdim=True), pretrained["backbone.conv1.weight"], atol=1e-6)
    for key in own:
        if key != "conv1.weight" and "num_batches" not in key:
            assert torch.equal(own[key], pretrained[f"backbone.{key}"]), key
    assert not model.backbone.layer1[0].conv1.weight.requires_grad
