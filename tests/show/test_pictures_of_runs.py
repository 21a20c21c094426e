"""Pictures of a run: its batches, and its numbers over the steps."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from densekit.show.batches import draw_batch
from densekit.show.curves import draw_curves
from densekit.types import Batch, BoxTargets, Classes, Targets

CLASSES = Classes(("cat", "dog"), (3, 5))
BY_TASK = dict.fromkeys(("detection", "segmentation", "classification"), CLASSES)


def batch(targets, channels=3):
    sizes = torch.tensor([[40, 50], [30, 20]])
    images = torch.zeros(2, channels, 40, 50, dtype=torch.uint8)
    return Batch(images, sizes, sizes, ["a", "b"], torch.zeros(2, dtype=torch.int64), Targets(**targets))


def has_colour(picture):
    return bool((np.ptp(picture.astype(int), axis=2) > 100).any())


def test_boxes_are_drawn_where_they_are_and_padding_is_not(tmp_path):
    boxes = torch.tensor([[[10.0, 10, 30, 30], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]])
    no = torch.zeros(2, 2, dtype=torch.int64)
    valid = torch.tensor([[True, False], [False, False]])
    draw_batch(batch({"boxes": BoxTargets(boxes, no, no.bool(), valid)}), BY_TASK, tmp_path / "a.png")
    picture = cv2.imread(str(tmp_path / "a.png"))
    width = picture.shape[1] // 2
    assert has_colour(picture[:, :width])
    assert not has_colour(picture[:, width:])


def test_masks_layers_and_classes_of_any_number_of_channels_are_drawn(tmp_path):
    mask = torch.full((2, 40, 50), 255)
    mask[0, 5:20, 5:20] = 1
    layers = torch.zeros(2, 2, 40, 50, dtype=torch.uint8)
    layers[:, 1, 5:20, 5:15] = 1
    mixed = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    for i, targets in enumerate(
        ({"masks": mask}, {"masks": layers}, {"labels": torch.tensor([0, 1])}, {"labels": mixed})
    ):
        for channels in (1, 3, 5):
            path = tmp_path / f"{i}_{channels}.png"
            draw_batch(batch(targets, channels), BY_TASK, path)
            assert has_colour(cv2.imread(str(path))) == ("masks" in targets)


def test_a_curve_goes_down_where_its_numbers_do(tmp_path):
    lines = [{"kind": "train", "step": i, "loss": 1 / i, "lr": 0.1, "norm": float("nan")} for i in range(1, 9)]
    lines += [{"kind": "val", "step": 8, "AP": 0.5, "images": 9, "per_class": {}, "AP75": None}]
    draw_curves(lines, tmp_path / "a.png")
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[0] == 3 * 360
    colourful = np.ptp(picture[32:325, 62:628].astype(int), axis=2) > 60
    rows = [np.flatnonzero(colourful[:, x]).mean() for x in (10, 280, 550)]
    assert rows == sorted(rows)
    assert rows[0] + 50 < rows[1]


def test_curves_of_masks_come_before_those_of_a_part_of_the_objects(tmp_path):
    def drawn(*names):
        draw_curves([{"kind": "val", "step": 8, **dict.fromkeys(names, 0.5)}], tmp_path / "a.png")
        return cv2.imread(str(tmp_path / "a.png"))

    boxes = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "AR_small"]
    masks = [f"mask_{name}" for name in boxes]
    expected = drawn(*boxes[:3], *masks[:3], "AP_small", "AP_medium")
    np.testing.assert_array_equal(drawn(*boxes, *masks), expected)
    assert (drawn(*boxes) != expected).any()


def test_without_numbers_there_is_no_picture(tmp_path):
    draw_curves([], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
