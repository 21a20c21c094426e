"""Crops of instance masks against torchvision's RoIAlign of whole masks, which its Mask R-CNN learns from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import roi_align

from densekit.ops import instance_masks
from densekit.ops.instance_masks import crop_masks
from densekit.types import InstanceMasks

SIZES = ((60, 90), (88, 64))
SIDE = 28


@pytest.fixture(params=[True, False], ids=["known", "constant shapes"])
def known(request, monkeypatch):
    """Whether the host may look at values, as on the CPU, or not, as on a GPU."""
    monkeypatch.setattr(instance_masks, "values_are_known", lambda _: request.param)


def blobs(sizes=SIZES, count: int = 4) -> list[np.ndarray]:
    """For each image [count, H, W] masks, one of them over all of it, one without a pixel."""
    random = np.random.default_rng(0)
    masks = []
    for height, width in sizes:
        y, x = np.mgrid[:height, :width]
        some = np.zeros((count, height, width), np.uint8)
        for mask in some[:-1]:
            cy, cx, ry, rx = random.uniform(0, 1, 4) * [height, width, height / 3, width / 3]
            mask[...] = ((y - cy) / (ry + 2)) ** 2 + ((x - cx) / (rx + 2)) ** 2 < 1 + random.normal(0, 0.2, mask.shape)
        some[0] = 1
        masks.append(some)
    return masks


def cut(masks: list[np.ndarray]) -> InstanceMasks:
    """The cuts of whole masks, one after another."""
    pixels, starts, cuts, place = [], [], [], 0
    for mask in (one for some in masks for one in some):
        y, x = np.nonzero(mask)
        box = (x.min(), y.min(), x.max() + 1, y.max() + 1) if len(x) else (0, 0, 0, 0)
        pixels.append(mask[box[1] : box[3], box[0] : box[2]].reshape(-1))
        starts.append(place)
        cuts.append((box[0], box[1], box[2] - box[0], box[3] - box[1]))
        place += len(pixels[-1])
    shape = (len(masks), len(masks[0]))
    whole = np.concatenate(pixels) if pixels else np.zeros(0, np.uint8)
    return InstanceMasks(
        torch.from_numpy(whole), torch.tensor(starts).view(shape), torch.tensor(np.array(cuts)).view(*shape, 4)
    )


def regions(sizes=SIZES, count: int = 4, each: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """[R, 4] boxes of all sizes inside their images, [R] images and [R] objects."""
    generator = torch.Generator().manual_seed(3)
    limit = torch.tensor(sizes).flip(1).repeat_interleave(each, 0).float()
    corners = torch.rand(len(limit), 2, 2, generator=generator).sort(1).values * limit[:, None]
    boxes = corners.flatten(1)
    boxes[0] = torch.tensor([0.0, 0.0, *limit[0]])
    boxes[1] = torch.tensor([10.25, 20.5, 10.75, 21.0])  # less than a pixel
    boxes[2] = torch.tensor([*(limit[0] - 1), *limit[0]])  # the last pixel
    images = torch.arange(len(sizes)).repeat_interleave(each)
    return boxes, images, torch.arange(len(images)) % count


def wanted(masks, boxes, images, objects, **options) -> Tensor:
    found = torch.empty(len(boxes), SIDE, SIDE)
    for image, some in enumerate(masks):
        here = images == image
        rois = torch.cat([objects[here][:, None].float(), boxes[here]], 1)
        found[here] = roi_align(torch.from_numpy(some)[:, None].float(), rois, SIDE, 1.0, **options)[:, 0]
    return found


@pytest.mark.parametrize("aligned", [False, True])
def test_crops_are_those_of_roi_align_over_whole_masks(known, aligned):
    masks, (boxes, images, objects) = blobs(), regions()
    found = crop_masks(cut(masks), boxes, images, objects, torch.tensor(SIZES), side=SIDE, longest=96, aligned=aligned)
    expected = wanted(masks, boxes, images, objects, aligned=aligned)
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    if not aligned:
        own = images == 1
        theirs = project_masks_on_boxes(torch.from_numpy(masks[1]), boxes[own], objects[own], SIDE)
        torch.testing.assert_close(found[own], theirs, atol=2e-5, rtol=0)


def test_regions_in_several_groups_are_those_of_one(known, monkeypatch):
    masks, given = cut(blobs()), regions()
    options = {"side": 14, "longest": 96}
    whole = crop_masks(masks, *given, torch.tensor(SIZES), **options)
    monkeypatch.setattr(instance_masks, "PIXELS", 20_000)
    torch.testing.assert_close(crop_masks(masks, *given, torch.tensor(SIZES), **options), whole)


def test_boxes_larger_than_the_window_are_sampled_more_thinly(known, monkeypatch):
    sizes = ((400, 500),)
    masks, (boxes, images, objects) = blobs(sizes), regions(sizes)
    for name in ("WINDOW", "LARGEST_WINDOW"):
        monkeypatch.setattr(instance_masks, name, 256)
    found = crop_masks(cut(masks), boxes, images, objects, torch.tensor(sizes), side=SIDE, longest=512)
    expected = wanted(masks, boxes, images, objects)
    large = (boxes[:, 2:] - boxes[:, :2]).amax(1) > 254
    assert 5 < large.sum() < 30
    torch.testing.assert_close(found[~large], expected[~large], atol=2e-5, rtol=0)
    difference = (found - expected)[large].abs()
    assert difference.max() < 0.5
    assert difference.mean() < 0.01


def test_boxes_beyond_the_image_see_nothing_there(known):
    masks = blobs()
    boxes = torch.tensor([[-30.0, -10.0, 20.0, 30.0], [70.0, 40.0, 140.0, 99.0], [200.0, 200.0, 240.0, 220.0]])
    images, objects = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    found = crop_masks(cut(masks), boxes, images, objects, torch.tensor(SIZES), side=SIDE, longest=96)
    torch.testing.assert_close(found, wanted(masks, boxes, images, objects), atol=2e-5, rtol=0)
    assert found[2].abs().max() == 0


def test_objects_without_a_pixel_and_batches_without_an_object_give_zeros(known):
    masks, (boxes, images, _) = blobs(), regions()
    last = torch.full_like(images, 3)
    assert crop_masks(cut(masks), boxes, images, last, torch.tensor(SIZES), side=8, longest=96).abs().max() == 0
    nothing = InstanceMasks(torch.zeros(0, dtype=torch.uint8), torch.zeros(2, 1).long(), torch.zeros(2, 1, 4).long())
    none = torch.zeros_like(images)
    found = crop_masks(nothing, boxes, images, none, torch.tensor(SIZES), side=8, longest=96)
    assert found.shape == (80, 8, 8)
    assert found.abs().max() == 0
