"""Boundary AP: outlines against SciPy's erosion, numbers against mask AP and against masks made for the purpose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from scipy import ndimage

from densekit.metrics import boundary as module
from densekit.metrics.boundary import boundary
from densekit.metrics.coco import CocoMetric
from densekit.types import Batch, Detections
from tests.metrics.test_coco import Data, generated, with_masks
from tests.metrics.test_coco_masks import pasted

KINDS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "AR_large")


def blobs(seed, size):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(size), 4)
    return (noise > np.quantile(noise, 0.7)).astype(np.uint8)


@pytest.mark.parametrize("size", [(40, 30), (120, 200), (7, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_an_outline_is_what_erosion_by_its_distance_takes_off(seed, size):
    pixels = blobs(seed, size)
    distance = max(1, round(0.02 * np.hypot(*size)))
    inner = ndimage.binary_erosion(pixels, np.ones((3, 3)), iterations=distance)
    found = coco.decode(boundary(coco.encode(np.asfortranarray(pixels))))
    np.testing.assert_array_equal(found, pixels - inner)


def test_an_empty_mask_has_an_empty_outline():
    assert coco.area(boundary(coco.encode(np.zeros((9, 9), np.uint8, order="F")))) == 0


@pytest.mark.parametrize("seed", range(2))
def test_where_the_outline_is_the_whole_object_the_numbers_are_those_of_masks(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(module, "DISTANCE", 1.0)
    truth, found = generated(seed)
    metric = CocoMetric(Data(tmp_path, with_masks(truth, [])[0]), boundary=True)
    for predictions, batch in pasted(truth, found)[0]:
        metric.update(predictions, batch)
    numbers = metric.compute()
    assert 0.01 < numbers["mask_AP50"] < 1
    assert [numbers[f"boundary_{n}"] for n in KINDS] == [numbers[f"mask_{n}"] for n in KINDS]
    for row in numbers["per_class"].values():
        assert row["boundary_AP"] == row["mask_AP"]


def test_an_outline_that_is_off_counts_for_less_than_the_mask_and_each_draw_knows_it(tmp_path):
    """A disc found a pixel too small all around: outlines three pixels wide then agree far less than masks."""
    side, radius = 100, 21
    rows, columns = np.mgrid[:side, :side] - 49.5
    disc, small = (((rows**2 + columns**2) < r**2).astype(np.uint8) for r in (radius, radius - 1))
    code = coco.encode(np.asfortranarray(disc))
    x, y, w, h = coco.toBbox(code).tolist()
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": side, "width": side}],
        "categories": [{"id": 1, "name": "disc"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [x, y, w, h],
                "area": int(disc.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [side, side], "counts": code["counts"].decode()},
            }
        ],
    }
    metric = CocoMetric(Data(tmp_path, truth), boundary=True)
    cut = small[int(y) : int(y + h), int(x) : int(x + w)]
    found = Detections(
        boxes=torch.tensor([[[x, y, x + w, y + h]]]),
        scores=torch.tensor([[0.9]]),
        labels=torch.tensor([[1]]),
        valid=torch.tensor([[True]]),
        masks=torch.from_numpy(cut.astype(np.float32))[None, None],
    )
    size = torch.tensor([[side, side]])
    metric.update(found, Batch(torch.zeros(1, 3, side, side, dtype=torch.uint8), size, size, [1], torch.zeros(1)))

    def overlap(a, b):
        return (a & b).sum() / (a | b).sum()

    outlines = [m - ndimage.binary_erosion(m, np.ones((3, 3)), iterations=3) for m in (disc, small)]
    expected = {"mask_AP": overlap(disc, small), "boundary_AP": overlap(*outlines)}
    assert expected["boundary_AP"] < expected["mask_AP"] - 0.1
    numbers = metric.compute()
    for name, iou in expected.items():
        assert numbers[name] == pytest.approx((np.linspace(0.5, 0.95, 10) <= iou).mean())
    drawn = metric.resampler().numbers(np.array([[1, 2]]))
    assert drawn["boundary_AP",].tolist() == pytest.approx([numbers["boundary_AP"]] * 2)
    assert drawn["per_class", "disc", "boundary_AP50"].tolist() == [1, 1]
