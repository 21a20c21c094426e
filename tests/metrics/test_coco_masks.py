"""Mask AP of the metric against pycocotools, on generated instances and on COCO's own example."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from densekit.data.formats.coco.file import open_coco
from densekit.metrics.coco import CocoMetric
from densekit.metrics.coco_masks import true_masks
from densekit.types import DensekitError
from tests.metrics.test_coco import TWELVE, Data, as_batches, generated, pycocotools_numbers, with_masks

SIZE = (160, 200)


def pasted(truth: dict, found: list[dict], seed: int = 0, size: int = 3) -> tuple[list, list[dict]]:
    """Batches with cells for each detection, and what they mean as COCO's results, pasted pixel by pixel."""
    random, batches, rows = np.random.default_rng(seed), [], []
    for predictions, batch in as_batches(truth, found, size):
        shape = predictions.scores.shape
        cells = 0.7 * random.random((*shape, 1, 1)) + 0.5 * random.random((*shape, 5, 5))
        predictions.masks = torch.from_numpy(cells.clip(0, 1).astype(np.float32))
        batch.original_sizes = torch.tensor([SIZE] * len(batch.ids))
        batches.append((predictions, batch))
        for b, image in enumerate(batch.ids):
            for d in torch.nonzero(predictions.valid[b]).flatten().tolist():
                full = np.asfortranarray(pixels(predictions.masks[b, d], predictions.boxes[b, d].double()))
                score, label = (float(predictions.scores[b, d]), int(predictions.labels[b, d]))
                code = {"size": list(SIZE), "counts": rle.encode(full)["counts"].decode()}
                rows.append({"image_id": image, "category_id": label, "score": score, "segmentation": code})
    return batches, rows


def pixels(cells: torch.Tensor, box: torch.Tensor) -> np.ndarray:
    """[H, W] by grid_sample over the whole image."""
    x1, y1, x2, y2 = box.tolist()
    xs, ys = ((torch.arange(n) + 0.5 - a) / (b - a) * 2 - 1 for n, a, b in ((SIZE[1], x1, x2), (SIZE[0], y1, y2)))
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], -1)[None]
    values = torch.nn.functional.grid_sample(cells[None, None].double(), grid.double(), align_corners=False)[0, 0]
    return (values >= 0.5).numpy().astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_mask_numbers_over_batches_equal_pycocotools_and_box_numbers_stay(tmp_path, seed):
    truth, found = generated(seed)
    truth, _ = with_masks(truth, [])
    metric, boxes = CocoMetric(Data(tmp_path, truth)), CocoMetric(Data(tmp_path, truth))
    batches, rows = pasted(truth, found)
    for predictions, batch in batches:
        metric.update(predictions, batch)
        boxes.update(copy.copy(without_masks(predictions)), batch)
    ours, plain = metric.compute(), boxes.compute()
    theirs = pycocotools_numbers(truth, rows, "segm")
    assert [ours[f"mask_{n}"] for n in TWELVE] == theirs
    assert 0.01 < ours["mask_AP50"] < 1
    assert {k: v for k, v in ours.items() if not k.startswith("mask_") and k != "per_class"} == {
        k: v for k, v in plain.items() if k != "per_class"
    }
    for name, numbers in ours["per_class"].items():
        category = next(c["id"] for c in truth["categories"] if c["name"] == name)
        one = {**truth, "categories": [c for c in truth["categories"] if c["id"] == category]}
        one["annotations"] = [a for a in truth["annotations"] if a["category_id"] == category]
        theirs = pycocotools_numbers(one, [d for d in rows if d["category_id"] == category], "segm")
        keys = ("mask_AP", "mask_AP50", "mask_AP75", "mask_AR")
        assert [numbers[k] for k in keys] == [*theirs[:3], theirs[8]]


def without_masks(predictions):
    plain = copy.copy(predictions)
    plain.masks = None
    return plain


def test_masks_of_ranks_merge_to_the_same_numbers(tmp_path):
    truth, found = generated(1)
    truth, _ = with_masks(truth, [])
    data, (batches, _) = Data(tmp_path, truth), pasted(truth, found)
    alone, ranks = CocoMetric(data), [CocoMetric(data), CocoMetric(data)]
    for i, (predictions, batch) in enumerate(batches):
        alone.update(predictions, batch)
        ranks[i % 2].update(predictions, batch)
    states = [r.state() for r in ranks]
    for rank in ranks:
        rank.merge(states)
    assert alone.compute() == ranks[0].compute() == ranks[1].compute()


def test_true_masks_of_cocos_own_example_are_what_pycocotools_draws(real_data):
    path = real_data / "coco_eval/instances_val2014_100.json"
    file = open_coco(path)
    content = json.loads(path.read_text())
    rows = {row["id"]: row for row in content["annotations"]}
    places = [(i, a) for i in range(len(file)) for a in range(*file.annotations(i).indices(len(file.labels)))]
    masks = true_masks(file, places)
    assert not masks.unknown.any()
    for (image, row), mask in zip(places, masks.rles):
        code, size = rows[file.annotation_id(row)]["segmentation"], file.sizes[image].tolist()
        code = rle.merge(rle.frPyObjects(code, *size)) if isinstance(code, list) else rle.frPyObjects(code, *size)
        assert mask == {"size": size, "counts": code["counts"].decode()}


def test_an_object_without_a_mask_is_ignored_with_what_is_found_in_its_box(tmp_path):
    truth, found = generated(2)
    truth, _ = with_masks(truth, [])
    batches, rows = pasted(truth, found)
    ignored = copy.deepcopy(truth)
    for row in truth["annotations"][::4]:
        row["segmentation"] = []
    for row in ignored["annotations"][::4]:
        x, y, w, h = row["bbox"]
        full = np.zeros(SIZE, np.uint8, order="F")
        full[int(y) : int(np.ceil(y + h)), int(x) : int(np.ceil(x + w))] = 1
        code = rle.encode(full)
        row["segmentation"], row["iscrowd"] = {"size": list(SIZE), "counts": code["counts"].decode()}, 1
    metric = CocoMetric(Data(tmp_path, truth))
    for predictions, batch in batches:
        metric.update(predictions, batch)
    ours = metric.compute()
    assert [ours[f"mask_{n}"] for n in TWELVE] == pycocotools_numbers(ignored, rows, "segm")


def test_a_file_without_masks_gives_the_numbers_of_boxes_alone(tmp_path):
    truth, found = generated(0)
    metric = CocoMetric(Data(tmp_path, truth))
    for predictions, batch in pasted(truth, found)[0]:
        metric.update(predictions, batch)
    assert not any(name.startswith("mask_") for name in metric.compute())


def test_a_mask_that_is_not_finite_and_a_true_one_that_is_broken_are_named(tmp_path):
    truth, found = generated(0)
    truth, _ = with_masks(truth, [])
    batches, _ = pasted(truth, found, size=len(truth["images"]))
    (predictions, batch), *_ = batches
    wrong = copy.copy(predictions)
    wrong.masks = predictions.masks.clone()
    wrong.masks[wrong.valid] = torch.nan
    with pytest.raises(DensekitError, match="a predicted mask is not finite"):
        CocoMetric(Data(tmp_path, truth)).update(wrong, batch)
    truth["annotations"][3]["segmentation"] = [[1, 2, 3, 4]]
    metric = CocoMetric(Data(tmp_path, truth))
    metric.update(predictions, batch)
    with pytest.raises(DensekitError, match=r"annotation 4: a polygon has 4 numbers"):
        metric.compute()
