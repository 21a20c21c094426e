"""The whole story of a detector on generated images: train, evaluate, predict, resume, as a user runs it."""

import csv
import json
import runpy
from pathlib import Path

import cv2
import pytest
import torch
import yaml

from densekit.data.formats.shapes import generate_shapes
from densekit.show.report import COCO_NUMBERS

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.heads.boxes.channels=16",
    "model.heads.boxes.box_head_width=32",
    "model.heads.boxes.samples=16",
    "data.workers=0",
    "train.epochs=null",
    "train.steps=3",
    "train.batch_size=2",
    "train.precision=fp32",
    "evaluation.every=100",
    "evaluation.pictures=2",
    "log.every=1",
]


def tool(name, *args):
    """Run a tool's main in this process."""
    return runpy.run_path(str(ROOT / "tools" / f"{name}.py"))["main"]([str(a) for a in args])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    generate_shapes(folder, train=6, val=3, test=3, size=64, seed=1)
    return folder


def overrides(shapes):
    paths = []
    for split in ("train", "val", "test"):
        paths += [f"data.{split}.images={shapes}/images", f"data.{split}.annotations={shapes}/annotations/{split}.json"]
    return [*SMALL, *paths]


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    config = ROOT / "configs/detection/faster_rcnn_r18_shapes.yaml"
    assert tool("train", config, "--out", out, *overrides(shapes)) == 0
    return out


def test_a_run_folder_holds_all_that_the_readme_promises(trained):
    for name in ("config.yaml", "metrics.jsonl", "last.pt", "best.pt", "samples/predictions.json"):
        assert (trained / name).stat().st_size > 0
    assert list(trained.glob("events.out.tfevents.*"))
    assert len(list((trained / "samples/pictures").iterdir())) == 2
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3]
    assert {"loss", "rpn_objectness", "rpn_box", "class", "box", "lr", "norm"} <= lines[0].keys()
    assert {"AP", "AP50", "loss", "per_class"} <= lines[-1].keys()


def test_a_checkpoint_stands_for_itself(trained, shapes):
    content = torch.load(trained / "best.pt", weights_only=True)
    truth = json.loads((shapes / "annotations/train.json").read_text())["categories"]
    assert dict(zip(content["classes"]["ids"], content["classes"]["names"])) == {c["id"]: c["name"] for c in truth}
    assert content["config"] == yaml.safe_load((trained / "config.yaml").read_text())
    assert content["made"]["densekit"] == "0.1.0"
    assert content["made"]["step"] == 3
    assert {"model.mean", "mean"} & content["model"].keys()
    assert "training" not in content


def test_evaluation_gives_cocos_numbers_ap_per_class_and_the_loss(trained, tmp_path):
    assert tool("evaluate", trained / "best.pt", "--data", "test", "--json", tmp_path / "test.json") == 0
    numbers = json.loads((tmp_path / "test.json").read_text())
    assert set(COCO_NUMBERS) <= numbers.keys()
    assert set(numbers["losses"]) == {"rpn_objectness", "rpn_box", "class", "box"}
    assert numbers["loss"] == pytest.approx(sum(numbers["losses"].values()))
    assert len(numbers["per_class"]) == len(torch.load(trained / "best.pt", weights_only=True)["classes"]["names"])


def test_predictions_come_in_the_data_sets_ids_and_the_files_pixels(trained, shapes, tmp_path):
    content = torch.load(trained / "best.pt", weights_only=True)
    inputs = [shapes / "images/test", str(shapes / "images/val/*1.jpg")]
    low = "model.heads.boxes.score_threshold=0.0"
    assert tool("predict", trained / "best.pt", *inputs, low, "--out", tmp_path, "--score", "0.01") == 0
    images = json.loads((tmp_path / "images.json").read_text())
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert len(images) == 4
    assert rows
    sizes = {i["id"]: (i["width"], i["height"]) for i in images}
    for row in rows:
        x, y, w, h = row["bbox"]
        width, height = sizes[row["image_id"]]
        assert row["category_id"] in content["classes"]["ids"]
        assert x >= -1e-3
        assert x + w <= width + 1e-2
        assert y >= -1e-3
        assert y + h <= height + 1e-2
    for image in images:
        picture = cv2.imread(str(tmp_path / "pictures" / f"{image['output']}.jpg"))
        times = -(-240 // max(image["width"], image["height"]))  # a small image is enlarged, and has a legend below
        assert picture.shape[1] == times * image["width"]
        assert picture.shape[0] > times * image["height"]
    with (tmp_path / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_a_checkpoint_starts_another_models_backbone(trained, shapes, tmp_path):
    config = ROOT / "configs/detection/faster_rcnn_r18_shapes.yaml"
    weights = f"model.backbone.weights={trained / 'best.pt'}"
    assert tool("train", config, "--out", tmp_path / "run", *overrides(shapes), weights, "train.steps=1") == 0


def test_a_checkpoint_starts_a_whole_model_of_the_same_classes(trained, shapes, tmp_path):
    config = ROOT / "configs/detection/faster_rcnn_r18_shapes.yaml"
    change = ["train.steps=1", "train.optimizer.lr=1e-12", "train.ema=null", f"model.weights={trained / 'best.pt'}"]
    assert tool("train", config, "--out", tmp_path / "run", *overrides(shapes), *change) == 0
    before = torch.load(trained / "best.pt", weights_only=True)["model"]
    after = torch.load(tmp_path / "run/best.pt", weights_only=True)["model"]
    key = "heads.boxes.neck.lateral.0.weight"
    key = key if key in before else next(k for k in before if k.startswith("heads.") and k.endswith("weight"))
    torch.testing.assert_close(after[key], before[key], atol=1e-6, rtol=0)
