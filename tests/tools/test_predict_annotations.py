"""Predictions under the image ids of a data set; pycocotools scores the file as it is."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densekit import console
from tests.tools import runs

RESIZE = "data.eval_transforms=[{name: Resize, long: 48}]"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four JPEGs of noise and squares, two of them in a subfolder; large enough to be decoded at half their size."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    random = np.random.default_rng(4)
    for name in ("a.jpg", "b.jpg", "more/c.jpg", "more/größe.jpg"):
        image = cv2.resize(random.integers(0, 256, (8, 10, 3)).astype(np.uint8), (120, 96))
        cv2.imencode(".jpg", image)[1].tofile(folder / name)
    return folder


@pytest.fixture(scope="module")
def truth(checkpoints, photos, tmp_path_factory):
    """A json whose objects are what the detector finds, some of them moved: so that AP is neither 0 nor 1."""
    out = tmp_path_factory.mktemp("truth")
    assert runs.call("predict", checkpoints["detection"], photos, "--out", out, RESIZE)[0] == 0
    images, rows = (json.loads((out / f"{name}.json").read_text()) for name in ("images", "predictions"))
    ids = {1: 900, 2: 17, 3: 555, 4: 4}
    names = ["a.jpg", "b.jpg", "more\\c.jpg", "more/gro\u0308\u00dfe.jpg"]  # as Windows and macOS write them
    annotations = []
    for image in images:
        for number, row in enumerate([r for r in rows if r["image_id"] == image["id"]][:12:2]):
            x, y, w, h = row["bbox"]
            box = [x, y, w * (1 if number % 2 else 0.7), h]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": ids[image["id"]], "category_id": row["category_id"],
                 "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
    classes = json.loads((_shapes_json(checkpoints)).read_text())["categories"]
    tree = {
        "images": [
            {"id": ids[i["id"]], "file_name": name, "width": 120, "height": 96} for i, name in zip(images, names)
        ],
        "annotations": annotations,
        "categories": classes,
    }
    path = out / "a.json"
    path.write_text(json.dumps(tree))
    return path


def _shapes_json(checkpoints):
    config = torch.load(checkpoints["detection"], weights_only=True)["config"]
    return Path(config["data"]["val"]["annotations"])


def predicted(checkpoint, *arguments, code=0):
    found, printed = runs.call("predict", checkpoint, *arguments)
    assert found == code, printed
    return printed


def scored(annotations, results):
    """pycocotools' 12 numbers of a file of results."""
    with contextlib.redirect_stdout(io.StringIO()):
        own = COCO(str(annotations))
        evaluation = COCOeval(own, own.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_pycocotools_scores_the_file_as_evaluate_does(checkpoints, photos, truth, tmp_path):
    checkpoint, out = checkpoints["detection"], tmp_path / "out"
    predicted(checkpoint, photos, "--annotations", truth, "--out", out, "--batch", 3, RESIZE)
    where = [f"data.val.annotations={truth}", f"data.val.images={photos}", RESIZE]
    code, printed = runs.call("evaluate", checkpoint, *where, "--json", tmp_path / "numbers.json")
    assert code == 0, printed
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    stats = scored(truth, out / "predictions.json")
    assert 0.05 < stats[0] < 0.95
    assert [numbers[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(stats[:3], abs=1e-6)
    assert {i["id"] for i in json.loads((out / "images.json").read_text())} == {900, 17, 555, 4}


def test_a_list_of_images_without_annotations_is_enough(checkpoints, photos, truth, tmp_path):
    tree = json.loads(truth.read_text())
    del tree["annotations"], tree["categories"]
    (tmp_path / "test.json").write_text(json.dumps(tree))
    arguments = (checkpoints["detection"], photos, RESIZE, "--annotations")
    predicted(*arguments, tmp_path / "test.json", "--out", tmp_path / "out")
    predicted(*arguments, truth, "--out", tmp_path / "expected")
    results = [(tmp_path / place / "predictions.json").read_text() for place in ("out", "expected")]
    assert results[0] == results[1]


def test_ids_that_are_texts_stay_so(checkpoints, photos, truth, tmp_path):
    text = json.dumps({**json.loads(truth.read_text()), "annotations": []})
    for number in (900, 17, 555, 4):
        text = text.replace(f'"id": {number},', f'"id": "00{number}",')
    (tmp_path / "a.json").write_text(text)
    predicted(checkpoints["detection"], photos, "--annotations", tmp_path / "a.json", "--out", tmp_path / "out")
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {row["image_id"] for row in rows} == {"00900", "0017", "00555", "004"}


def test_images_that_the_json_lacks_are_left_out_and_those_that_the_folder_lacks_are_named(
    checkpoints, photos, truth, tmp_path
):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "b.jpg").rename(folder / "new.jpg")
    printed = predicted(
        checkpoints["detection"], folder, "--annotations", truth, "--out", tmp_path / "out", code=console.SKIPPED
    )
    assert f"left out: 1 images of {folder} that {truth} does not have: new.jpg" in printed
    assert "1 of 4 images were skipped" in printed
    assert "b.jpg: there is no such image" in (tmp_path / "out/skipped.txt").read_text()
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {row["image_id"] for row in rows} == {900, 555, 4}


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_other_tasks_get_the_ids_too(checkpoints, photos, truth, tmp_path, task):
    predicted(checkpoints[task], photos, "--annotations", truth, "--out", tmp_path / "out")
    images = json.loads((tmp_path / "out/images.json").read_text())
    assert [i["id"] for i in images] == [900, 17, 555, 4]


def test_files_instead_of_the_folder_are_refused(checkpoints, photos, truth):
    line = runs.refused("predict", checkpoints["detection"], photos / "a.jpg", "--annotations", truth)
    assert "IMAGES must then be one folder" in line


def test_a_missing_json_is_refused(checkpoints, photos, tmp_path):
    line = runs.refused("predict", checkpoints["detection"], photos, "--annotations", tmp_path / "none.json")
    assert "none.json: there is no such file" in line


def test_categories_of_other_ids_are_refused_or_matched_by_name(checkpoints, photos, truth, tmp_path):
    tree = json.loads(truth.read_text())
    for category in tree["categories"]:
        category["id"] += 100
    for annotation in tree["annotations"]:
        annotation["category_id"] += 100
    (tmp_path / "a.json").write_text(json.dumps(tree))
    arguments = (checkpoints["detection"], photos, "--annotations", tmp_path / "a.json", RESIZE)
    line = runs.refused("predict", *arguments)
    assert "a.json: its classes are not those that the model learned: other ids" in line
    predicted(*arguments, "--out", tmp_path / "out", "data.match_names=true")
    predicted(checkpoints["detection"], photos, "--annotations", truth, "--out", tmp_path / "own", RESIZE)
    matched, own = (
        scored(a, tmp_path / o / "predictions.json") for a, o in ((tmp_path / "a.json", "out"), (truth, "own"))
    )
    assert matched == pytest.approx(own, abs=1e-12)
