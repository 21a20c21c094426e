"""Box overlaps, coding and anchors against torchvision's."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from densekit.ops import boxes as box_ops
from densekit.ops.anchors import cell_anchors, grid_anchors


def test_iou_of_a_batch_is_torchvisions_image_by_image(random_boxes):
    a, b = random_boxes(3, 5), random_boxes(3, 7, seed=1)
    for i, overlaps in enumerate(box_ops.iou(a, b)):
        torch.testing.assert_close(overlaps, torchvision.ops.box_iou(a[i], b[i]), atol=1e-6, rtol=0)


def test_two_empty_boxes_pass_no_threshold():
    nothing = torch.zeros(1, 4)
    assert not (box_ops.iou(nothing, nothing) > 0).any()
    assert not (box_ops.iou(nothing, nothing) <= 1).any()


@pytest.mark.parametrize(
    ("kind", "peer"),
    [
        ("giou", torchvision.ops.generalized_box_iou_loss),
        ("diou", torchvision.ops.distance_box_iou_loss),
        ("ciou", torchvision.ops.complete_box_iou_loss),
    ],
)
def test_aligned_overlaps_and_their_gradients_are_torchvisions(kind, peer, random_boxes):
    a, b = random_boxes(40).requires_grad_(), random_boxes(40, seed=1)
    ours = 1 - box_ops.aligned_iou(a, b, kind)
    theirs = peer(a, b)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(loss.sum(), a, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_aligned_overlap_of_equal_boxes_is_one_and_of_empty_ones_finite(random_boxes):
    boxes = random_boxes(6)
    nothing = torch.zeros(6, 4, requires_grad=True)
    for kind in ("iou", "giou", "diou", "ciou"):
        torch.testing.assert_close(box_ops.aligned_iou(boxes, boxes, kind), torch.ones(6))
        overlap = box_ops.aligned_iou(nothing, nothing, kind)
        (gradient,) = torch.autograd.grad(overlap.sum(), nothing)
        assert overlap.isfinite().all()
        assert gradient.isfinite().all()


def test_clip_cuts_each_box_to_its_own_image():
    boxes = torch.tensor([-5.0, -6.0, 50.0, 60.0]).expand(2, 3, 4)
    clipped = box_ops.clip(boxes, torch.tensor([[20, 30], [70, 40]]))
    assert clipped[0, 0].tolist() == [0, 0, 30, 20]
    assert clipped[1, 2].tolist() == [0, 0, 40, 60]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_coding_is_torchvisions(weights, random_boxes):
    boxes, references = random_boxes(50), random_boxes(50, seed=1)
    coder = BoxCoder(weights)
    deltas = box_ops.encode(boxes, references, weights)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, references))
    torch.testing.assert_close(box_ops.decode(deltas, references, weights), boxes, atol=1e-3, rtol=0)
    wild = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)) * 20
    torch.testing.assert_close(box_ops.decode(wild, references, weights), coder.decode_single(wild, references))


def test_zero_deltas_of_low_precision_move_no_corner(random_boxes):
    references = random_boxes(50, size=1000.0)
    boxes = box_ops.decode(torch.zeros(50, 4, dtype=torch.bfloat16), references, (1.0, 1.0, 1.0, 1.0))
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes, references, atol=1e-3, rtol=0)


def test_coding_of_padding_is_finite():
    nothing = torch.zeros(1, 4)
    assert box_ops.encode(nothing, nothing, (1.0, 1.0, 1.0, 1.0)).isfinite().all()


def test_anchors_of_a_map_are_torchvisions():
    sizes, ratios = (32, 45), (0.5, 1.0, 2.0)
    images = ImageList(torch.zeros(1, 3, 96, 130), [(96, 130)])
    (expected,) = AnchorGenerator((sizes,), (ratios,))(images, [torch.zeros(1, 8, 12, 16)])
    assert torch.equal(grid_anchors(cell_anchors(sizes, ratios), (12, 16), (96 // 12, 130 // 16)), expected)
