"""``Predictor``: one image or many, of any kind, with the numbers that tools/predict.py writes."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks

from densekit import DensekitError, Predictor
from tests.tools import runs

README = Path(__file__).resolve().parents[2] / "README.md"
TASKS = ("detection", "segmentation", "classification")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five photos of four sizes, one of them grey, one a JPEG on its side."""
    place = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    sizes = {"a": (32, 40), "b": (40, 32), "c": (32, 40), "d": (64, 30), "e": (33, 50)}
    for name, size in sizes.items():
        pixels = random.integers(0, 256, (*size, 3)).astype(np.uint8)
        if name == "d":
            exif = Image.Exif()
            exif[274] = 6
            Image.fromarray(pixels).save(place / "d.jpg", exif=exif)
        else:
            Image.fromarray(pixels[..., 0] if name == "e" else pixels).save(place / f"{name}.png")
    return place


@pytest.fixture(scope="module")
def files(folder):
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def predictors(checkpoints):
    return {task: Predictor(checkpoints[task]) for task in TASKS}


def written(checkpoint, folder, out, *arguments):
    code, printed = runs.call("predict", checkpoint, folder, "--out", out, "--no-pictures", *arguments)
    assert code == 0, printed
    return out


def assert_same(one, other):
    assert one.ids.tolist() == other.ids.tolist()
    for name in ("boxes", "scores", "masks"):
        if getattr(one, name, None) is None:
            assert getattr(other, name, None) is None
        else:
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=2e-4)


@pytest.mark.parametrize("task", ["detection", "classification"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_numbers_are_those_that_predict_writes(predictors, checkpoints, files, folder, tmp_path, task, batch_size):
    rows = json.loads((written(checkpoints[task], folder, tmp_path / "out") / "predictions.json").read_text())
    results = list(Predictor(checkpoints[task], batch_size=batch_size)(files))
    found = [entry for result in results for entry in result.to_coco()]
    assert len(found) == len(rows) > 0
    for own, row in zip(found, rows):
        assert own["image_id"] == row["image_id"]
        assert own["category_id"] == row["category_id"]
        if task == "detection":
            assert own["bbox"] == pytest.approx(row["bbox"], abs=2e-3)
            assert own["score"] == pytest.approx(row["score"], abs=1e-5)
        else:
            assert own["probabilities"] == pytest.approx(row["probabilities"], abs=1e-5)


@pytest.mark.parametrize("window", [None, 32])
def test_the_masks_are_those_that_predict_writes(checkpoints, files, folder, tmp_path, window):
    arguments = () if window is None else ("--window", window)
    out = written(checkpoints["segmentation"], folder, tmp_path / "out", *arguments)
    results = Predictor(checkpoints["segmentation"], window=window)(files)
    for path, result in zip(files, results, strict=True):
        with Image.open(out / "masks" / f"{path.stem}.png") as mask:
            assert (np.asarray(mask) == result.masks).mean() > 0.999
        assert set(result.ids) == set(np.unique(result.masks))


@pytest.mark.parametrize("task", TASKS)
def test_a_path_a_pillow_image_and_arrays_give_one_result(predictors, files, task):
    predict, path = predictors[task], files[0]
    expected = predict(str(path))
    rgb = np.asarray(Image.open(path))
    assert_same(predict(path), expected)
    assert_same(predict(Image.open(path)), expected)
    assert_same(predict(rgb), expected)
    assert_same(predict(cv2.imread(str(path)), bgr=True), expected)
    assert_same(predict(np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)])), expected)
    assert_same(predict(Image.open(path).convert("RGBA")), expected)


def test_grey_images_are_taken_for_colour(predictors, files):
    expected = predictors["detection"](files[4])
    assert_same(predictors["detection"](np.asarray(Image.open(files[4]))), expected)
    assert_same(predictors["detection"](Image.open(files[4])), expected)


def test_colours_matter(predictors, files):
    """What makes the test of bgr above one that could fail."""
    rgb = np.asarray(Image.open(files[0]))
    one, other = (predictors["classification"](image) for image in (rgb, rgb[..., ::-1]))
    assert np.abs(one.probabilities - other.probabilities).max() > 1e-5


def test_boxes_are_in_the_pixels_of_the_given_image(predictors, files):
    turned = predictors["detection"](files[3])  # the file says that it lies on its side
    assert turned.image.size == (30, 64)
    stored = predictors["detection"](Image.open(files[3]))  # a Pillow image is taken as it is
    assert stored.image.size == (64, 30)
    for result, (height, width) in ((turned, (30, 64)), (stored, (64, 30))):
        assert result.boxes[:, 2].max() <= width
        assert result.boxes[:, 3].max() <= height
        assert result.boxes.dtype == np.float32
        assert len(result.names) == len(result.ids) == len(result.scores) == len(result.boxes)
        assert (np.diff(result.scores) <= 0).all()


@pytest.mark.parametrize("task", TASKS)
def test_many_are_read_a_batch_at_a_time_and_do_not_depend_on_it(checkpoints, predictors, files, task):
    taken = []

    def source():
        for number, path in enumerate(files):
            taken.append(number)
            yield path if number % 2 else np.asarray(Image.open(path))

    results = Predictor(checkpoints[task], batch_size=2)(source())
    assert taken == []
    first = next(results)
    assert taken == [0, 1]
    for number, result in enumerate([first, *results]):
        item = files[number] if number % 2 else np.asarray(Image.open(files[number]))
        assert result.image.id == number + 1
        assert_same(result, predictors[task](item))
    assert taken == [0, 1, 2, 3, 4]


def test_a_bad_image_among_many_is_an_error_or_none_in_its_place(predictors, files, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"<html>404</html>")
    many = [files[0], tmp_path / "bad.jpg", files[1]]
    found = list(predictors["detection"](many, on_bad_image="skip"))
    assert [f is None for f in found] == [False, True, False]
    assert_same(found[2], predictors["detection"](files[1]))
    with pytest.raises(DensekitError, match=r"bad\.jpg: not an image: it is a web page"):
        list(predictors["detection"](many))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 20, 30), np.uint8), "channels first"),
        (np.zeros((20, 30, 2), np.uint8), "2 channels, but the model takes 3"),
        (np.zeros((0, 30, 3), np.uint8), "is no image"),
        (np.full((20, 30, 3), 0.5, np.float32), "multiply them by 255"),
        (np.full((20, 30, 3), np.nan, np.float32), "image 1"),
        (7, "a int is no image"),
        ([torch.zeros(3, 20, 30)], "a Tensor is no image"),
        ("no/such/file.jpg", "there is no such image"),
    ],
)
def test_what_is_no_image_is_said_in_one_line(predictors, image, words):
    with pytest.raises(DensekitError, match=words) as caught:
        list(predictors["detection"](image))
    assert "\n" not in str(caught.value)


def test_wrong_settings_are_said_in_one_line(checkpoints):
    for settings, words in (
        ({"device": "gpu"}, "there is no device 'gpu'"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"window": 64}, "is for segmenters"),
    ):
        with pytest.raises(DensekitError, match=words):
            Predictor(checkpoints["detection"], **settings)


@pytest.mark.parametrize("task", TASKS)
def test_results_are_drawn(predictors, files, task):
    picture = predictors[task](files[0]).draw(**{"score": 0.0} if task == "detection" else {})
    assert isinstance(picture, Image.Image)
    assert picture.mode == "RGB"
    with Image.open(files[0]) as image:
        large = np.asarray(image).repeat(6, 0).repeat(6, 1)  # 40 pixels become 240
    assert picture.width == 240
    assert picture.height >= 192
    assert (np.asarray(picture)[:192] != large).any()
    assert (np.asarray(picture)[:192] == large).any()


def test_the_readmes_lines_run(checkpoints, files, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(from densekit import Predictor.*?)```", README.read_text(), re.S)
    (tmp_path / "runs/cells").mkdir(parents=True)
    shutil.copy(checkpoints["detection"], tmp_path / "runs/cells/best.pt")
    shutil.copy(files[3], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) > 1
    with Image.open(tmp_path / "drawn.jpg") as picture:
        assert picture.width >= 30


def test_only_the_boxes_above_a_score(predictors, files):
    result = predictors["detection"](files[0])
    middle = float(np.median(result.scores))
    best = result.above(middle)
    assert best.scores.tolist() == [s for s in result.scores.tolist() if s >= middle]
    assert best.boxes.tolist() == result.boxes[: len(best)].tolist()


def test_masks_as_coco_are_read_back_by_pycocotools(predictors, files):
    result = predictors["segmentation"](files[0])
    drawn = np.full(result.masks.shape, -1)
    for entry in result.to_coco():
        json.dumps(entry)
        drawn[coco_masks.decode(entry["segmentation"]) == 1] = entry["category_id"]
    assert (drawn == result.masks).all()


def test_supervision_gets_its_types_where_it_is_installed(predictors, files, monkeypatch):
    calls = types.SimpleNamespace(**{n: lambda **given: given for n in ("Detections", "Classifications")})
    monkeypatch.setitem(sys.modules, "supervision", calls)
    boxes = predictors["detection"](files[0])
    given = boxes.to_supervision()
    assert given["xyxy"] is boxes.boxes
    assert given["data"]["class_name"].tolist() == boxes.names
    masks = predictors["segmentation"](files[0])
    given = masks.to_supervision()
    assert given["mask"].shape == (len(masks.ids), 32, 40)
    for box, layer in zip(given["xyxy"], given["mask"]):
        rows, columns = np.nonzero(layer)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    classes = predictors["classification"](files[0])
    given = classes.to_supervision()
    assert given["confidence"].tolist() == sorted(classes.probabilities.tolist(), reverse=True)


def test_supervision_is_asked_for_where_it_is_missing(predictors, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(DensekitError, match="pip install supervision"):
        predictors["detection"](files[0]).to_supervision()


def test_recorded_graphs_are_for_gpus(checkpoints, folder):
    told = runs.refused("predict", checkpoints["classification"], folder, "--device", "cpu", "--capture")
    assert "capture records what a CUDA GPU does, and the model is on cpu; leave it out" in told
