"""Labels that are probably wrong, and TIDE's kinds of errors, on cases made by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from densekit.data.formats.coco.file import open_coco
from densekit.metrics.box_errors import Found, Objects
from densekit.metrics.coco import CocoMetric
from densekit.metrics.label_errors import suspect_images, suspects
from densekit.run_report.label_errors import as_coco, as_json
from densekit.types import Batch, Classes, Detections

HERE, NEAR, ASIDE, AWAY = (50.0, 50, 40, 40), (52.0, 50, 40, 40), (70.0, 50, 40, 40), (120.0, 120, 40, 40)


def image(objects, found, crowd=()):
    """Objects as (label, box), findings as (label, score, box)."""
    boxes = np.array([box for _, box in objects], np.float64).reshape(-1, 4)
    labels = np.array([label for label, _ in objects], np.int64)
    crowds = np.isin(np.arange(len(objects)), crowd)
    places = np.array([box for *_, box in found], np.float64).reshape(-1, 4)
    scores = np.array([score for _, score, _ in found], np.float64)
    return Objects(boxes, labels, crowds), Found(places, scores, np.array([label for label, *_ in found], np.int64))


SURE = image([(0, HERE)], [(0, 0.9, HERE)])


def kinds(*images):
    return [(one.kind, one.image, one.label, one.was) for one in suspects(dict(enumerate(images)), 2)]


def test_a_confident_box_where_nothing_is_annotated():
    assert kinds(image([(0, HERE)], [(0, 0.9, HERE), (1, 0.8, AWAY), (0, 0.4, AWAY)])) == [("missing", 0, 1, None)]


def test_a_confident_box_of_another_class_on_an_object_that_its_own_class_does_not_find():
    assert kinds(image([(0, HERE)], [(1, 0.9, NEAR), (0, 0.2, HERE)])) == [("class", 0, 1, 0)]
    assert kinds(image([(0, HERE)], [(1, 0.9, NEAR), (0, 0.8, HERE)])) == []


def test_an_object_that_no_box_covers_where_most_of_its_class_are_found():
    lost = image([(0, HERE), (0, AWAY)], [(0, 0.9, HERE)])
    assert kinds(SURE, SURE, lost) == [("not found", 2, 0, 0)]
    (found,) = suspects(dict(enumerate([SURE, SURE, lost])), 2)
    assert (found.score, found.row, found.box) == (0.75, 1, AWAY)
    assert kinds(image([(1, HERE)], []), SURE) == []  # a class that is never found tells nothing of its labels


def test_a_box_that_is_only_badly_placed_or_in_a_crowd_is_no_suspect():
    assert kinds(image([(0, HERE)], [(0, 0.9, ASIDE)])) == []
    assert kinds(image([(0, (0.0, 0, 200, 200))], [(0, 0.9, HERE)], crowd=[0])) == []
    assert kinds(image([(0, (0.0, 0, 200, 200))], [(1, 0.9, HERE)], crowd=[0])) == []


def test_the_most_probable_come_first():
    first = image([], [(0, 0.6, HERE)])
    second = image([], [(1, 0.95, HERE)])
    assert [one.image for one in suspects({7: first, 8: second}, 2)] == [8, 7]


def test_images_that_are_probably_of_another_class():
    chances = {"a": np.array([0.1, 0.9]), "b": np.array([0.02, 0.98]), "c": np.array([0.9, 0.1]), "d": np.full(2, 0.5)}
    found = suspect_images(chances, {"a": 0, "b": 0, "c": 0, "d": 0})
    assert [(one.image, one.label, one.was, one.score) for one in found] == [("b", 1, 0, 0.98), ("a", 1, 0, 0.9)]
    made = as_json(found, SimpleNamespace(task="classification", classes=Classes(("cat", "dog"), (5, 9))))
    assert made[0] == {"file": "b", "was": "cat", "probably": "dog", "score": 0.98}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two images: one object of class 17 in each, and one of class 3 in the second."""
    folder = tmp_path_factory.mktemp("coco")
    rows = [(1, 17, HERE), (2, 17, HERE), (2, 3, AWAY)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 200, "width": 200} for i in (1, 2)],
        "categories": [{"id": 17, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 100 + n, "image_id": i, "category_id": c, "bbox": list(b), "area": b[2] * b[3], "iscrowd": 0}
            for n, (i, c, b) in enumerate(rows)
        ],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return open_coco(folder / "a.json")


class Data:
    def __init__(self, file):
        self.file, self.classes = file, file.classes

    def __len__(self):
        return len(self.file)

    def path(self, index):
        return f"images/{self.file.image_id(index)}.png"


def test_suspects_as_coco_have_the_original_ids_and_only_the_images_with_something(data):
    at = data.classes.names.index
    pairs = {
        1: image([(at("cat"), HERE)], [(at("cat"), 0.9, HERE)]),
        2: image([(at("cat"), HERE), (at("dog"), AWAY)], [(at("cat"), 0.9, HERE), (at("cat"), 0.8, AWAY)]),
    }
    made = as_coco(suspects(pairs, 2), Data(data))
    assert [entry["id"] for entry in made["images"]] == [2]
    assert made["images"][0]["file_name"] == "2.png"
    (row,) = made["annotations"]
    assert (row["kind"], row["category_id"], row["was"], row["annotation_id"]) == ("class", 17, 3, 102)
    assert row["bbox"] == list(AWAY)
    assert json.loads(json.dumps(made)) == made


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(17, 0.9, HERE)], {}),
        ([(3, 0.9, HERE)], {"Cls": 1}),
        ([(17, 0.9, ASIDE)], {"Loc": 1}),
        ([(3, 0.9, ASIDE)], {"Both": 1, "Miss": 1}),
        ([(17, 0.9, HERE), (17, 0.8, NEAR)], {"Dupe": 1}),
        ([(17, 0.9, HERE), (17, 0.8, AWAY)], {"Bkg": 1}),
        ([], {"Miss": 1}),
    ],
    ids=["right", "class", "place", "both", "twice", "nothing", "missed"],
)
def test_kinds_of_errors_are_those_of_tides_definition(data, found, expected):
    metric = CocoMetric(Data(data))
    boxes = torch.tensor([[x, y, x + w, y + h] for *_, (x, y, w, h) in found]).reshape(1, -1, 4)
    scores, labels = torch.tensor([[s for _, s, _ in found]]), torch.tensor([[c for c, *_ in found]]).long()
    none = torch.tensor([[200, 200]])
    batch = Batch(torch.zeros(1, 1, 1, 1), none, none, [1], none[:, 0])
    metric.update(Detections(boxes, scores, labels, torch.ones_like(scores, dtype=torch.bool)), batch)
    counts = metric.tide()["counts"]
    assert {kind: count for kind, count in counts.items() if count} == expected
