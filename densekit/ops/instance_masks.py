"""Instance masks cropped to boxes and resampled: what a mask head is to learn of each region.

Each value is RoIAlign's mean of bilinear samples of the object's mask over a cell of the box, about one sample a pixel.
What a pixel counts in it is a product of one weight along x and one along y. So the pixels around a box, a window of
W x W, are read once, and two products of matrices make the patch of them. Nothing of an image's size is made, and what
lies outside of an object's cut is zero.

R regions, B images, N padded objects an image, S side of the patch, W side of the window, n samples a cell and
direction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from densekit.types import InstanceMasks

WINDOW = 256
"""W where the boxes' sizes are not known to the host. A longer side is seen at every second pixel, or third, ...: a
cell of the patch then has nine samples a direction."""

LARGEST_WINDOW = 1024
"""Likewise where they are known."""

PIXELS, PIXELS_ON_GPU = 1 << 22, 1 << 24
"""Of all windows that are looked at together, on a CPU and elsewhere: what bounds the memory, to some 300 MB there."""


def values_are_known(device: torch.device) -> bool:
    """Whether the host may look at values without waiting, so that work may follow them.

    Never inside a graph, nor where tensors have shapes alone.
    """
    if torch.compiler.is_compiling() or device.type != "cpu":
        return False
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is None


@torch.no_grad()
def crop_masks(
    masks: InstanceMasks,
    boxes: Tensor,
    images: Tensor,
    objects: Tensor,
    sizes: Tensor,
    *,
    side: int,
    longest: int,
    aligned: bool = False,
) -> Tensor:
    """What part of each cell of a box an object fills, equal to ``roi_align`` of whole masks as torchvision does it.

    That is so for boxes of up to W - 2 pixels a side. Larger ones are sampled more thinly: cells that the object's edge
    crosses differ by up to 0.06, by 0.01 in the mean.

    Args:
        masks: of the batch.
        boxes: [R, 4] in the pixels of the images.
        images: [R] int64: the image of each box.
        objects: [R] int64 in 0..N-1: the object whose mask is wanted.
        sizes: [B, 2] (height, width) of the images inside their padding.
        side: S.
        longest: side of the largest image.
        aligned: pixel i spans i to i + 1, as boxes have it; else its centre is at i, as torchvision's detectors do.

    Returns:
        [R, S, S] float32 in 0..1.
    """
    if not masks.pixels.numel():
        return boxes.new_zeros(len(boxes), side, side)
    cuts, starts, limits = masks.cuts[images, objects], masks.starts[images, objects], sizes[images]
    length = boxes[:, 2:] - boxes[:, :2]
    boxes = boxes.float() - (0.5 if aligned else 0.0)
    length = (length if aligned else length.clamp(min=1.0)).float()
    order, groups = _groups(length, longest)
    parts = []
    for some, (_, window) in zip(torch.split(order, [size for size, _ in groups]), groups):
        rows, columns = (
            _weights(boxes[some, axis], length[some, axis], limits[some, 1 - axis], side, window) for axis in (1, 0)
        )
        seen = _window(masks.pixels, starts[some], cuts[some], rows[1], columns[1])
        parts.append(rows[0] @ seen @ columns[0].transpose(1, 2))
    return torch.cat(parts)[order.argsort()]


def _groups(length: Tensor, longest: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Regions that are looked at together: their order, and (number, W) of each group."""
    count = len(length)
    if not values_are_known(length.device):
        window = min(WINDOW, longest + 2)
        most = max(1, (PIXELS if length.device.type == "cpu" else PIXELS_ON_GPU) // window**2)
        sizes = [min(most, count - first) for first in range(0, count, most)]
        return torch.arange(count, device=length.device), [(size, window) for size in sizes]
    sides, order = length.amax(1).ceil().clamp(max=LARGEST_WINDOW - 2).sort(descending=True)
    windows, groups, first = [int(s) + 2 for s in sides.tolist()], [], 0
    while first < count:
        size = min(count - first, max(1, PIXELS // windows[first] ** 2))
        groups.append((size, windows[first]))
        first += size
    return order, groups


def _weights(start: Tensor, length: Tensor, limit: Tensor, side: int, window: int) -> tuple[Tensor, Tensor]:
    """What each pixel of the window counts in each cell, along one direction.

    Args:
        start: [R] where the boxes begin.
        length: [R] of the boxes.
        limit: [R] pixels of the images.
        side: S.
        window: W.

    Returns:
        [R, S, W] float32 weights, and [R, W] int64 pixels of the images.
    """
    step = (length / (window - 2)).clamp(min=1.0)[:, None]  # pixels from one place of the window to the next
    bins = length / side
    count = torch.ceil(bins[:, None] / step).clamp(min=1.0)  # [R, 1]
    most = -(-window // side)
    number = torch.arange(most, device=start.device, dtype=torch.float32)
    cell = torch.arange(side, device=start.device, dtype=torch.float32)[:, None]
    at = start[:, None, None] + cell * bins[:, None, None] + ((number + 0.5) * bins[:, None] / count)[:, None]
    limit = limit[:, None, None]
    counts = (number < count)[:, None] & (at >= -1.0) & (at <= limit)  # [R, S, n]
    at = torch.minimum(at.clamp(min=0.0), (limit - 1).float())
    first = at[:, 0, :1].floor()  # [R, 1]
    place = torch.arange(window, device=start.device, dtype=torch.float32)
    distance = ((at - first[..., None]) / step[..., None]).flatten(1)[..., None] - place  # [R, S n, W]
    share = (counts / count[..., None]).flatten(1)[..., None]
    weights = ((1.0 - distance.abs_()).clamp_(min=0.0) * share).view(len(start), side, most, -1).sum(2)
    return weights, (first + (place * step).round()).to(torch.int64)


def _window(pixels: Tensor, starts: Tensor, cuts: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[R, W, W] float32: the masks at the given [R, W] rows and columns of their images."""
    x, y, width, height = cuts[..., None].unbind(1)  # each [R, 1]
    rows, columns = rows - y, columns - x
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    place = (starts[:, None] + rows * width)[:, :, None] + columns[:, None]
    return torch.where(inside, pixels[torch.where(inside, place, 0)], 0).float()
