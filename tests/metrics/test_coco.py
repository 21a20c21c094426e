"""COCO's numbers against pycocotools' own, on real and generated data."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densekit.data.formats.coco.file import open_coco
from densekit.metrics.coco import CocoMetric
from densekit.metrics.coco_results import detections_to_coco, evaluate_coco
from densekit.types import Batch, Classes, DensekitError, Detections

TWELVE = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
TWELVE += ["AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"]


def pycocotools_numbers(truth: dict, found: list[dict], iou_type: str) -> list[float | None]:
    """Its twelve numbers; None where it writes -1: not defined."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(found)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if number == -1 else number for number in evaluation.stats.tolist()]


def generated(seed: int, images: int = 12, objects: int = 15, detections: int = 25) -> tuple[dict, list[dict]]:
    """Boxes with crowds, ties, misses, false alarms, empty images and category ids with gaps."""
    random = np.random.default_rng(seed)
    categories = [3, 7, 90]
    truth = {
        "images": [{"id": int(i), "width": 200, "height": 160} for i in random.permutation(images) * 5 + 2],
        "categories": [{"id": c, "name": f"c{c}"} for c in (90, 3, 7)],
        "annotations": [],
    }
    found = []
    for image in truth["images"][2:]:
        for _ in range(int(random.integers(0, objects))):
            x, y = random.uniform(0, 120), random.uniform(0, 90)
            w, h = random.choice([8, 30, 60, 100], 2) * random.uniform(0.5, 1)
            crowd = int(random.random() < 0.15)
            annotation = {
                "id": len(truth["annotations"]) + 1,
                "image_id": image["id"],
                "category_id": int(random.choice(categories)),
                "bbox": [x, y, w, h],
                "area": w * h * 0.8,
                "iscrowd": crowd,
            }
            truth["annotations"].append(annotation)
        for annotation in truth["annotations"]:
            if annotation["image_id"] == image["id"]:
                for _ in range(int(random.integers(0, 3))):
                    moved = np.array(annotation["bbox"]) + random.normal(0, 4, 4)
                    found.append(
                        {
                            "image_id": image["id"],
                            "category_id": annotation["category_id"],
                            "bbox": [*moved[:2], *np.maximum(moved[2:], 1)],
                            "score": round(float(random.random()), 1),
                        }
                    )
    for _ in range(detections):
        found.append(
            {
                "image_id": int(random.choice(truth["images"])["id"]),
                "category_id": int(random.choice(categories)),
                "bbox": [*random.uniform(0, 100, 2), *random.uniform(1, 60, 2)],
                "score": round(float(random.random()), 1),
            }
        )
    return truth, found


def with_masks(truth: dict, found: list[dict]) -> tuple[dict, list[dict]]:
    """The same with masks: ellipse-like polygons, crowds as RLE, results as RLE."""
    for row in truth["annotations"]:
        polygon = ellipse(row["bbox"])
        code = rle.merge(rle.frPyObjects([polygon], 160, 200))
        if row["iscrowd"]:
            full = np.asfortranarray(rle.decode(code))
            counts = np.diff(np.flatnonzero(np.diff(full.ravel("F"), prepend=0, append=2))).tolist()
            start = int(np.argmax(full.ravel("F"))) if full.any() else full.size
            row["segmentation"] = {"size": [160, 200], "counts": [start, *counts]}
        else:
            row["segmentation"] = [polygon]
        row["area"] = float(rle.area(code))
    results = []
    for row in found:
        code = rle.merge(rle.frPyObjects([ellipse(row["bbox"])], 160, 200))
        mask = {"size": [160, 200], "counts": code["counts"].decode()}
        results.append({k: row[k] for k in ("image_id", "category_id", "score")} | {"segmentation": mask})
    return truth, results


def ellipse(box: list[float]) -> list[float]:
    angles = np.arange(12) * np.pi / 6
    x, y, w, h = box
    return np.stack((x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))), 1).ravel().tolist()


def as_batches(truth: dict, found: list[dict], size: int = 4):
    """The detections as a model gives them, in batches."""
    for start in range(0, len(truth["images"]), size):
        ids = [e["id"] for e in truth["images"][start : start + size]]
        rows = [sorted((d for d in found if d["image_id"] == i), key=lambda d: -d["score"]) for i in ids]
        n = max(1, *(len(r) for r in rows))
        boxes, scores = torch.zeros(len(ids), n, 4), torch.zeros(len(ids), n)
        labels, valid = torch.zeros(len(ids), n, dtype=torch.int64), torch.zeros(len(ids), n, dtype=torch.bool)
        for b, row in enumerate(rows):
            for j, d in enumerate(row):
                x, y, w, h = d["bbox"]
                boxes[b, j] = torch.tensor([x, y, x + w, y + h])
                scores[b, j], labels[b, j], valid[b, j] = d["score"], d["category_id"], True
        none = torch.zeros(len(ids), 2, dtype=torch.int64)
        yield (
            Detections(boxes, scores, labels, valid),
            Batch(torch.zeros(len(ids), 1, 1, 1), none, none, ids, none[:, 0]),
        )


class Data:
    def __init__(self, folder: Path, truth: dict) -> None:
        for image in truth["images"]:
            image.setdefault("file_name", f"{image['id']}.jpg")
        path = folder / "truth.json"
        path.write_text(json.dumps(truth))
        self.file = open_coco(path)


@pytest.mark.parametrize(("iou_type", "name"), [("bbox", "fakebbox100"), ("segm", "fakesegm100")])
def test_the_twelve_numbers_of_cocos_own_example_equal_pycocotools(real_data, iou_type, name):
    folder = real_data / "coco_eval"
    truth = folder / "instances_val2014_100.json"
    found = folder / f"instances_val2014_{name}_results.json"
    ours = evaluate_coco(truth, found, iou_type=iou_type)
    theirs = pycocotools_numbers(json.loads(truth.read_text()), json.loads(found.read_text()), iou_type)
    assert [ours[n] for n in TWELVE] == theirs
    assert 0.2 < ours["AP"] < 0.6


@pytest.mark.parametrize("seed", range(6))
def test_generated_sets_with_crowds_and_empty_images_equal_pycocotools(seed):
    truth, found = generated(seed)
    assert any(a["iscrowd"] for a in truth["annotations"])
    ours = evaluate_coco(truth, found)
    assert [ours[n] for n in TWELVE] == pycocotools_numbers(truth, found, "bbox")
    truth, found = with_masks(truth, found)
    ours = evaluate_coco(truth, found, iou_type="segm")
    assert [ours[n] for n in TWELVE] == pycocotools_numbers(truth, found, "segm")


@pytest.mark.parametrize("seed", range(4))
def test_the_metric_over_batches_equals_pycocotools(tmp_path, seed):
    truth, found = generated(seed)
    metric = CocoMetric(Data(tmp_path, truth))
    exact = []  # a model's boxes are float32
    for predictions, batch in as_batches(truth, found):
        metric.update(predictions, batch)
        exact += detections_to_coco(predictions, batch.ids)
    ours = metric.compute()
    assert [ours[n] for n in TWELVE] == pycocotools_numbers(truth, exact, "bbox")
    assert ours["images"] == len(truth["images"])
    for name, numbers in ours["per_class"].items():
        one = copy.deepcopy(truth)
        category = next(c["id"] for c in truth["categories"] if c["name"] == name)
        one["categories"] = [c for c in truth["categories"] if c["id"] == category]
        one["annotations"] = [a for a in truth["annotations"] if a["category_id"] == category]
        theirs = pycocotools_numbers(one, [d for d in exact if d["category_id"] == category], "bbox")
        assert [numbers["AP"], numbers["AP50"], numbers["AP75"], numbers["AR"]] == [*theirs[:3], theirs[8]]
        assert numbers["objects"] == sum(not a["iscrowd"] for a in one["annotations"])


def test_a_class_that_the_file_lacks_is_not_measured_and_its_predictions_change_nothing(tmp_path):
    truth, found = generated(2)
    truth["categories"] = [c for c in truth["categories"] if c["id"] != 7]
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 7]
    learned = Classes(("new", "c90", "c3"), (7, 91, 4))  # the model numbers them in its own way
    theirs_of = {91: 90, 4: 3}
    metric, exact = CocoMetric(Data(tmp_path, truth), classes=learned), []
    renumbered = [{**d, "category_id": {90: 91, 3: 4, 7: 7}[d["category_id"]]} for d in found]
    for predictions, batch in as_batches(truth, renumbered):
        metric.update(predictions, batch)
        exact += detections_to_coco(predictions, batch.ids)
    ours = metric.compute()
    theirs = [{**d, "category_id": theirs_of[d["category_id"]]} for d in exact if d["category_id"] != 7]
    assert [ours[n] for n in TWELVE] == pycocotools_numbers(truth, theirs, "bbox")
    assert ours["per_class"]["new"]["objects"] == 0
    assert ours["per_class"]["c3"]["objects"] > 0


def test_string_image_ids_and_annotation_id_zero_count_like_numbers(tmp_path):
    truth, found = generated(3)
    numbers = evaluate_coco(truth, found)
    renamed = copy.deepcopy((truth, found))
    for row in renamed[0]["annotations"] + renamed[1]:
        row["image_id"] = f"img{row['image_id']:05d}"
    for image in renamed[0]["images"]:
        image["id"] = f"img{image['id']:05d}"
    for row in renamed[0]["annotations"]:
        row["id"] -= 1
    assert evaluate_coco(*renamed) == numbers
    metric = CocoMetric(Data(tmp_path, renamed[0]))
    for predictions, batch in as_batches(*renamed):
        metric.update(predictions, batch)
    assert metric.compute()["AP"] == pytest.approx(numbers["AP"], abs=1e-6)


def test_ranks_merge_to_the_same_numbers_and_each_image_counts_once(tmp_path):
    truth, found = generated(1)
    data = Data(tmp_path, truth)
    batches = list(as_batches(truth, found, size=3))
    alone, ranks = CocoMetric(data), [CocoMetric(data), CocoMetric(data)]
    for i, (predictions, batch) in enumerate(batches):
        alone.update(predictions, batch)
        alone.update(predictions, batch)
        ranks[i % 2].update(predictions, batch)
    ranks[1].update(*batches[0])  # as a sampler that pads ranks to equal length does
    states = [r.state() for r in ranks]
    ranks[0].merge(states)
    ranks[1].merge(states)
    assert alone.compute() == ranks[0].compute() == ranks[1].compute()


def test_no_detections_give_zero_and_without_objects_no_number_is_defined():
    truth, found = generated(0)
    assert evaluate_coco(truth, [])["AP"] == 0
    crowds = [{**a, "iscrowd": 1} for a in truth["annotations"]]
    for rows in ([], crowds):
        numbers = evaluate_coco({**truth, "annotations": rows}, found)
        assert pycocotools_numbers({**truth, "annotations": rows}, found, "bbox") == [None] * 12
        assert [numbers[n] for n in TWELVE] == [None] * 12
        assert {v for row in numbers["per_class"].values() for k, v in row.items() if k != "objects"} == {None}


def test_a_class_without_objects_has_no_number_and_does_not_count_in_the_mean():
    truth, found = generated(5)
    one = [a for a in truth["annotations"] if a["category_id"] != 7]
    numbers = evaluate_coco({**truth, "annotations": one}, found)
    assert [numbers[n] for n in TWELVE] == pycocotools_numbers({**truth, "annotations": one}, found, "bbox")
    aps = [row["AP"] for row in numbers["per_class"].values()]
    assert numbers["per_class"]["c7"]["AP"] is None
    assert numbers["AP"] == pytest.approx(np.mean([ap for ap in aps if ap is not None]))


def test_truth_without_iscrowd_and_area_is_fine():
    truth, found = generated(2)
    for row in truth["annotations"]:
        row["iscrowd"], row["area"] = 0, row["bbox"][2] * row["bbox"][3]
    numbers = evaluate_coco(truth, found)
    for row in truth["annotations"]:
        del row["iscrowd"], row["area"]
    assert evaluate_coco(truth, found) == numbers


def test_more_detections_can_be_counted():
    truth = {
        "images": [{"id": 1, "width": 500, "height": 500}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [i, 0, 4, 4]} for i in range(0, 480, 4)],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": a["bbox"], "score": 0.5} for a in truth["annotations"]]
    assert evaluate_coco(truth, found)["AR100"] == pytest.approx(100 / 120)
    assert evaluate_coco(truth, found, max_detections=300)["AR300"] == 1
    few = evaluate_coco(truth, found, max_detections=5)
    assert few["AR5"] == pytest.approx(5 / 120)


def test_nothing_is_printed(capfd):
    evaluate_coco(*generated(0))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 999}, "detection 0: image_id 999 is not in the ground truth"),
        ({"category_id": 4}, "detection 0: category_id 4 is not in the ground truth"),
        ({"score": float("nan")}, "detection 0 has a box or score that is not finite"),
        ({"bbox": [1, 2, float("inf"), 3]}, "detection 0 has a box or score that is not finite"),
        ({"bbox": [1, 2, 3]}, "a box is not four numbers"),
    ],
)
def test_wrong_detections_are_named(change, message):
    truth, found = generated(0)
    found[0].update(change)
    with pytest.raises(DensekitError, match=message):
        evaluate_coco(truth, found)


def test_wrong_files_are_named(tmp_path):
    truth, found = generated(0)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DensekitError, match=r"x.json: cannot be read as json"):
        evaluate_coco(tmp_path / "x.json", found)
    with pytest.raises(DensekitError, match="needs lists"):
        evaluate_coco({"images": []}, found)
    with pytest.raises(DensekitError, match="no segmentation"):
        evaluate_coco(truth, found, iou_type="segm")
    with pytest.raises(DensekitError, match="'images' has no id"):
        evaluate_coco({**truth, "images": [{}]}, found)
    with pytest.raises(DensekitError, match="no bbox"):
        evaluate_coco({**truth, "annotations": [{"id": 1, "image_id": 2, "category_id": 3}]}, [])
    with pytest.raises(DensekitError, match="must be a list"):
        evaluate_coco(truth, {"a": 1})


def test_the_metric_refuses_other_images_and_classes_and_numbers_that_are_not_finite(tmp_path):
    truth, found = generated(0)
    metric = CocoMetric(Data(tmp_path, truth))
    predictions, batch = next(as_batches(truth, found, size=len(truth["images"])))
    for part, value, message in (
        ("labels", 4, "category id 4 was predicted"),
        ("boxes", torch.nan, "is not finite"),
        ("scores", torch.inf, "is not finite"),
    ):
        wrong = copy.deepcopy(predictions)
        getattr(wrong, part)[wrong.valid] = value
        with pytest.raises(DensekitError, match=message):
            metric.update(wrong, batch)
    batch.ids[0] = 12345
    with pytest.raises(DensekitError, match="image 12345 is not in the file"):
        metric.update(predictions, batch)
    with pytest.raises(DensekitError, match="no image"):
        CocoMetric(Data(tmp_path, truth)).compute()
