"""Losses against torch's own, their masks, and their counts over ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision

from densekit.ops import boxes as box_ops
from densekit.ops.losses import binary_loss, box_loss, class_loss, mean_over_ranks

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def case(random_boxes):
    deltas = torch.randn(30, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    return deltas, random_boxes(30), random_boxes(30, seed=1), torch.arange(30) < 20


@pytest.mark.parametrize(("kind", "beta"), [("smooth_l1", 1 / 9), ("l1", 0.0)])
def test_losses_of_deltas_are_torchs_on_the_masked_boxes(kind, beta, random_boxes):
    deltas, boxes, references, mask = case(random_boxes)
    target = box_ops.encode(boxes, references, WEIGHTS)
    expected = F.smooth_l1_loss(deltas[mask], target[mask], beta=beta, reduction="sum")
    torch.testing.assert_close(box_loss(deltas, boxes, references, mask, kind=kind, weights=WEIGHTS), expected)


@pytest.mark.parametrize(
    ("kind", "peer"),
    [
        ("giou", torchvision.ops.generalized_box_iou_loss),
        ("diou", torchvision.ops.distance_box_iou_loss),
        ("ciou", torchvision.ops.complete_box_iou_loss),
    ],
)
def test_losses_of_overlaps_are_torchvisions_on_the_masked_boxes(kind, peer, random_boxes):
    deltas, boxes, references, mask = case(random_boxes)
    decoded = box_ops.decode(deltas, references, WEIGHTS)
    expected = peer(decoded[mask], boxes[mask], reduction="sum")
    torch.testing.assert_close(
        box_loss(deltas, boxes, references, mask, kind=kind, weights=WEIGHTS), expected, atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou", "diou", "ciou"])
def test_what_is_masked_may_hold_anything(kind, random_boxes):
    deltas, boxes, references, mask = case(random_boxes)
    boxes[20:], references[20:25] = float("nan"), 0.0
    deltas.data[25:] = float("inf")
    loss = box_loss(deltas, boxes, references, mask, kind=kind, weights=WEIGHTS)
    (gradient,) = torch.autograd.grad(loss, deltas)
    assert loss > 0
    assert gradient.isfinite().all()
    assert (gradient[20:] == 0).all()
    assert (gradient[:20] != 0).any(1).all()


def test_class_losses_are_torchs_on_the_masked_rows():
    logits = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(18).reshape(2, 9) % 5
    mask = labels != 3
    expected = F.cross_entropy(logits[mask], labels[mask], reduction="none")
    torch.testing.assert_close(class_loss(logits, labels, mask, kind="cross_entropy"), expected.sum())
    focal = (1 - torch.exp(-expected)) ** 1.5 * expected
    torch.testing.assert_close(class_loss(logits, labels, mask, kind="focal", gamma=1.5), focal.sum())


def test_binary_loss_is_torchs_on_the_masked_rows():
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    labels, mask = logits > 0.3, torch.arange(18).reshape(2, 9) % 3 > 0
    expected = F.binary_cross_entropy_with_logits(logits[mask], labels[mask].float(), reduction="sum")
    torch.testing.assert_close(binary_loss(logits, labels, mask), expected)


def test_a_count_of_nothing_divides_by_one():
    assert mean_over_ranks(torch.tensor(0)).item() == 1.0
    assert mean_over_ranks(torch.tensor(7)).item() == 7.0


def test_counts_are_averaged_over_ranks_while_training_only(monkeypatch):
    """Two ranks, seen from the one that counts 4 while the other counts 0."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda count: count.add_(0.0))
    count = torch.tensor(4)
    assert mean_over_ranks(count).item() == 2.0
    assert count.item() == 4
    with torch.no_grad():
        assert mean_over_ranks(count).item() == 4.0
