"""Detectors on one map of the backbone, ``c4`` and ``dc5``, against a reference written image by image.

The reference is detectron2's layout (``R_50_C4``, ``R_50_DC5``) in operators of torch and torchvision, with bottlenecks
that are thinner than those of a ResNet-50, for one image at a time.
"""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import batched_nms, clip_boxes_to_image, nms, remove_small_boxes, roi_align

from densekit.backbones.resnet import ResNet, Variant
from densekit.config import ModelConfig
from densekit.data.loading.batching import collate
from densekit.doctor.boxes.anchors import anchors_of
from densekit.model import DenseModel
from densekit.packed import packed
from densekit.registry import BACKBONES, HEADS
from densekit.types import Classes, DensekitError, Level
from tests.engine.parts import AS_IT_IS, batch_on, model_on
from tests.heads.test_faster_rcnn import LEVELS
from tests.test_canvases import sample

SIZES, RATIOS, CLASSES = (16.0, 32.0, 64.0), (0.5, 1.0, 2.0), Classes(("a", "b", "c"), (3, 1, 7))
FEW = {"rpn_before_nms": (60, 50), "rpn_after_nms": (24, 20), "samples": 16, "anchor_sizes": (SIZES,)}
DILATED = {"output_stride": 16, "dilate_first_block": True}


def trunk(**options):
    return ResNet(Variant("small", "bottleneck", (1, 1, 1, 2), (8, 8, 8, 16)), **options)


def build(head, neck, **options):
    """A detector on a small ResNet whose scores pass the threshold."""
    torch.manual_seed(0)
    body = trunk(**(DILATED if neck == "dc5" else {}))
    options |= {"neck": neck} if neck == "c4" else {"neck": neck, "box_head_width": 32}
    built = HEADS.build(head, FEW | options, body.levels, num_classes=3)
    with torch.no_grad():
        built.roi.scores.weight.mul_(30 if neck == "c4" else 300)
        built.roi.deltas.weight.mul_(100)
        built.rpn.head.objectness.weight.mul_(30)
        built.rpn.head.deltas.weight.mul_(10)
        for name, values in body.named_buffers():
            if "running" in name:
                values.add_(torch.rand_like(values) / 4)
    return DenseModel(body, {"boxes": built}, mean=(0.4,), std=(0.25,), classes=CLASSES).eval()


def conv_norm(state, name, number, x, **options):
    """A convolution and its batch norm, as a ResNet names them."""
    conv, norm = (f"downsample.{i}" for i in (0, 1)) if number == "shortcut" else (f"conv{number}", f"bn{number}")
    x = F.conv2d(x, state[f"{name}{conv}.weight"], **options)
    values = [state[f"{name}{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *values)


def stage_of(state, name, x, *, blocks=1, stride=2, dilation=1):
    """A stage of bottlenecks (He et al. 2015), with the stride in the first 3 x 3 convolution."""
    for i in range(blocks):
        block, step = f"{name}.{i}.", 1 if i else stride
        y = conv_norm(state, block, 1, x).relu()
        y = conv_norm(state, block, 2, y, stride=step, padding=dilation, dilation=dilation).relu()
        shortcut = x if i else conv_norm(state, block, "shortcut", x, stride=step)
        x = (conv_norm(state, block, 3, y) + shortcut).relu()
    return x


def last_stage(state, x, neck):
    return stage_of(state, "layer4", x, blocks=2, **({"stride": 1, "dilation": 2} if neck == "dc5" else {}))


def maps_of(state, pixels, neck):
    """[1, 3, H, W] raw pixels -> C4 and C5."""
    x = conv_norm(state, "", 1, (pixels.float() / 255 - 0.4) / 0.25, stride=2, padding=3).relu()
    x = stage_of(state, "layer1", F.max_pool2d(x, 3, 2, 1), stride=1)
    c4 = stage_of(state, "layer3", stage_of(state, "layer2", x))
    return c4, last_stage(state, c4, neck)


def moved(boxes, deltas, weights):
    """Boxes by their deltas (Girshick et al. 2014, appendix C)."""
    sides, centres = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    dx, dy, dw, dh = (deltas / torch.tensor(weights)).unbind(1)
    centres = centres + torch.stack([dx, dy], 1) * sides
    sides = sides * torch.stack([dw, dh], 1).clamp(max=math.log(1000 / 16)).exp()
    return torch.cat([centres - sides / 2, centres + sides / 2], 1)


def proposals_of(head, m, size):
    """The first stage on one map [1, C, h, w] of stride 16."""
    rpn = head.rpn.head
    x = F.conv2d(m, rpn.convs[0].weight, rpn.convs[0].bias, padding=1).relu()
    scores = F.conv2d(x, rpn.objectness.weight, rpn.objectness.bias)[0].permute(1, 2, 0).flatten()
    deltas = F.conv2d(x, rpn.deltas.weight, rpn.deltas.bias)[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
    anchors = []
    for y, x in itertools.product(range(m.shape[2]), range(m.shape[3])):
        for ratio, side in itertools.product(RATIOS, SIZES):
            w, h = side / ratio**0.5 / 2, side * ratio**0.5 / 2
            anchors.append([16 * x - round(w), 16 * y - round(h), 16 * x + round(w), 16 * y + round(h)])
    best = scores.topk(min(head.before_nms[1], len(scores))).indices
    boxes = moved(torch.tensor(anchors, dtype=torch.float32)[best], deltas[best], (1.0, 1.0, 1.0, 1.0))
    boxes = clip_boxes_to_image(boxes, size)
    best = best[keep := remove_small_boxes(boxes, 1e-3)]
    boxes = boxes[keep]
    return boxes[nms(boxes, scores[best], 0.7)[: head.after_nms[1]]]


def looked_at(head, state, c4, c5, boxes, neck):
    """Logits and deltas of regions."""
    if neck == "c4":
        patches = last_stage(state, roi_align(c4, [boxes], 14, 1 / 16, 2), neck)
        assert patches.shape[1:] == (64, 7, 7)
        features = F.adaptive_avg_pool2d(patches, 1).flatten(1)
    else:
        patches = roi_align(c5, [boxes], 7, 1 / 16, 2).permute(0, 2, 3, 1).flatten(1)
        fc = head.roi.box_head
        features = F.linear(F.linear(patches, fc.fc1.weight, fc.fc1.bias).relu(), fc.fc2.weight, fc.fc2.bias).relu()
    logits = F.linear(features, head.roi.scores.weight, head.roi.scores.bias)
    return logits, F.linear(features, head.roi.deltas.weight, head.roi.deltas.bias).unflatten(1, (-1, 4))


def detected(logits, deltas, boxes, size):
    """Boxes, scores and labels, best first."""
    scores = logits.softmax(1)[:, 1:]
    region, label = torch.where(scores > 0.05)
    found = clip_boxes_to_image(moved(boxes[region], deltas[region, label], (10.0, 10.0, 5.0, 5.0)), size)
    scores = scores[region, label]
    kept = batched_nms(found, scores, label, 0.5)[:100]
    return found[kept], scores[kept], label[kept]


@pytest.mark.parametrize("neck", ["c4", "dc5"])
@torch.no_grad()
def test_boxes_scores_and_labels_are_the_references_image_by_image(neck):
    model = build("faster_rcnn", neck)
    state, head = model.backbone.state_dict(), model.head()
    width = 32 if neck == "c4" else 64
    assert [(level.channels, level.stride) for level in head.neck.levels] == [(width, 16)]
    assert head.rpn.head.convs[0].weight.shape == (width, width, 3, 3)
    assert head.roi.scores.in_features == (64 if neck == "c4" else 32)
    assert not any("layer4" in name for name in head.state_dict())
    count = 0
    images = [sample(0), sample(3)]
    for row, one in enumerate(images):
        one.image = one.image[: 32 + 32 * row]
        one.original_size = one.image.shape[:2]
    found = model.predict(collate(images))
    for row, one in enumerate(images):
        pixels = torch.from_numpy(one.image).permute(2, 0, 1)[None]
        c4, c5 = maps_of(state, pixels, neck)
        proposals = proposals_of(head, c4 if neck == "c4" else c5, one.original_size)
        logits, deltas = looked_at(head, state, c4, c5, proposals, neck)
        boxes, scores, labels = detected(logits, deltas, proposals, one.original_size)
        valid = found.valid[row]
        assert int(valid.sum()) == len(boxes)
        same = torch.cdist(boxes, found.boxes[row][valid]).argmin(1)  # scores that tie may come in another order
        assert sorted(same.tolist()) == list(range(len(boxes)))
        torch.testing.assert_close(found.boxes[row][valid][same], boxes, atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(found.scores[row][valid][same], scores, atol=1e-4, rtol=1e-4)
        assert found.labels[row][valid][same].tolist() == [CLASSES.ids[i] for i in labels.tolist()]
        count += len(boxes)
    assert count > 15


@pytest.mark.parametrize("neck", ["c4", "dc5"])
def test_losses_of_given_samples_and_their_gradients_are_the_references(neck):
    model = build("faster_rcnn", neck)
    state, head = dict(model.backbone.named_parameters()), model.head()
    state |= dict(model.backbone.named_buffers())
    batch = batch_on("cpu", "boxes", images=1)
    _, regions = head.regions(model.features(batch))
    _, samples = head.samples(regions, head._targets(batch), batch)
    given, proposals = samples.valid[0], samples.proposals[0]
    c4, c5 = maps_of(state, batch.images, neck)
    logits, _ = looked_at(head, state, c4, c5, proposals[given], neck)
    labels = samples.labels[0][given]
    assert labels.count_nonzero()
    model.zero_grad()
    losses = model(batch)
    torch.testing.assert_close(losses["class"], F.cross_entropy(logits, labels), atol=1e-4, rtol=1e-4)
    into = [state[f"{name}.weight"] for name in ("layer4.0.conv1", "layer4.1.bn2", "layer3.0.conv2", "conv1")]
    for ours, theirs in zip(
        torch.autograd.grad(losses["class"], into), torch.autograd.grad(F.cross_entropy(logits, labels), into)
    ):
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@torch.no_grad()
def test_masks_of_c4_are_made_from_what_the_last_stage_makes_of_the_detections():
    model = build("mask_rcnn", "c4", mask_convs=0, mask_channels=8, mask_pool_size=7, class_agnostic_masks=True)
    state, mask = model.backbone.state_dict(), model.head().mask
    mask.logits.weight.mul_(1000)
    batch = batch_on("cpu", "boxes", images=1)
    found = model.head().predict(model.features(batch), batch)
    boxes = found.boxes[0][found.valid[0]]
    patches = last_stage(state, roi_align(maps_of(state, batch.images, "c4")[0], [boxes], 14, 1 / 16, 2), "c4")
    expected = mask.logits(mask.upsample(patches).relu())[:, 0].sigmoid()
    assert expected.shape[1:] == (14, 14)
    assert expected.std() > 0.01
    torch.testing.assert_close(found.masks[0][found.valid[0]], expected, atol=1e-4, rtol=1e-4)


def test_the_last_stage_runs_on_regions_alone_unless_another_head_looks_at_its_map():
    model = build("faster_rcnn", "c4", max_detections=5)
    shapes = []
    model.backbone.layer4[0].register_forward_pre_hook(lambda _, x: shapes.append(tuple(x[0].shape)))
    batch = batch_on("cpu", "boxes")
    with torch.no_grad():
        model.predict(batch)
    assert shapes == [(2 * 20, 32, 14, 14)]
    assert [level.name for level in model.levels] == ["c1", "c2", "c3", "c4"]
    assert "backbone.layer4.1.bn2.running_var" in model.state_dict()
    body = trunk()
    heads = {
        "boxes": HEADS.build("faster_rcnn", FEW | {"neck": "c4"}, body.levels, num_classes=3),
        "kind": HEADS.build("classifier", {}, body.levels, num_classes=3),
    }
    both = DenseModel(body, heads, mean=(0.4,), std=(0.25,), classes=CLASSES).eval()
    assert [level.name for level in both.levels] == ["c1", "c2", "c3", "c4", "c5"]
    both.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(both.predict(batch, "boxes").boxes[:, :5], model.predict(batch).boxes)


def test_a_frozen_last_stage_stays_frozen_and_a_copy_has_a_last_stage_of_its_own():
    body = trunk(frozen_stages=5, activation_checkpointing=True)
    head = HEADS.build("faster_rcnn", FEW | {"neck": "c4"}, body.levels, num_classes=3)
    model = DenseModel(body, {"boxes": head}, mean=(0.4,), std=(0.25,), classes=CLASSES)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    sum(model.train()(batch_on("cpu", "boxes")).values()).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert not any(p.requires_grad for p in model.backbone.parameters())
    other = copy.deepcopy(model).eval()
    torch.nn.init.zeros_(other.backbone.layer4[0].conv1.weight)
    assert other.head().roi.box_head.stage.__self__ is other.backbone
    assert model.backbone.layer4[0].conv1.weight.abs().max() > 0


def test_a_packed_model_predicts_what_the_model_predicts():
    model, batch = build("faster_rcnn", "c4"), batch_on("cpu", "boxes")
    copied = packed(model, torch.float32)
    assert copied is not model
    with torch.inference_mode():
        found, wanted = copied.predict(batch), model.predict(batch)
    assert torch.equal(found.valid, wanted.valid)
    torch.testing.assert_close(found.boxes, wanted.boxes, atol=0.05, rtol=1e-3)


@pytest.mark.parametrize(
    ("head", "backbone", "options", "message"),
    [
        (
            "faster_rcnn",
            {},
            {"neck": "dc5"},
            r"goes from stride 16 to 32 there; set model.backbone.output_stride to 16",
        ),
        ("faster_rcnn", {}, {"neck": "c4", "channels": 64}, "takes c4 as it is, with its 32 channels; leave channels"),
        ("faster_rcnn", DILATED, {"neck": "dc5", "neck_norm": "batch"}, "takes c5 as it is, with its 64 channels"),
        ("faster_rcnn", {}, {"neck": "c4", "box_head": "four_conv_fc"}, "the backbone's last stage is the box head"),
        (
            "faster_rcnn",
            {"num_stages": 1},
            {"neck": "c4"},
            "this backbone has none that runs alone; use one of our own",
        ),
        ("cascade_rcnn", {}, {"neck": "c4"}, "a cascade needs one for each of its stages; use neck fpn, c5 or dc5"),
        ("cascade_mask_rcnn", {}, {"neck": "c4"}, "or the head faster_rcnn or mask_rcnn"),
    ],
)
def test_what_a_neck_cannot_do_is_told_in_one_line(head, backbone, options, message):
    levels = trunk(**backbone).levels
    with pytest.raises(DensekitError, match=message) as error:
        HEADS.build(head, options, levels, num_classes=3)
    assert "\n" not in str(error.value)


def test_maps_that_no_stage_makes_have_no_c4():
    with pytest.raises(DensekitError, match="this backbone has none that runs alone"):
        HEADS.build("faster_rcnn", {"neck": "c4"}, LEVELS, num_classes=3)
    with pytest.raises(DensekitError, match=r"needs a backbone of two maps or more, this one has .*c5.* alone"):
        HEADS.build("faster_rcnn", {"neck": "c4"}, (Level("c5", 8, 32),), num_classes=3)


@pytest.mark.parametrize("name", ["resnet20", "pyconvresnet50", "plain18"])
def test_any_network_of_our_own_runs_its_last_stage(name):
    with torch.device("meta"):
        body = BACKBONES.build(name, {})
        head = HEADS.build("faster_rcnn", FEW | {"neck": "c4"}, body.levels, num_classes=3)
        model = DenseModel(body, {"boxes": head}, mean=(0.4,), std=(0.25,), classes=CLASSES).eval()
        before, last = model.levels[-1], head.roi.box_head
        patches = torch.zeros(3, before.channels, 2 * 7, 2 * 7)
        assert last.patch(patches).shape == (3, last.width, 7, 7)
    assert (before.name, last.width) == (("c3", 64) if name == "resnet20" else ("c4", last.width))


def test_the_doctor_knows_the_anchors_of_c4():
    config = {"backbone": {"name": "resnet18"}, "heads": {"boxes": {"name": "faster_rcnn", "neck": "c4"}}}
    anchors = anchors_of(ModelConfig(**config))
    assert (anchors.strides, anchors.sizes) == ((16,), ((32.0, 64.0, 128.0, 256.0, 512.0),))


def test_a_cascade_runs_on_dc5():
    losses = model_on("cpu", "cascade_rcnn", AS_IT_IS | {"neck": "dc5"})(batch_on("cpu", "boxes"))
    assert all(loss.isfinite() for loss in losses.values())
