"""The whole story of instances on generated images: train, evaluate, predict, and what can't be done in one line."""

from __future__ import annotations

import contextlib
import csv
import io
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densekit import Predictor
from densekit.data.images.video import open_video
from densekit.show.report import MASK_NUMBERS
from tests.tools import runs


@pytest.fixture(scope="module")
def tree(shapes):
    """Boxes of any score, so that there is something to write."""
    tree = runs.config_of("instances", shapes, steps=2)
    tree["model"]["heads"]["main"]["score_threshold"] = 0.0
    tree["evaluation"] |= {"metric": "mask_AP", "pictures": 2}
    return tree


@pytest.fixture(scope="module")
def run(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("instances")
    code, printed = runs.call("train", runs.write_config(out / "config.yaml", tree), "--out", out / "run")
    assert code == 0, printed
    return out / "run"


def test_a_run_learns_masks_and_chooses_by_them(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "mask" in next(line for line in lines if line["kind"] == "train")
    assert {"AP", "mask_AP", "mask_AP50"} <= lines[-1].keys()
    assert len(list((run / "samples/pictures").iterdir())) == 2
    assert "segmentation" in json.loads((run / "samples/predictions.json").read_text())[0]


def test_evaluate_and_predict_give_what_pycocotools_counts(run, shapes, tmp_path):
    code, printed = runs.call(
        "evaluate",
        run / "best.pt",
        "evaluation.boundary=true",
        "--json",
        tmp_path / "val.json",
        "--pictures",
        tmp_path / "p",
    )
    assert code == 0, printed
    numbers = json.loads((tmp_path / "val.json").read_text())
    assert set(MASK_NUMBERS) <= numbers.keys()
    assert "mask_AP" in next(iter(numbers["per_class"].values()))
    assert "mask" in numbers["losses"]
    assert "masks: IoU .50:.95" in printed
    assert "outlines of masks: IoU .50:.95" in printed
    truth = shapes / "annotations/val.json"
    arguments = (shapes / "images", "--annotations", truth, "--out", tmp_path / "out", "--score", 0.0)
    code, printed = runs.call("predict", run / "best.pt", *arguments)
    assert code == 0, printed
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    for row in rows:
        del row["bbox"]  # with one, pycocotools takes its area for the mask's
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO(str(truth))
        evaluation = COCOeval(annotated, annotated.loadRes(rows), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    theirs = [None if v == -1 else v for v in evaluation.stats.tolist()]
    assert [value for name, value in numbers.items() if name.startswith("mask_")] == pytest.approx(theirs, abs=1e-6)
    assert len(list((tmp_path / "out/pictures").iterdir())) == 5


def test_label_files_and_the_csv_stand_beside_the_masks(run, shapes, tmp_path):
    arguments = (shapes / "images/val", "--out", tmp_path, "--score", 0.0, "--no-pictures")
    assert (
        runs.call("predict", run / "best.pt", *arguments, "--formats", "coco", "csv", "yolo", "voc", "labelme")[0] == 0
    )
    rows = json.loads((tmp_path / "predictions.json").read_text())
    with (tmp_path / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    first = json.loads((tmp_path / "images.json").read_text())[0]
    own = [row["segmentation"] for row in rows if row["image_id"] == first["id"]]
    tree = json.loads((tmp_path / "labelme" / f"{first['output']}.json").read_text())
    drawn = np.zeros((first["height"], first["width"]), np.uint8)
    for shape in tree["shapes"]:
        if shape["shape_type"] == "polygon":
            points = [v for point in shape["points"] for v in point]
            drawn |= coco.decode(coco.frPyObjects([points], *drawn.shape))[..., 0]
    masks = np.max([coco.decode(code) for code in own], 0)
    assert (drawn >= masks).all()  # holes are filled
    lines = (tmp_path / "labels" / f"{first['output']}.txt").read_text().splitlines()
    assert len(lines) == sum(shape["shape_type"] == "polygon" for shape in tree["shapes"])


def test_a_predictor_gives_masks_of_each_image_whatever_the_batch(run, shapes):
    files = sorted((shapes / "images/val").iterdir())
    together, alone = list(Predictor(run / "best.pt", batch_size=5)(files)), Predictor(run / "best.pt", batch_size=1)
    for file, result in zip(files, together, strict=True):
        height, width = cv2.imread(str(file)).shape[:2]
        assert result.masks.shape == (len(result), height, width)
        np.testing.assert_array_equal(result.masks, alone(file).masks)
        boxes = result.boxes.round().astype(int)
        for mask, (x1, y1, x2, y2) in zip(result.masks, boxes):
            mask[max(0, y1) : y2 + 1, max(0, x1) : x2 + 1] = False
            assert not mask.any()


def test_a_video_is_drawn_and_its_lines_have_masks(run, shapes, tmp_path):
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, (48, 32))
    for value in (20, 200):
        writer.write(np.full((32, 48, 3), value, np.uint8))
    writer.release()
    assert open_video(path).count == 2
    assert runs.call("predict", run / "best.pt", path, "--out", tmp_path / "out", "--score", 0.0)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "out/clip.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0]["found"][0]["segmentation"]["size"] == [32, 48]


@pytest.mark.parametrize("options", [("--tiles", 32), ("--flips", "--scales", 1, 1.5)], ids=str)
def test_tiles_and_views_are_predicted_and_measured_with_masks(run, shapes, tmp_path, options):
    code, printed = runs.call("evaluate", run / "best.pt", "--json", tmp_path / "val.json", *options)
    assert code == 0, printed
    assert "mask_AP" in json.loads((tmp_path / "val.json").read_text())
    arguments = (shapes / "images/val", "--out", tmp_path / "out", "--no-pictures", *options)
    assert runs.call("predict", run / "best.pt", *arguments)[0] == 0
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert rows
    assert all(coco.area(row["segmentation"]) <= (row["bbox"][2] + 1) * (row["bbox"][3] + 1) for row in rows)


@pytest.mark.parametrize("boxes", ["annotated", "from_masks"])
def test_odd_masks_are_learned_from_and_measured(tree, shapes, tmp_path, boxes):
    """None, one pixel, nothing at all, outside of its box; and an image without objects."""
    for split in ("train", "val"):
        content = json.loads((shapes / f"annotations/{split}.json").read_text())
        sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
        empty = content["images"][0]["id"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != empty]
        for number, row in enumerate(content["annotations"]):
            height, width = sizes[row["image_id"]]
            odd = (
                None,
                {"size": [height, width], "counts": [5, 1, height * width - 6]},
                {"size": [height, width], "counts": [height * width]},
                [[0, 0, 6, 0, 6, 6, 0, 6]],
            )
            if number % 2:
                row["segmentation"] = odd[number // 2 % 4]
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    config = runs.write_config(tmp_path / "config.yaml", tree)
    paths = [f"data.{split}.annotations={tmp_path / split}.json" for split in ("train", "val")]
    code, printed = runs.call("train", config, "--out", tmp_path / "run", *paths, f"data.train.boxes={boxes}")
    assert code == 0, printed
    assert "objects have no segmentation" in printed
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert "mask_AP" in line
    assert np.isfinite(line["loss"])


def test_a_broken_segmentation_stops_with_its_name_or_its_image_is_skipped(tree, shapes, tmp_path):
    content = json.loads((shapes / "annotations/train.json").read_text())
    broken = content["annotations"][0]
    broken["segmentation"] = [[1, 2, 3, 4]]
    (tmp_path / "train.json").write_text(json.dumps(content))
    config, path = runs.write_config(tmp_path / "config.yaml", tree), f"data.train.annotations={tmp_path}/train.json"
    code, printed = runs.call("train", config, "--out", tmp_path / "stops", path, "train.steps=4")
    named = f"train.json: annotation {broken['id']}: a polygon has 4 numbers"
    assert code == 2
    before, after = printed.split("error: ")
    assert "the run will stop" in before
    assert named in before
    assert named in after
    skip = ("train.steps=4", "data.on_bad_image=skip")
    code, printed = runs.call("train", config, "--out", tmp_path / "skips", path, *skip)
    assert code == 0, printed
    assert "1 unreadable images were skipped" in printed


# What can't be done is said in one line.


def test_data_without_masks_is_refused_before_anything_is_learned(tree, shapes, tmp_path):
    content = json.loads((shapes / "annotations/train.json").read_text())
    for row in content["annotations"]:
        row["segmentation"] = []
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    config = runs.write_config(tmp_path / "config.yaml", tree)
    boxes = f"data.train.annotations={tmp_path / 'boxes.json'}"
    line = runs.refused("train", config, "--out", tmp_path / "run", boxes)
    assert "boxes.json: not one of its" in line
    assert "faster_rcnn" in line
    voc = f"data.train={{name: voc, folder: {shapes}}}"
    line = runs.refused("train", config, "--out", tmp_path / "run", voc)
    assert "data.train: 'voc' gives no masks of objects, and a head learns them" in line
    assert not (tmp_path / "run").exists()


def test_a_metric_of_masks_is_refused_for_a_head_of_boxes(shapes, tmp_path):
    tree = runs.config_of("detection", shapes)
    tree["evaluation"]["metric"] = "mask_AP"
    line = runs.refused("train", runs.write_config(tmp_path / "config.yaml", tree), "--out", tmp_path / "run")
    assert "detection has no number 'mask_AP'" in line
