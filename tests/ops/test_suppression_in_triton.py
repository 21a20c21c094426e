"""Suppression's kernels for GPUs against torchvision's: on a GPU or, without one, under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torchvision

from densekit.ops import nms
from densekit.ops.cuda import suppression
from tests.ops.kernels import DEVICE, runs_kernels

pytestmark = [
    runs_kernels,
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide"),  # empty boxes, under the interpreter
]


def kept_by(boxes, valid, threshold, groups=None, parts=None):
    values = [value if value is None else value.to(DEVICE) for value in (boxes, valid, groups)]
    return nms.greedy_nms(*values[:2], threshold, groups=values[2], parts=parts, method="triton").cpu()


def kept_by_torchvision(boxes, valid, threshold, groups):
    """One image's, in the order of its boxes."""
    real = valid.nonzero()[:, 0]
    scores = torch.arange(len(real), 0, -1).float()
    kept = torchvision.ops.batched_nms(boxes[real], scores, groups[real], threshold)
    return real[kept.sort().values]


def test_a_chain_longer_than_a_word_is_followed_to_its_end():
    left = torch.arange(150.0) * 4  # each overlaps the next by 6 / 14, and the one after that by 2 / 18
    boxes = torch.stack([left, left * 0, left + 10, left * 0 + 10], dim=-1)
    kept = kept_by(boxes[None], torch.ones(1, 150, dtype=torch.bool), 0.3)
    assert kept[0].tolist() == [True, False] * 75
    every = torch.ones(150, dtype=torch.bool)
    assert torch.equal(kept[0].nonzero()[:, 0], kept_by_torchvision(boxes, every, 0.3, every * 0))


def test_boxes_of_images_runs_and_groups_are_kept_as_torchvision_does(random_boxes):
    parts = [130, 5, 64]
    boxes, levels = random_boxes(2, 199), torch.arange(3).repeat_interleave(torch.tensor(parts))
    groups = torch.arange(398).reshape(2, 199) % 3
    valid = torch.rand(2, 199, generator=torch.Generator().manual_seed(0)) > 0.2
    valid[1, 130:135] = False  # a level without a box
    kept = kept_by(boxes, valid, 0.3, groups, parts)
    for found, *image in zip(kept, boxes, valid, [0.3] * 2, levels * 3 + groups):
        assert torch.equal(found.nonzero()[:, 0], kept_by_torchvision(*image))
        assert 20 < found.sum() < 130  # of 160


def test_no_box_keeps_none():
    assert kept_by(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), 0.5).shape == (2, 0)


def test_the_trial_compares_with_a_reference_that_is_torchvisions():
    assert suppression.agrees(DEVICE)
    left = torch.rand(40, generator=torch.Generator().manual_seed(1)) * 90
    boxes, every = torch.stack([left, left * 0, left + 10, left * 0 + 10], -1), torch.ones(40, dtype=torch.bool)
    found = suppression.reference(boxes[None], every[None], None, [40], 0.3)[0]
    assert torch.equal(found.nonzero()[:, 0], kept_by_torchvision(boxes, every, 0.3, every * 0))


def test_a_gpu_takes_the_kernels_where_they_work_and_for_runs_that_fit(monkeypatch):
    for works, method in ((True, "triton"), (False, "tiles")):
        monkeypatch.setattr(suppression, "works", lambda _, works=works: works)
        assert nms.best_method(torch.device("cuda")) == method
        assert nms.best_method(torch.device("cpu")) == "kernel"
    monkeypatch.setattr(suppression, "MOST_BOXES", 2)
    monkeypatch.setattr(suppression, "suppress", None)
    boxes = torch.tensor([[[0.0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 6, 6]]])
    assert kept_by(boxes, torch.ones(1, 3, dtype=torch.bool), 0.5).tolist() == [[True, False, True]]


def test_no_value_is_needed_for_the_shape():
    boxes, valid = torch.zeros(2, 20, 4, device="meta"), torch.ones(2, 20, dtype=torch.bool, device="meta")
    kept = nms.greedy_nms(boxes, valid, 0.3, parts=[12, 8], method="triton")
    assert (kept.shape, kept.dtype, kept.device.type) == ((2, 20), torch.bool, "meta")
