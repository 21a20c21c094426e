"""What a detector's numbers are made of: curves against pycocotools, the confusion counted by hand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densekit.metrics.box_errors import Curves, Found, Objects, box_errors, confusion, curves, overlaps
from densekit.show.report import write_pictures

K = 3


def boxes_of(random, count):
    corner = random.uniform(0, 60, (count, 2))
    return np.concatenate([corner, random.uniform(8, 30, (count, 2))], 1)


@pytest.fixture(scope="module")
def images():
    """Ten images; most objects found, some of them as another class, some not at all, and some noise."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(10):
        count = int(random.integers(0, 6))
        objects = Objects(boxes_of(random, count), random.integers(0, K, count), random.random(count) < 0.15)
        seen = random.random(count) < 0.8
        moved = objects.boxes[seen] + random.normal(0, 2, (int(seen.sum()), 4))
        labels = np.where(random.random(len(moved)) < 0.7, objects.labels[seen], random.integers(0, K, len(moved)))
        boxes = np.concatenate([moved, boxes_of(random, 3)])
        labels = np.concatenate([labels, random.integers(0, K, 3)])
        made.append((objects, Found(boxes, random.random(len(boxes)), labels)))
    return made


def pycocotools(images):
    annotations, results = [], []
    for i, (objects, found) in enumerate(images, 1):
        for box, label, crowd in zip(objects.boxes.tolist(), objects.labels.tolist(), objects.crowd.tolist()):
            row = {"id": len(annotations) + 1, "image_id": i, "category_id": label + 1, "bbox": box}
            annotations.append({**row, "area": box[2] * box[3], "iscrowd": int(crowd)})
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()):
            results.append({"image_id": i, "category_id": label + 1, "bbox": box, "score": score})
    truth = COCO()
    categories = [{"id": k + 1, "name": str(k)} for k in range(K)]
    truth.dataset = {
        "images": [{"id": i} for i in range(1, len(images) + 1)], "annotations": annotations, "categories": categories
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def test_precision_over_recall_is_pycocotools(images):
    evaluation = pycocotools(images)
    found = curves(images, K, 100)
    assert np.array_equal(found.precision, evaluation.eval["precision"][0, :, :, 0, -1])
    assert np.array_equal(found.scores, evaluation.eval["scores"][0, :, :, 0, -1])
    assert np.array_equal(found.recall, evaluation.params.recThrs)
    assert 0.1 < found.precision.mean() < 0.9


def test_the_diagonal_is_what_pycocotools_calls_found(images):
    evaluation = pycocotools(images)
    hits = np.zeros(K, int)
    for one in evaluation.evalImgs:
        if one is not None and one["aRng"] == evaluation.params.areaRng[0]:
            matched = (one["dtMatches"][0] > 0) & ~one["dtIgnore"][0].astype(bool)
            hits[one["category_id"] - 1] += int(matched.sum())
    matrix = confusion(images, K, 0.0)
    assert matrix.diagonal()[:K].tolist() == hits.tolist()
    true = np.concatenate([objects.labels[~objects.crowd] for objects, _ in images])
    assert matrix.sum(1)[:K].tolist() == np.bincount(true, minlength=K).tolist()
    assert matrix[K, K] == 0


def test_the_confusion_is_the_one_counted_by_hand():
    cat, dog = 0, 1
    boxes = [[0, 0, 10, 10], [50, 50, 10, 10], [80, 0, 20, 20], [0, 80, 10, 10]]
    objects = Objects(np.array(boxes, float), np.array([cat, dog, dog, cat]), np.array([False, False, True, False]))
    found = [
        ([0, 0, 10, 10], 0.9, dog),  # on the first cat, which a cat below it takes first: for nothing
        ([1, 0, 10, 10], 0.8, cat),  # found
        ([50, 50, 10, 10], 0.7, cat),  # a dog taken for a cat
        ([80, 0, 9, 9], 0.6, dog),  # in a crowd of dogs: counts nowhere
        ([90, 0, 9, 9], 0.6, cat),  # a cat in a crowd of dogs: for nothing
        ([0, 84, 10, 10], 0.5, cat),  # IoU 60 / 140: misses the second cat
        ([0, 80, 10, 10], 0.3, cat),  # below the cut
    ]
    columns = Found(*(np.array(column) for column in zip(*[(np.array(b, float), s, k) for b, s, k in found])))
    matrix = confusion([(objects, columns)], 2, 0.4)
    assert matrix.tolist() == [[1, 0, 1], [1, 0, 0], [2, 1, 0]]
    assert confusion([(objects, columns)], 2, 0.2).tolist() == [[2, 0, 0], [1, 0, 0], [2, 1, 0]]


def test_overlaps_are_pycocotools(images):
    from pycocotools import mask

    objects, found = next(image for image in images if len(image[0].labels) > 3)
    crowd = np.arange(len(objects.labels)) % 2 == 1
    expected = mask.iou(found.boxes, objects.boxes, crowd.astype(np.uint8).tolist())
    assert np.allclose(overlaps(found.boxes, objects.boxes, crowd), expected)


def test_the_best_cut_is_where_f1_is_highest():
    """One class: of two objects the first is found at 0.8, the second at 0.3 after three that are for nothing."""
    recall = np.linspace(0, 1, 101)
    precision = np.where(recall <= 0.5, 1.0, 0.4)[:, None]
    scores = np.where(recall <= 0.5, 0.8, 0.3)[:, None]
    assert Curves(recall, precision, scores).best_cut() == (pytest.approx(2 / 3), pytest.approx(0.31))
    nothing = np.full((101, 1), -1.0)
    assert Curves(recall, nothing, nothing).best_cut() == (None, 0.5)


def test_without_a_detection_or_an_object_numbers_and_pictures_still_come(tmp_path):
    none = Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    objects = Objects(np.array([[0.0, 0, 9, 9]]), np.array([1]), np.array([False]))
    empty = Objects(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))
    numbers = box_errors([(objects, none), (empty, none)], ("a", "b"), 100)
    assert numbers["F1"] == 0
    assert numbers["curves"]["precision"]["a"] is None
    assert numbers["confusion"] == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    names = sorted(path.name for path in write_pictures(tmp_path, numbers, ("a", "b")))
    assert names == ["confusion.png", "precision_recall.png"]
    assert box_errors([(empty, none)], ("a", "b"), 100)["F1"] is None
