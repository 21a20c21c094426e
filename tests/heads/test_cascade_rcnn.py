"""Behaviour of the cascade: its first stage is Faster R-CNN's, the others follow a reference written image by image."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou, clip_boxes_to_image

from densekit.heads.cascade_rcnn import cascade_rcnn
from densekit.heads.faster_rcnn import faster_rcnn
from densekit.ops import boxes as box_ops
from densekit.registry import HEADS
from densekit.types import DensekitError
from tests.heads.test_faster_rcnn import LEVELS, LOSSES, SMALL, maps_of
from tests.heads.test_mask_rcnn import SMALL_MASKS, batch_of

STAGES = {f"{name}_{number}" for name in ("class", "box") for number in (2, 3)}


def build(name="cascade_rcnn", **options):
    torch.manual_seed(0)
    small = SMALL_MASKS if name == "cascade_mask_rcnn" else SMALL
    head = HEADS.build(name, small | options, LEVELS, num_classes=3)
    with torch.no_grad():  # spread scores and boxes, so that some pass the thresholds and all stages differ
        for stage in (head.roi, *head.cascade.stages):
            stage.scores.weight.mul_(100)
            stage.deltas.weight.mul_(100)
        head.rpn.head.objectness.weight.mul_(30)
    return head


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cascade_rcnn", {}),
        ("cascade_rcnn", {"box_head": "four_conv_fc", "box_head_norm": "batch", "class_loss": "focal", "neck": "c5"}),
        ("cascade_rcnn", {"box_loss": "giou", "nms": "soft_linear", "max_detections": 7}),
        ("cascade_mask_rcnn", {}),
        ("cascade_mask_rcnn", {"class_agnostic_masks": True, "roi_align": "kernel"}),
    ],
    ids=str,
)
def test_options_train_every_parameter_and_predict_inside_the_images(name, options):
    head, batch = build(name, **options), batch_of()
    losses = head.losses(maps_of(), batch)
    assert set(losses) == LOSSES | STAGES | ({"mask"} if "mask" in name else set())
    assert all(loss.dtype == torch.float32 and loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if "deltas" not in key:  # a strict stage may find no positive to move
            assert parameter.grad.abs().sum() > 0, key
    with torch.no_grad():
        found = head.predict(maps_of(), batch)
    assert found.valid.any()
    assert (found.masks is not None) is ("mask" in name)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= batch.sizes.flip(-1).repeat(1, 2)[:, None]).all()


def test_its_first_stage_is_faster_rcnns():
    cascade, batch = build(stage_weights=(1.0, 0.5, 0.25)), batch_of()
    plain = faster_rcnn(LEVELS, num_classes=3, class_agnostic_boxes=True, **SMALL)
    report = plain.load_state_dict(cascade.state_dict(), strict=False)
    assert not report.missing_keys
    assert all(key.startswith("cascade.") for key in report.unexpected_keys)
    expected, found = plain.losses(maps_of(), batch), cascade.losses(maps_of(), batch)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@torch.no_grad()
def test_later_stages_learn_from_refined_boxes_as_a_reference_does_image_by_image():
    head, batch = build(), batch_of()
    pyramid, regions = head.regions(maps_of())
    targets = head._targets(batch)
    _, samples = head.samples(regions, targets, batch)
    found = head.cascade.losses(head.roi, pyramid, samples)
    stage, boxes, labels, positives = head.roi, samples.proposals, samples.labels, 0
    for number, (after, overlap, factor, weight) in enumerate(
        zip(head.cascade.stages, (0.6, 0.7), (2, 3), (0.5, 0.25)), start=2
    ):
        _, deltas = stage(pyramid, boxes)
        boxes, labels, objects = boxes.clone(), labels.clone(), torch.zeros_like(boxes)
        for i, (height, width) in enumerate(batch.sizes.tolist()):
            moved = box_ops.decode(deltas[i, :, 0], boxes[i], stage.weights)
            boxes[i] = clip_boxes_to_image(moved, (height, width))
            real = targets.boxes[i][targets.valid[i]]
            labels[i] = 0
            if len(real):
                best, which = box_iou(boxes[i], real).max(1)
                labels[i] = torch.where(best >= overlap, targets.labels[i][which] + 1, 0)
                objects[i] = real[which]
        valid = samples.valid & ((boxes[..., 2:] - boxes[..., :2]).amin(-1) >= 1e-2)
        assert after.weights == tuple(factor * w for w in (10.0, 10.0, 5.0, 5.0))
        logits, deltas = after(pyramid, boxes)
        entropy = torch.nn.functional.cross_entropy(logits[valid], labels[valid], reduction="mean")
        torch.testing.assert_close(found[f"class_{number}"], weight * entropy)
        positive = valid & (labels > 0)
        positives += int(positive.sum())
        wanted = box_ops.encode(objects[positive], boxes[positive], after.weights)
        smooth = torch.nn.functional.smooth_l1_loss(deltas[:, :, 0][positive], wanted, beta=1 / 9, reduction="sum")
        torch.testing.assert_close(found[f"box_{number}"], weight * smooth / valid.sum())
        stage = after
    assert positives


@torch.no_grad()
def test_predictions_take_the_last_boxes_and_the_mean_of_all_probabilities():
    head, batch = build(nms_threshold=1.0, score_threshold=0.0, max_detections=60), batch_of()
    pyramid, regions = head.regions(maps_of())
    proposals = head.proposals(regions, batch.sizes, training=False)
    boxes, probabilities = proposals.boxes, 0
    for stage in (head.roi, *head.cascade.stages):
        logits, deltas = stage(pyramid, boxes)
        probabilities = probabilities + logits.softmax(-1) / 3
        boxes = box_ops.clip(box_ops.decode(deltas[:, :, 0], boxes, stage.weights), batch.sizes)
        boxes = torch.where(proposals.valid[..., None], boxes, 0.0)
    found = head.predict(maps_of(), batch)
    count = 0
    for i in range(2):
        for box, score, label in zip(*(part[i][found.valid[i]] for part in (found.boxes, found.scores, found.labels))):
            same = ((boxes[i] - box).abs().amax(-1) < 1e-3) & ((probabilities[i, :, label + 1] - score).abs() < 1e-5)
            assert same.any()
            count += 1
    assert count > 20


def test_boxes_are_class_agnostic_and_stages_that_make_no_sense_are_refused():
    assert "class_agnostic_boxes" not in HEADS.options("cascade_rcnn")
    with pytest.raises(DensekitError, match="class_agnostic_boxes: head 'cascade_rcnn' has no such option"):
        build(class_agnostic_boxes=False)
    with pytest.raises(DensekitError, match=r"stage_overlaps \[0.4\]: give one a further stage, none below"):
        build(stage_overlaps=(0.4,), stage_weights=(1.0, 1.0))
    with pytest.raises(DensekitError, match="stage_weights has 2 numbers for 3 stages"):
        build(stage_weights=(1.0, 1.0))
    head = cascade_rcnn(LEVELS, num_classes=2, stage_overlaps=(0.5,), stage_weights=(1.0, 1.0), **SMALL)
    first, second = head.roi.box_head.fc1.weight, head.cascade.stages[0].box_head.fc1.weight
    assert not torch.equal(first, second)
