"""Multi-level RoIAlign against torchvision's, forward and backward, both ways of computing it."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torchvision.ops.poolers import LevelMapper

from densekit.ops.roi_align import box_levels, roi_align

STRIDES = (4, 8, 16, 32)


def pyramid(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 96 // s, 128 // s) for s in STRIDES]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def boxes_of_all_sizes() -> torch.Tensor:
    """[2, 40, 4]: small to larger than the canonical size, and at every edge of a 96 x 128 image."""
    generator = torch.Generator().manual_seed(1)
    center = torch.rand(2, 40, 2, generator=generator) * torch.tensor([128.0, 96.0])
    half = torch.exp(torch.rand(2, 40, 2, generator=generator) * 6 - 1) / 2
    limit = torch.tensor([128.0, 96.0])
    boxes = torch.cat([(center - half).clamp(min=0), torch.minimum(center + half, limit)], dim=-1)
    boxes[0, 0] = torch.tensor([0.0, 0.0, 128.0, 96.0])
    boxes[0, 1] = torch.tensor([127.5, 95.5, 128.0, 96.0])  # less than a cell, at the corner
    boxes[0, 2] = torch.tensor([0.0, 0.0, 0.0, 0.0])  # padding
    boxes[0, 3] = torch.tensor([-30.0, -30.0, 20.0, 20.0])  # partly outside
    return boxes


def theirs(maps, boxes):
    pool = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=3, sampling_ratio=2)
    return pool({str(i): m for i, m in enumerate(maps)}, list(boxes), [(96, 128)] * 2)


@pytest.mark.parametrize("method", ["table", "kernel"])
def test_values_and_gradients_are_torchvisions(method):
    maps, boxes = pyramid(), boxes_of_all_sizes()
    ours = roi_align(maps, boxes, STRIDES, output_size=3, method=method)
    expected = theirs(maps, boxes)
    torch.testing.assert_close(ours, expected, atol=3e-5, rtol=0)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    for mine, their in zip(
        torch.autograd.grad((ours * weights).sum(), maps), torch.autograd.grad((expected * weights).sum(), maps)
    ):
        torch.testing.assert_close(mine, their, atol=3e-5, rtol=0)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [1, 3])
@pytest.mark.parametrize("method", ["table", "kernel"])
def test_options_of_a_single_level_are_torchvisions(method, sampling_ratio, aligned):
    maps, boxes = pyramid()[2:3], boxes_of_all_sizes()
    options = {"sampling_ratio": sampling_ratio, "aligned": aligned}
    ours = roi_align(maps, boxes, [16], output_size=5, method=method, **options)
    expected = torchvision.ops.roi_align(maps[0], list(boxes), 5, 1 / 16, **options)
    torch.testing.assert_close(ours, expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("method", ["table", "kernel"])
def test_bfloat16_maps_keep_exact_coordinates(method):
    maps, boxes = pyramid(), boxes_of_all_sizes()
    coarse = [m.detach().bfloat16().requires_grad_() for m in maps]
    ours = roi_align(coarse, boxes, STRIDES, method=method)
    exact = roi_align([m.float() for m in coarse], boxes, STRIDES, method=method)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exact, atol=2e-2, rtol=1e-2)
    for gradient, level in zip(torch.autograd.grad(ours.float().sum(), coarse), coarse):
        assert gradient.dtype == level.dtype
        assert gradient.isfinite().all()


def test_levels_are_torchvisions_and_stay_within_a_dilated_pyramid():
    boxes = boxes_of_all_sizes() * 8
    assert torch.equal(box_levels(boxes, STRIDES).flatten(), LevelMapper(2, 5)(list(boxes)))
    assert box_levels(boxes, STRIDES).unique().tolist() == [0, 1, 2, 3]
    assert box_levels(boxes, (4, 8, 16, 16)).max() <= 3
    assert box_levels(boxes, (16,)).max() == 0
