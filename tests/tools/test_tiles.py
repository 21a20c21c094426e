"""--tiles, --flips and --scales of a detector, in predict and evaluate; pycocotools scores both alike."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from densekit import Predictor
from tests.tools import runs
from tests.tools.test_predict_annotations import scored

RESIZE = "data.eval_transforms=[{name: Resize, long: 48}]"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A large photo and a small one of noise."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(4)
    for name, size in {"large": (150, 100), "small": (60, 50)}.items():
        image = cv2.resize(random.integers(0, 256, (9, 9, 3)).astype(np.uint8), size)
        cv2.imencode(".png", image)[1].tofile(folder / f"{name}.png")
    return folder


def predicted(checkpoint, folder, out, *arguments):
    code, printed = runs.call("predict", checkpoint, folder, "--out", out, "--no-pictures", RESIZE, *arguments)
    assert code == 0, printed
    return json.loads((out / "predictions.json").read_text())


def test_an_image_smaller_than_a_tile_is_predicted_as_ever_and_a_larger_one_is_not(checkpoints, photos, tmp_path):
    checkpoint = checkpoints["detection"]
    plain = predicted(checkpoint, photos, tmp_path / "plain")
    tiled = predicted(checkpoint, photos, tmp_path / "tiled", "--tiles", 64, "--overlap", 0.2)
    large, small = ([[r for r in rows if r["image_id"] == i] for rows in (plain, tiled)] for i in (1, 2))
    assert small[0] == small[1]
    assert large[0] != large[1]
    assert max(r["bbox"][0] + r["bbox"][2] for r in large[1]) > 64
    assert all(r["bbox"][0] + r["bbox"][2] <= 150.001 and r["bbox"][1] + r["bbox"][3] <= 100.001 for r in large[1])
    whole = predicted(checkpoint, photos, tmp_path / "whole", "--tiles", 150)
    assert whole == plain


@pytest.mark.parametrize(
    "options", [["--tiles", 64, "--overlap", 0.3], ["--flips"], ["--scales", 0.5, 1.5], ["--tiles", 64, "--flips"]]
)
def test_evaluate_measures_what_predict_finds(checkpoints, photos, tmp_path, options):
    checkpoint = checkpoints["detection"]
    categories = json.loads(_validation(checkpoint).read_text())["categories"]
    rows = predicted(checkpoint, photos, tmp_path / "first", *options)
    truth = [
        {"id": n + 1, "image_id": r["image_id"], "category_id": r["category_id"], "iscrowd": 0,
         "bbox": [v * 0.98 for v in r["bbox"]], "area": r["bbox"][2] * r["bbox"][3]}
        for i in (1, 2) for n, r in enumerate([r for r in rows if r["image_id"] == i][:20], 100 * i)
    ]  # fmt: skip
    images = [
        {"id": 1, "file_name": "large.png", "width": 150, "height": 100},
        {"id": 2, "file_name": "small.png", "width": 60, "height": 50},
    ]
    annotations = tmp_path / "a.json"
    annotations.write_text(json.dumps({"images": images, "annotations": truth, "categories": categories}))
    predicted(checkpoint, photos, tmp_path / "out", "--annotations", annotations, *options)
    where = [f"data.val.annotations={annotations}", f"data.val.images={photos}", RESIZE]
    code, printed = runs.call("evaluate", checkpoint, *where, "--json", tmp_path / "numbers.json", *options)
    assert code == 0, printed
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    stats = scored(annotations, tmp_path / "out/predictions.json")
    assert stats[0] > 0.1
    assert [numbers[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(stats[:3], abs=1e-4)
    assert "loss" not in numbers


def test_the_predictor_finds_the_same(checkpoints, photos, tmp_path):
    rows = predicted(checkpoints["detection"], photos, tmp_path / "out", "--tiles", 64, "--overlap", 0.3, "--batch", 1)
    predict = Predictor(checkpoints["detection"], [RESIZE], tiles=64, overlap=0.3)
    results = list(predict(sorted(photos.iterdir())))
    found = [entry for result in results for entry in result.to_coco()]
    assert len(found) == len(rows)
    for own, row in zip(found, rows):
        assert own["bbox"] == pytest.approx(row["bbox"], abs=2e-3)
        assert own["score"] == pytest.approx(row["score"], abs=1e-5)


def _validation(checkpoint):
    return Path(torch.load(checkpoint, weights_only=True)["config"]["data"]["val"]["annotations"])
