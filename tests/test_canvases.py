"""What is found in an image does not depend on its batch: alone and among images of other sizes, for every head."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from densekit import canvases
from densekit.data.loading.batching import collate
from densekit.infer.augmented import predict_augmented
from densekit.infer.augmented_boxes import detect_augmented
from densekit.types import Classification, Detections, Level, Sample, Segmentation
from tests.engine.parts import CASES, model_on

SIZES = [(40, 64), (64, 30), (33, 90), (64, 64), (70, 31), (36, 61)]  # canvases of 64 x 64, and three others
BATCHES = [range(6), (5, 2), (3, 1, 4), (0, 5)]


def sample(index, kind=None):
    height, width = SIZES[index]
    random = np.random.default_rng(index)
    image = random.integers(0, 256, (height, width, 3), np.uint8)
    made = Sample(image, id=index, original_size=(2 * height, width), seed=index)
    box = np.array([[4, 6, 20, 28]], np.float32)
    targets = {
        "boxes": {"boxes": box, "labels": np.array([1]), "crowd": np.array([False])},
        "masks": {"mask": random.integers(0, 3, (height, width), np.uint8)},
        "labels": {"target": index % 3},
    }
    return dataclasses.replace(made, **targets[kind]) if kind else made


def values(found, row):
    """What is found in one image."""
    if isinstance(found, Segmentation):
        return found.probabilities[row]
    if isinstance(found, Classification):
        return found.probabilities[row]
    valid = found.valid[row]
    return torch.cat([found.boxes[row][valid], found.scores[row][valid, None]], 1)


def spread_out(model):
    """Scores that do not tie, so that rounding does not change the order of boxes."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and name.endswith("weight"):
            torch.nn.init.kaiming_normal_(parameter)
    return model.eval()


@pytest.mark.parametrize(("head", "options", "kind"), CASES)
@torch.inference_mode()
def test_an_image_gets_the_same_alone_and_in_any_batch(head, options, kind):
    model = spread_out(model_on("cpu", head, {**options, "score_threshold": 0.0} if kind == "boxes" else options))
    alone = [values(model.predict(collate([sample(i)])), 0) for i in range(len(SIZES))]
    differs = False
    for batch in BATCHES:
        together = collate([sample(i) for i in batch])
        found, at_once = model.predict(together), model.predict(together, padded=True)
        for row, index in enumerate(batch):
            torch.testing.assert_close(values(found, row), alone[index], atol=1e-3, rtol=1e-3)
            other = values(at_once, row)
            differs |= other.shape != alone[index].shape or not torch.allclose(other, alone[index], atol=0.01)
    assert differs or kind == "labels", "padding changes nothing here, so the test shows nothing"
    assert all(len(one) for one in alone)


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet", "fcos", "unet"])
@torch.inference_mode()
def test_flips_and_scales_give_an_image_the_same_alone_and_in_any_batch(name):
    head, options, kind = next(case for case in CASES if case[0] == name)
    model = spread_out(model_on("cpu", head, {**options, "score_threshold": 0.0} if kind == "boxes" else options))
    averaged = detect_augmented if kind == "boxes" else predict_augmented
    views = {"flips": ("none", "horizontal"), "scales": (1.0, 1.5)}
    alone = values(averaged(model, collate([sample(3)]), **views), 0)
    mixed = averaged(model, collate([sample(2), sample(3)]), **views)
    torch.testing.assert_close(values(mixed, 1), alone, atol=1e-3, rtol=1e-3)
    assert len(alone)


@pytest.mark.parametrize(("head", "options", "kind"), [CASES[0], next(c for c in CASES if c[0] == "pspnet"), CASES[-1]])
@torch.inference_mode()
def test_the_losses_beside_predictions_are_the_mean_over_canvases(head, options, kind):
    model = spread_out(model_on("cpu", head, options))
    together = [0, 1, 5]
    losses, by_head = model.losses_and_predictions(collate([sample(i, kind) for i in together]))
    (found,) = by_head.values()
    parts = [model.losses_and_predictions(collate([sample(i, kind) for i in rows]))[0] for rows in ([0, 5], [1])]
    for name, value in losses.items():
        torch.testing.assert_close(value, (2 * parts[0][name] + parts[1][name]) / 3)
    expected = model.predict(collate([sample(i) for i in together]))
    for row in range(3):
        torch.testing.assert_close(values(found, row), values(expected, row))


def test_images_of_one_canvas_stay_one_batch_and_stored_maps_follow():
    same = collate([sample(0), sample(5)])
    assert [rows for rows, _ in canvases.split(same, 32, [])] == [[0, 1]]
    assert canvases.split(same, 32, [])[0][1] is same
    level = Level("c4", 2, 16)
    samples = [dataclasses.replace(sample(i), maps={level: torch.full((2, 4, 6), float(i))}) for i in range(2)]
    samples[0].maps[level] = torch.zeros(2, 4, 4)
    batch = collate([samples[0], dataclasses.replace(samples[1], image=np.zeros((64, 90, 3), np.uint8))])
    (_, first), (_, second) = canvases.split(batch, 32, [level])
    assert first.maps["c4"].shape == (1, 2, 4, 4)
    assert torch.equal(second.maps["c4"], torch.full((1, 2, 4, 6), 1.0))


def test_an_image_is_padded_as_it_is_alone():
    large = collate([sample(0), sample(3)], pad_to=96)
    assert [part.images.shape[2:] for _, part in canvases.split(large, 32, [])] == [(96, 96)]
    (_, small), (_, other) = canvases.split(collate([sample(0), sample(4)]), 32, [])
    assert small.images.shape[2:] == (64, 64)
    assert other.images.shape[2:] == (96, 32)


def test_parts_are_joined_in_the_order_of_the_batch_and_padded_to_one_shape():
    def found(count, ids):
        boxes = torch.tensor([float(i) for i in ids])[:, None, None].expand(-1, count, 4)
        return Detections(boxes, boxes[..., 0], boxes[..., 0].long(), torch.ones(len(ids), count, dtype=torch.bool))

    joined = canvases.join([([0, 2], found(2, [0, 2])), ([1], found(3, [1]))])
    assert joined.boxes[:, 0, 0].tolist() == [0, 1, 2]
    assert joined.valid.tolist() == [[True, True, False], [True, True, True], [True, True, False]]
    two, three = found(2, [0, 2]), found(3, [1])
    two.masks, three.masks = (d.boxes[..., None].expand(-1, -1, 4, 4) for d in (two, three))
    joined = canvases.join([([0, 2], two), ([1], three)])
    assert joined.masks.shape == (3, 3, 4, 4)
    assert joined.masks[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert not joined.masks[0, 2].any()
    labels = torch.tensor([3, 4])
    one = Classification(torch.tensor([[0.1, 0.9], [0.2, 0.8]]), labels)
    two = Classification(torch.tensor([[0.3, 0.7]]), labels[:1])
    assert canvases.join([([2, 0], one), ([1], two)]).labels.tolist() == [4, 3, 3]
