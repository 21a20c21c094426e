"""Numbers on drawn images against data sets in which these images stand so often; intervals against the formula."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from densekit.metrics.accuracy import AccuracyMetric
from densekit.metrics.coco import CocoMetric
from densekit.metrics.intervals import draws, intervals, resample
from densekit.show.report import tables
from tests.metrics import test_accuracy as classified
from tests.metrics import test_coco as boxes
from tests.metrics import test_segmentation as masks

IMAGES = 12


@pytest.fixture(scope="module")
def weights():
    return next(draws(IMAGES, 5, seed=1))


def replicated(truth, found, counts):
    """A COCO file and results in which each image stands so often."""
    order = sorted(image["id"] for image in truth["images"])
    whole = {**truth, "images": [], "annotations": []}
    results = []
    for image, count in zip(order, counts):
        for _ in range(count):
            new = len(whole["images"]) + 1
            whole["images"].append({"id": new, "width": 200, "height": 160})
            for row in (row for row in truth["annotations"] if row["image_id"] == image):
                whole["annotations"].append({**row, "image_id": new, "id": len(whole["annotations"]) + 1})
            results += [{**row, "image_id": new} for row in found if row["image_id"] == image]
    return whole, results


def test_cocos_numbers_of_drawn_images_are_those_of_pycocotools_on_images_that_stand_so_often(
    tmp_path, weights, monkeypatch
):
    monkeypatch.setattr("densekit.metrics.coco_resampled._IMAGES_AT_ONCE", 5)
    truth, found = boxes.generated(4)
    random = np.random.default_rng(0)
    found = [{**row, "score": float(np.float32(random.random()))} for row in found]  # equal scores have no one order
    metric = CocoMetric(boxes.Data(tmp_path, copy.deepcopy(truth)))
    for batch in boxes.as_batches(truth, found):
        metric.update(*batch)
    monkeypatch.setattr("densekit.metrics.coco_resampled._AT_ONCE", 1)
    numbers = metric.resampler().numbers(weights)
    for draw in range(weights.shape[1]):
        expected = boxes.pycocotools_numbers(*replicated(truth, found, weights[:, draw]), "bbox")
        own = [None if math.isnan(v) else v for v in (float(numbers[name,][draw]) for name in boxes.TWELVE)]
        # Boxes went through float32.
        assert own == [None if e is None else pytest.approx(e, abs=1e-9) for e in expected]
    ones = metric.resampler().numbers(np.ones((IMAGES, 1), np.int32))
    counted = metric.compute()
    for name, row in counted["per_class"].items():
        for rate in ("AP", "AP50", "AP75", "AR"):
            assert ones["per_class", name, rate][0] == pytest.approx(row[rate], abs=1e-12)


@pytest.mark.parametrize("layers", [False, True])
def test_a_segmenters_numbers_of_drawn_images_are_those_of_images_that_stand_so_often(weights, layers):
    truth = [masks.blobs(i, (24, 30), 2 + i % 3) for i in range(IMAGES)]
    found = [masks.blobs(50 + i, (24, 30), 3, ignored=False) for i in range(IMAGES)]
    if layers:
        truth, found = ([torch.stack([(m == k).byte() for k in range(4)]) for m in part] for part in (truth, found))
    numbers = masks.measure(found, truth).resampler().numbers(weights)
    # Ids are words, and "10.png" comes before "2.png".
    order = sorted(range(IMAGES), key=lambda i: f"{i}.png")
    for draw in range(weights.shape[1]):
        chosen = [i for i, count in zip(order, weights[:, draw]) for _ in range(count)]
        expected = masks.measure([found[i] for i in chosen], [truth[i] for i in chosen]).compute()
        per_class = {
            ("per_class", c, r): v for c, row in expected.pop("per_class").items() for r, v in row.items()
        }  # fmt: skip
        assert {name for name in numbers if name[0] == "per_class"} == {n for n in per_class if n[2] != "pixels"}
        for name, values in numbers.items():
            value = per_class.get(name) if len(name) > 1 else expected[name[0]]
            assert values[draw] == pytest.approx(math.nan if value is None else value, nan_ok=True)


def classifier(count, classes=3, seed=0):
    """A metric of guesses that are right in three of four images, and the labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    guesses = np.where(random.random(count) < 0.75, labels, random.integers(0, classes, count))
    metric = AccuracyMetric(classified.CLASSES)
    orders = [[g, *(k for k in range(7) if k != g)] for g in guesses.tolist()]
    metric.update(classified.predictions(orders), classified.batch(labels.tolist()))
    return metric, labels, guesses


def test_a_classifiers_numbers_of_drawn_images_counted_by_hand(weights):
    metric, labels, guesses = classifier(IMAGES)
    numbers = metric.resampler().numbers(weights)
    for draw in range(weights.shape[1]):
        chosen = np.repeat(np.arange(IMAGES), weights[:, draw])
        right = labels[chosen] == guesses[chosen]
        own = [right[labels[chosen] == k].mean() for k in range(3) if (labels[chosen] == k).any()]
        assert numbers["top1",][draw] == pytest.approx(right.mean())
        assert numbers["mean_accuracy",][draw] == pytest.approx(np.mean(own))


def test_an_interval_of_accuracy_is_that_of_the_binomial_distribution():
    metric, labels, guesses = classifier(400)
    p = (labels == guesses).mean()
    low, high = intervals(metric, count=4000)["top1"]
    half = 1.96 * math.sqrt(p * (1 - p) / 400)
    assert (low, high) == (pytest.approx(p - half, abs=0.004), pytest.approx(p + half, abs=0.004))


def test_intervals_are_the_same_for_the_same_seed_however_the_draws_are_shared_out(monkeypatch):
    metric = classifier(30)[0]
    first = intervals(metric, count=50, seed=3)
    assert first == intervals(metric, count=50, seed=3)
    assert first != intervals(metric, count=50, seed=4)
    monkeypatch.setattr("densekit.metrics.intervals._AT_ONCE", 30)
    assert len(resample(metric.resampler(), count=50)["top1",]) == 50


def test_one_image_has_no_interval_and_a_class_that_never_occurs_has_none():
    assert intervals(classifier(1)[0]) == {}
    assert intervals(classifier(20)[0], count=0) == {}
    assert intervals(classifier(20)[0], count=20)["per_class"]["g"]["accuracy"] is None


def test_tables_have_intervals_beside_the_numbers():
    numbers = {"top1": 0.5, "loss": 0.25, "per_class": {"cat": {"accuracy": 0.5, "images": 2}}}
    known = {"top1": [0.25, 0.75], "per_class": {"cat": {"accuracy": [0.0, 1.0]}}}
    (_, columns, main), (_, of_classes, rows) = tables("classification", {**numbers, "intervals": known})
    assert columns == ("number", "value", "95 % between", "")
    assert main == [["top1", 0.5, "0.2500 to 0.7500", ""], ["loss", 0.25, "", ""]]
    assert of_classes == ("class", "accuracy", "images", "accuracy, 95 % between")
    assert rows == [["cat", 0.5, 2, "0.0000 to 1.0000"]]
