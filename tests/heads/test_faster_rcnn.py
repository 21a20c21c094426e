"""Behaviour of the detector head: options, empty images, crowds, precision, constant shapes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.heads.faster_rcnn.rpn_head import RPNHead
from densekit.registry import HEADS
from densekit.types import Batch, BoxTargets, DensekitError, Level, Targets

LEVELS = tuple(Level(f"c{i}", 8, 2**i) for i in range(1, 6))
DILATED = (*LEVELS[:4], Level("c5", 8, 16))
SMALL = {"channels": 16, "box_head_width": 32, "rpn_before_nms": (60, 50), "rpn_after_nms": (40, 30), "samples": 24}
LOSSES = {"rpn_objectness", "rpn_box", "class", "box"}


def build(levels=LEVELS, **options):
    torch.manual_seed(0)
    head = HEADS.build("faster_rcnn", SMALL | options, levels, num_classes=3)
    with torch.no_grad():  # spread scores, so that some pass the threshold
        head.roi.scores.weight.mul_(100)
        head.rpn.head.objectness.weight.mul_(30)
    return head


def maps_of(levels=LEVELS, images: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(images, m.channels, 64 // m.stride, 96 // m.stride, generator=generator).to(dtype) for m in levels
    ]


def batch_of(count: int = 2, crowd: bool = False) -> Batch:
    """Two images: the first with two objects (the second object can be a crowd), the second with none."""
    boxes = torch.zeros(2, count, 4)
    valid = torch.zeros(2, count, dtype=torch.bool)
    if count:
        boxes[0, :2] = torch.tensor([[5.0, 5.0, 40.0, 44.0], [50.0, 20.0, 90.0, 60.0]])
        valid[0, :2] = True
    crowds = valid & crowd & (torch.arange(count) == 1)
    labels = torch.arange(count).expand(2, -1) % 3
    sizes = torch.tensor([[60, 96], [64, 80]])
    targets = Targets(boxes=BoxTargets(boxes, labels, crowds, valid))
    images = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    return Batch(images, sizes, sizes, [1, 2], torch.tensor([11, 12]), targets)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"neck": "c5"},
        {"neck": "c5", "anchor_sizes": ((16.0, 32.0),), "anchor_ratios": (1.0,)},
        {"neck_norm": "group", "rpn_convs": 2, "box_head": "four_conv_fc", "box_head_norm": "group"},
        {"neck_norm": "batch", "box_head": "four_conv_fc", "box_head_norm": "sync"},
        {"neck_norm": "frozen", "box_head": "four_conv_fc"},
        {"class_agnostic_boxes": True, "nms_class_agnostic": True},
        {"rpn_box_loss": "l1", "box_loss": "giou", "class_loss": "focal", "nms": "soft_gaussian"},
        {"rpn_box_loss": "giou", "box_loss": "ciou", "nms": "soft_linear"},
        {"rpn_box_loss": "ciou", "box_loss": "diou", "rpn_box_weight": 2.0, "box_weight": 3.0},
        {"pool_size": 5, "sampling_ratio": 1, "aligned": True, "roi_align": "kernel", "max_detections": 7},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "defaults",
)
def test_options_train_every_parameter_and_predict_inside_the_images(options):
    head, batch = build(**options), batch_of()
    losses = head.losses(maps_of(), batch)
    assert set(losses) == LOSSES
    assert all(loss.dtype == torch.float32 and loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        found = head.predict(maps_of(), batch)
    assert found.boxes.shape == (2, options.get("max_detections", 100), 4) or options.get("nms", "").startswith("soft")
    assert found.valid.any()
    limit = batch.sizes.flip(-1)[:, None]
    assert ((found.boxes[..., :2] >= 0) & (found.boxes[..., 2:] <= limit)).all()
    assert (found.scores[found.valid] > 0.05).all()
    assert (found.scores[~found.valid] == 0).all()
    assert (found.scores.diff(dim=1) <= 0).all()
    assert found.labels.min() >= 0
    assert found.labels.max() < 3


@pytest.mark.parametrize("neck", ["fpn", "c5"])
def test_a_dilated_backbone_gives_finer_last_maps(neck):
    head = build(DILATED, neck=neck)
    assert head.neck.levels[-1].stride == (32 if neck == "fpn" else 16)
    maps = maps_of(DILATED)
    _, regions = head.regions(maps)
    if neck == "c5":
        assert regions.per_level == (4 * 6 * 15,)
        assert (regions.anchors[15] - regions.anchors[0]).tolist() == [16.0, 0.0, 16.0, 0.0]
    losses = head.losses(maps, batch_of())
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("columns", [0, 3])
def test_batches_without_objects_train_with_finite_losses_and_gradients(columns):
    head, batch = build(), batch_of(columns)
    batch.targets.boxes.valid[:] = False
    losses = head.losses(maps_of(), batch)
    assert losses["box"] == losses["rpn_box"] == 0
    assert losses["class"] > 0
    assert losses["rpn_objectness"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_losses_do_not_depend_on_padding_of_targets_nor_on_the_mode():
    head = build()
    few, many = batch_of(2), batch_of(9)
    few.targets.boxes.labels[:] = many.targets.boxes.labels[:, :2]
    expected = head.train().losses(maps_of(), few)
    head.eval()
    for key, value in head.losses(maps_of(), many).items():
        torch.testing.assert_close(value, expected[key])


def test_crowds_are_no_objects_and_no_background():
    head, crowd = build(), batch_of(crowd=True)
    _, regions = head.regions(maps_of())
    targets = crowd.targets.boxes
    anchors = head.rpn.sample(regions, targets, crowd.seeds)
    region = targets.boxes[0, 1]
    boxes = regions.anchors[anchors.chosen[0]][anchors.valid[0]]
    common = (torch.minimum(boxes[:, 2:], region[2:]) - torch.maximum(boxes[:, :2], region[:2])).clamp(min=0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert len(boxes) > 100
    assert (common / area < 0.5).logical_or(anchors.positive[0][anchors.valid[0]]).all()
    drawn = head.roi.sample(head.proposals(regions, crowd.sizes, training=True), targets, crowd.seeds)
    assert not (drawn.proposals[0] == region).all(1).any()  # its box is not among the proposals
    assert not (drawn.boxes[0][drawn.labels[0] > 0] == region).all(1).any()


def test_objects_own_boxes_are_among_the_proposals():
    head, batch = build(), batch_of()
    _, regions = head.regions(maps_of())
    drawn = head.roi.sample(head.proposals(regions, batch.sizes, training=True), batch.targets.boxes, batch.seeds)
    for box, label in zip(batch.targets.boxes.boxes[0], batch.targets.boxes.labels[0]):
        own = (drawn.proposals[0] == box).all(1)
        assert own.sum() == 1
        assert drawn.labels[0][own] == label + 1


def test_samples_of_an_image_do_not_depend_on_its_batch():
    head, batch = build(), batch_of()
    _, regions = head.regions(maps_of())
    both = head.rpn.sample(regions, batch.targets.boxes, batch.seeds)
    _, single = head.regions([m[:1] for m in maps_of()])
    parts = [getattr(batch.targets.boxes, name)[:1] for name in ("boxes", "labels", "crowd", "valid")]
    alone = head.rpn.sample(single, BoxTargets(*parts), batch.seeds[:1])
    assert torch.equal(both.chosen[:1], alone.chosen)
    assert not torch.equal(head.rpn.sample(regions, batch.targets.boxes, batch.seeds + 1).chosen, both.chosen)


@pytest.mark.parametrize("convs", [0, 1, 2, 3])
def test_predictions_for_some_anchors_have_the_values_and_gradients_of_those_for_all(convs):
    torch.manual_seed(0)
    head = RPNHead(6, anchors=3, convs=convs)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pyramid = [torch.randn(2, 6, *shape, requires_grad=True) for shape in ((5, 7), (3, 4), (1, 1))]
    count = 3 * (35 + 12 + 1)
    chosen = torch.stack([torch.arange(count - 1, 0, -2), torch.randint(0, count, (count // 2,))])[:, :70]

    def all_anchors():
        for x in pyramid:
            for conv in head.convs:
                x = conv(x).relu()
            parts = head.objectness(x)[:, :, None], head.deltas(x).unflatten(1, (3, 4))
            yield torch.cat(parts, dim=2).permute(0, 3, 4, 1, 2).flatten(1, 3)  # [B, H W k, 5]

    expected = torch.cat(list(all_anchors()), dim=1)
    objectness, deltas = head(pyramid)
    torch.testing.assert_close(torch.cat([objectness[..., None], deltas], dim=-1), expected)
    assert not objectness.requires_grad
    expected = expected.gather(1, chosen[..., None].expand(-1, -1, 5))
    objectness, deltas = head.at(pyramid, chosen)
    some = torch.cat([objectness[..., None], deltas], dim=-1)
    torch.testing.assert_close(some, expected)
    weights = torch.randn(some.shape)
    into = [*pyramid, *head.parameters()]
    for ours, dense in zip(
        torch.autograd.grad((some * weights).sum(), into), torch.autograd.grad((expected * weights).sum(), into)
    ):
        torch.testing.assert_close(ours, dense, atol=1e-4, rtol=1e-4)


def test_parameters_learn_under_autocast_too():
    head = build()
    with torch.autocast("cpu", torch.bfloat16):
        sum(head.losses(maps_of(dtype=torch.bfloat16), batch_of()).values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_precision_of_boxes_and_scores_under_autocast():
    head, maps = build(), maps_of(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        losses = head.losses(maps, batch_of())
        pyramid, regions = head.regions(maps)
        with torch.no_grad():
            found = head.predict(maps, batch_of())
            logits, deltas = head.roi(pyramid, torch.tensor([[[3.0, 4.0, 20.0, 30.0]]] * 2))
    assert pyramid[0].dtype == torch.bfloat16
    assert regions.objectness.dtype == regions.deltas.dtype == logits.dtype == deltas.dtype == torch.float32
    # values that bfloat16 cannot hold: the predictions were computed, not only stored, in float32
    assert (regions.deltas != regions.deltas.bfloat16().float()).float().mean() > 0.9
    assert (found.scores[found.valid] != found.scores[found.valid].bfloat16().float()).any()
    exact = head.losses([m.float() for m in maps], batch_of())
    for key, value in losses.items():
        torch.testing.assert_close(value, exact[key], rtol=0.1, atol=0.02)


def test_predictions_compile_without_a_graph_break():
    head, maps, batch = build(), maps_of(), batch_of()  # losses: tests/engine/test_host_waits.py
    compiled = torch.compile(lambda maps, batch: head.predict(maps, batch), fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(maps, batch).boxes, head.predict(maps, batch).boxes)


def test_a_few_steps_learn_to_find_an_object():
    head, batch = build(nms_threshold=0.3), batch_of()
    torch.manual_seed(0)
    image = F.interpolate(torch.randn(2, 8, 8, 12), size=(32, 48))
    maps = [F.adaptive_avg_pool2d(image, (64 // m.stride, 96 // m.stride)) for m in LEVELS]
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    history = []
    for step in range(60):
        batch.seeds = torch.tensor([2 * step, 2 * step + 1])
        loss = sum(head.losses(maps, batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] / 4
    with torch.no_grad():
        found = head.predict(maps, batch)
    best = found.scores[0, :2]
    assert (best > 0.5).all()
    assert set(found.labels[0, :2].tolist()) == {0, 1}
    for box, label in zip(found.boxes[0, :2], found.labels[0, :2]):
        torch.testing.assert_close(box, batch.targets.boxes.boxes[0, label], atol=6, rtol=0)
    assert found.scores[1].max() < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor_sizes": ((32.0,), (64.0,))}, "anchor_sizes has 2 tuples"),
        ({"anchor_sizes": ((32.0,), (64.0, 65.0), (1.0,), (1.0,), (1.0,))}, "same number of sizes"),
        ({"box_head_norm": "group"}, "four_conv_fc"),
        ({"nms": "hard"}, "nms"),
        ({"rpn_negative_overlap": 0.8}, "rpn_negative_overlap 0.8"),
        ({"positive_fraction": 0.0}, "positive_fraction 0.0"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(options, message):
    with pytest.raises(DensekitError, match=message) as error:
        build(**options)
    assert "\n" not in str(error.value)


def test_a_pyramid_needs_maps_of_stride_four_or_more():
    with pytest.raises(DensekitError, match="stride 4 or more"):
        build(LEVELS[:1])


def test_losses_without_boxes_are_refused():
    batch = dataclasses.replace(batch_of(), targets=None)
    with pytest.raises(DensekitError, match="need boxes"):
        build().losses(maps_of(), batch)
