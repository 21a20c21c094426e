"""Behaviour of the mask branch: options, objects without masks, empty images, constant shapes, memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from densekit.heads.faster_rcnn import FasterRCNN
from densekit.heads.mask_rcnn import MaskRCNN, mask, mask_rcnn
from densekit.ops import instance_masks
from densekit.packed import packed
from densekit.registry import HEADS, Registry
from densekit.types import Batch, BoxTargets, DensekitError, InstanceMasks, Targets
from tests.heads.test_faster_rcnn import LEVELS, LOSSES, SMALL, maps_of
from tests.heads.torchvision_detectors import ellipses

SMALL_MASKS = {**SMALL, "mask_convs": 2, "mask_channels": 8, "mask_pool_size": 4}


def build(**options) -> MaskRCNN:
    torch.manual_seed(0)
    head = HEADS.build("mask_rcnn", SMALL_MASKS | options, LEVELS, num_classes=3)
    with torch.no_grad():  # spread scores and masks, so that some pass the threshold
        head.roi.scores.weight.mul_(100)
        head.rpn.head.objectness.weight.mul_(30)
        head.mask.logits.weight.mul_(300)
    return head


def batch_of(count: int = 2) -> Batch:
    """Two images: the first with two objects, the second with none."""
    boxes = torch.zeros(2, count, 4)
    boxes[0, :2] = torch.tensor([[5.0, 5.0, 40.0, 44.0], [50.0, 20.0, 90.0, 60.0]])
    valid = boxes.sum(-1) > 0
    labels = torch.arange(count).expand(2, -1) % 3
    sizes = torch.tensor([[60, 96], [64, 80]])
    targets = Targets(boxes=BoxTargets(boxes, labels, torch.zeros_like(valid), valid, ellipses(boxes, valid)))
    return Batch(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), sizes, sizes, [1, 2], torch.tensor([11, 12]), targets)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Constant shapes, also on the CPU."""
    for module in (instance_masks, mask):
        monkeypatch.setattr(module, "values_are_known", lambda _: False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_norm": "batch", "class_agnostic_masks": True},
        {"mask_norm": "group", "mask_convs": 0, "mask_pool_size": 3, "aligned": True, "neck": "c5"},
        {"mask_norm": "frozen", "max_detections": 7, "roi_align": "kernel", "nms": "soft_linear"},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "defaults",
)
def test_options_train_every_parameter_and_give_a_mask_of_each_detection(options):
    head, batch = build(**options), batch_of()
    losses = head.losses(maps_of(), batch)
    assert set(losses) == LOSSES | {"mask"}
    assert all(loss.dtype == torch.float32 and loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        found = head.predict(maps_of(), batch)
    side = 2 * head.mask.pool_size
    assert found.masks.shape == (*found.valid.shape, side, side)
    assert found.valid.any()
    assert (found.masks[found.valid] > 0).all()
    assert found.masks.max() < 1
    assert (found.masks[~found.valid] == 0).all()


def test_its_options_are_those_of_faster_rcnn_and_of_the_masks():
    options, below = HEADS.options("mask_rcnn"), HEADS.options("faster_rcnn")
    assert options.items() >= below.items()
    assert set(options) - set(below) == {
        *("mask_convs", "mask_channels", "mask_norm", "class_agnostic_masks", "mask_pool_size", "mask_weight")
    }
    with pytest.raises(
        DensekitError, match="mask_conv: head 'mask_rcnn' has no such option; did you mean 'mask_convs'"
    ):
        build(mask_conv=3)
    head = mask_rcnn(LEVELS, num_classes=4, channels=16, samples=64, mask_convs=1)
    assert isinstance(head, FasterRCNN)
    assert head.mask.most == 16
    assert head.mask.logits.out_channels == 4


def test_a_builder_cannot_take_a_name_or_an_option_of_what_it_extends():
    registry = Registry("head", "densekit.heads")
    registry._scanned = True

    @registry.register
    def plain(levels, *, width: int = 1) -> int:
        return width

    @registry.extend(plain)
    def more(part: int, *, height: int = 2) -> tuple[int, int]:
        """Twice."""
        return part, height

    assert registry.build("more", {"width": 3}, ()) == (3, 2)
    with pytest.raises(DensekitError, match="option 'width' of 'wide' is one of 'plain' already"):
        registry.extend(plain)(_wide)


def _wide(part: int, *, width: int) -> int:
    return part * width


_wide.__name__ = "wide"


@pytest.mark.parametrize("columns", [0, 3])
def test_batches_without_objects_train_with_finite_losses_and_gradients(columns):
    head, batch = build(mask_norm="batch"), batch_of(2)
    boxes = batch.targets.boxes
    boxes.valid[:] = False
    if not columns:
        masks = InstanceMasks(boxes.masks.pixels[:0], boxes.masks.starts[:, :0], boxes.masks.cuts[:, :0])
        names = ("boxes", "labels", "crowd", "valid")
        batch.targets.boxes = BoxTargets(*(getattr(boxes, name)[:, :0] for name in names), masks)
    losses = head.losses(maps_of(), batch)
    assert losses["mask"] == losses["box"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    with torch.no_grad():
        head.roi.score_threshold = 1.0
        assert head.predict(maps_of(), batch).masks.abs().max() == 0


def test_an_object_without_a_mask_has_no_part_in_the_loss():
    head, batch = build(), batch_of()
    masks, crowd = batch.targets.boxes.masks, dataclasses.replace(batch.targets.boxes)
    both = head.losses(maps_of(), batch)
    masks.cuts[0, 1] = 0
    one = head.losses(maps_of(), batch)
    assert one["mask"] != both["mask"]
    assert all(one[name] == both[name] for name in LOSSES)
    masks.pixels[masks.starts[0, 1] :] = 1 - masks.pixels[masks.starts[0, 1] :]  # nobody looks at it
    assert head.losses(maps_of(), batch)["mask"] == one["mask"]
    masks.cuts[:] = 0
    assert head.losses(maps_of(), batch)["mask"] == 0
    batch.targets.boxes = dataclasses.replace(crowd, crowd=crowd.valid)
    assert head.losses(maps_of(), batch)["mask"] == 0


@pytest.mark.parametrize("options", [{}, {"class_agnostic_masks": True, "mask_norm": "group"}])
def test_constant_shapes_give_the_same_losses_gradients_and_masks(options, request):
    head, results = build(**options), []
    for _ in range(2):
        head.zero_grad()
        losses = head.losses(maps_of(), batch_of())
        sum(losses.values()).backward()
        with torch.no_grad():
            found = head.predict(maps_of(), batch_of())
        results.append([losses, [p.grad.clone() for p in head.parameters()], found.boxes, found.masks])
        request.getfixturevalue("as_on_a_gpu")
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_batch_norms_see_objects_alone_whatever_the_shapes(as_on_a_gpu):
    head, batch = build(mask_norm="batch", mask_convs=1, samples=64), batch_of()
    seen = []
    head.mask.convs.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    head.losses(maps_of(), batch)
    regions = seen[0].unflatten(0, (2, -1))
    count = len(regions[0].unique(dim=0))
    assert 2 <= count < len(regions[0])  # the first image's objects, over and over
    assert len(regions[1].unique(dim=0)) == 1  # the second has none


def test_masks_are_looked_at_in_groups(monkeypatch):
    head, batch = build(), batch_of()
    with torch.no_grad():
        whole = head.predict(maps_of(), batch).masks
        monkeypatch.setattr(mask, "TOGETHER", 3)
        torch.testing.assert_close(head.predict(maps_of(), batch).masks, whole)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_a_packed_branch_gives_the_same_masks(dtype, atol):
    head, batch = build(mask_norm="batch", mask_channels=16).eval(), batch_of()
    with torch.no_grad():
        pyramid, found = head.neck(maps_of()), head.predict(maps_of(), batch)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            masks = packed(head.mask, dtype).predict(pyramid, found)
    assert masks.dtype == torch.float32
    torch.testing.assert_close(masks, found.masks, atol=atol, rtol=0)


def test_masks_of_detections_compile_without_a_graph_break():
    head, batch = build(), batch_of()  # losses: tests/engine/test_host_waits.py
    with torch.no_grad():
        pyramid, found = head.neck(maps_of()), head.predict(maps_of(), batch)
        compiled = torch.compile(head.mask.predict, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(pyramid, found), found.masks)


def test_a_few_steps_learn_the_shapes_of_objects():
    head, batch = build(mask_channels=32), batch_of()
    pyramid, regions = head.regions(maps_of())
    pyramid = [level.detach() for level in pyramid]
    targets, optimizer = batch.targets.boxes, torch.optim.Adam(head.mask.parameters(), 1e-2)
    for step in range(60):
        batch.seeds = torch.tensor([2 * step, 2 * step + 1])
        _, samples = head.samples(regions, targets, batch)
        loss = head.mask.losses(pyramid, samples, targets, batch.sizes)["mask"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    with torch.no_grad():
        logits = head.mask(pyramid, targets.boxes[0], torch.zeros(2, dtype=torch.int64), targets.labels[0])
    place = (torch.arange(8) + 0.5) / 4 - 1
    ellipse = place[:, None] ** 2 + place**2 < 1
    assert ((logits > 0) == ellipse).float().mean() > 0.85


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_convs": -1}, "mask_convs -1: give 0 or more"),
        ({"mask_pool_size": 0}, "mask_pool_size 0: give 1 or more"),
        ({"mask_norm": "layer"}, "mask_norm"),
        ({"box_head_norm": "group"}, "four_conv_fc"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(options, message):
    with pytest.raises(DensekitError, match=message) as error:
        build(**options)
    assert "\n" not in str(error.value)


def test_losses_without_masks_are_refused():
    batch = batch_of()
    batch.targets.boxes.masks = None
    with pytest.raises(DensekitError, match="need a mask of each object"):
        build().losses(maps_of(), batch)
