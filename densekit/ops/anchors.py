"""Anchors: the reference boxes on the grid of each feature map (Ren et al. 2015, section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors around the origin.

    Args:
        sizes: square roots of their areas, in pixels.
        ratios: heights over widths.

    Returns:
        [len(ratios) * len(sizes), 4] float32, ratio by ratio, rounded to whole pixels as in the reference code.
    """
    size = torch.tensor(list(sizes), dtype=torch.float32)
    stretch = torch.tensor(list(ratios), dtype=torch.float32).sqrt()
    widths = ((1 / stretch)[:, None] * size).flatten()
    heights = (stretch[:, None] * size).flatten()
    return (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).round()


def grid_anchors(cells: Tensor, grid: tuple[int, int], strides: tuple[int, int]) -> Tensor:
    """Repeat the anchors of one cell over a feature map.

    Args:
        cells: [A, 4] anchors around the origin; their device is the device of the result.
        grid: (height, width) of the feature map.
        strides: input pixels per cell (down, across).

    Returns:
        [height * width * A, 4] float32: row by row, cell by cell, anchor by anchor.
    """
    y = torch.arange(grid[0], device=cells.device, dtype=torch.float32) * strides[0]
    x = torch.arange(grid[1], device=cells.device, dtype=torch.float32) * strides[1]
    y, x = torch.meshgrid(y, x, indexing="ij")
    corners = torch.stack([x, y, x, y], dim=-1)
    return (corners[:, :, None] + cells).reshape(-1, 4)
