"""Behaviour of the one-stage detectors: options, crowds, empty images, candidates, messages."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from densekit.heads.dense.towers import best_candidates
from densekit.ops.losses import focal_losses
from densekit.ops.points import assign_points, boxes_around, grid_points, sides
from densekit.registry import HEADS
from densekit.types import BoxTargets, DensekitError
from tests.heads.test_faster_rcnn import DILATED, LEVELS, batch_of, maps_of

SMALL = {"channels": 16, "convs": 1, "candidates": 20, "score_threshold": 0.0, "max_detections": 7}
LOSSES = {"retinanet": {"class", "box"}, "fcos": {"class", "box", "centerness"}}


def build(name, levels=LEVELS, **options):
    torch.manual_seed(0)
    return HEADS.build(name, SMALL | options, levels, num_classes=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("retinanet", {}),
        ("retinanet", {"norm": "batch", "neck_norm": "group", "coarse_from": "c5", "box_loss": "ciou"}),
        ("retinanet", {"anchor_ratios": (1.0,), "box_weight": 2.0, "nms": "soft_gaussian"}),
        ("fcos", {}),
        ("fcos", {"norm": "frozen", "neck_norm": "batch", "coarse_from": "c5", "box_loss": "iou", "offset": 0.5}),
        ("fcos", {"radius": 3.0, "nms_class_agnostic": True, "nms": "soft_linear", "convs": 0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("levels", [LEVELS, DILATED, LEVELS[:2]], ids=["plain", "dilated", "fine maps alone"])
def test_options_train_every_parameter_and_predict_inside_the_images(name, options, levels):
    head, batch = build(name, levels, **options), batch_of()
    losses = head.losses(maps_of(levels), batch)
    assert set(losses) == LOSSES[name]
    assert all(loss.dtype == torch.float32 and loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key
    found = head.predict(maps_of(levels), batch)
    assert found.boxes.shape == (2, 7, 4)
    assert found.valid.all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= batch.sizes.flip(-1).repeat(1, 2)[:, None]).all()
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_batch_without_objects_learns_that_there_is_nothing(name):
    head = build(name)
    losses = head.losses(maps_of(), batch_of(count=0))
    assert losses["class"] > 0
    assert losses["box"] == 0
    sum(losses.values()).backward()
    assert head.logits.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", list(LOSSES))
def test_what_lies_in_a_crowd_is_not_learned_as_nothing(name):
    head = build(name)
    with_crowd, without = batch_of(crowd=True), batch_of()
    without.targets.boxes.valid[0, 1] = False  # the same objects, and nothing in the crowd's place
    assert head.losses(maps_of(), with_crowd)["class"] < head.losses(maps_of(), without)["class"]
    assert head.losses(maps_of(), with_crowd)["box"] == head.losses(maps_of(), without)["box"]


def test_the_focal_loss_is_torchvisions():
    logits, labels = torch.randn(4, 50, 6) * 4, torch.randint(0, 6, (4, 50))
    positive = torch.rand(4, 50) < 0.3
    wanted = torch.nn.functional.one_hot(labels, 6) * positive[..., None]
    expected = sigmoid_focal_loss(logits, wanted.float(), alpha=0.3, gamma=1.5)
    torch.testing.assert_close(focal_losses(logits, labels, positive, alpha=0.3, gamma=1.5), expected)


@pytest.mark.parametrize("quality", [False, True])
def test_the_best_candidates_are_those_of_all_pairs(quality):
    logits, middle = torch.randn(2, 60, 7), torch.randn(2, 60) if quality else None
    found = best_candidates(logits, (40, 20), count=15, threshold=0.5, quality=middle)
    scores = logits.sigmoid() if middle is None else (logits.sigmoid() * middle.sigmoid()[..., None]).sqrt()
    for image in range(2):
        expected = set()
        for first, last in ((0, 40), (40, 60)):
            values, pairs = scores[image, first:last].flatten().topk(15)
            expected |= {(first + p // 7, p % 7) for v, p in zip(values.tolist(), pairs.tolist()) if v > 0.5}
        count = int((found.scores[image] > 0).sum())
        pairs = list(zip(found.places[image].tolist(), found.labels[image].tolist()))[:count]
        assert set(pairs) == expected
        assert count == len(expected) > 5
        assert [float(scores[image, a, k]) for a, k in pairs] == found.scores[image, :count].tolist()


def test_a_point_learns_the_smallest_object_around_it_and_large_ones_belong_to_coarse_levels():
    points = grid_points([(8, 8), (4, 4)], (64, 64), [8, 16], offset=0.0, device=torch.device("cpu"))
    boxes = torch.tensor([[[4.0, 4.0, 60.0, 60.0], [25.0, 25.0, 40.0, 39.0], [0.0, 0.0, 64.0, 10.0]]])
    no, yes = torch.tensor([[False, False, False]]), torch.tensor([[True, True, False]])
    found = assign_points(points, BoxTargets(boxes, torch.zeros(1, 3, dtype=torch.int64), no, yes), radius=1.5)
    at = {tuple(p): i for i, p in enumerate(points.places[:64].tolist())}
    assert found.positive[0, at[32.0, 32.0]]
    assert found.object[0, at[32.0, 32.0]] == 1
    fine = found.positive[0, :64] & (found.object[0, :64] == 0)
    assert fine.sum() == 8  # around the small one, no farther side than 64 pixels, within 12 of the centre
    assert found.negative[0, at[8.0, 0.0]]  # the third box is padding
    torch.testing.assert_close(
        boxes_around(points, sides(points, boxes[0, :1].expand(80, 4)) / points.strides[:, None]),
        boxes[0, :1].expand(80, 4),
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("retinanet", {"negative_overlap": 0.6}, "negative_overlap 0.6 and positive_overlap 0.5: give 0 < negative"),
        ("retinanet", {"prior": 1.0}, "prior 1.0: give a probability between 0 and 1"),
        ("retinanet", {"anchor_sizes": ((8.0,),)}, "anchor_sizes has 1 tuples; give one a level of the neck: p3, p4"),
        ("fcos", {"prior": 0.0}, "prior 0.0: give a probability between 0 and 1"),
        ("fcos", {"radius": 0.0}, "radius 0.0: no point would learn an object"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(DensekitError, match=message):
        build(name, **options)


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_data_set_without_boxes_is_named(name):
    batch = dataclasses.replace(batch_of(), targets=None)
    with pytest.raises(DensekitError, match="losses need boxes"):
        build(name).losses(maps_of(), batch)
