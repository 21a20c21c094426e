"""The anchors of a detector as a part of it: on its device, of the sizes that its options give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from densekit.errors import DensekitError
from densekit.ops.anchors import cell_anchors, grid_anchors
from densekit.ops.kept import ByShape
from densekit.types import Level

Sizes = tuple[tuple[float, ...], ...]


class Anchors(nn.Module):
    """Anchors of all levels of a pyramid, for images of any size.

    Args:
        sizes: in pixels, of each level's anchors.
        ratios: heights over widths, the same on all levels.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float]) -> None:
        super().__init__()
        for level, own in enumerate(sizes):
            self.register_buffer(f"cells_{level}", cell_anchors(own, ratios), persistent=False)
        self.sizes, self.each = len(sizes[0]), len(sizes[0]) * len(ratios)
        self._kept = ByShape()

    def cells(self, level: int) -> Tensor:
        """[k, 4] anchors of one cell of a level, around the origin."""
        return cast(Tensor, getattr(self, f"cells_{level}"))

    def forward(self, pyramid: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, tuple[int, ...]]:
        """Lay the anchors out.

        Args:
            pyramid: one [B, C, H, W] a level, finest first.
            size: (height, width) of the padded images: the anchors of every level cover it.

        Returns:
            [A, 4] level by level, and the number of each level.
        """
        grids = tuple((m.shape[2], m.shape[3]) for m in pyramid)
        return self._kept((grids, size), self.cells(0), lambda: self._lay_out(grids, size))

    def _lay_out(self, grids: Sequence[tuple[int, int]], size: tuple[int, int]) -> tuple[Tensor, tuple[int, ...]]:
        laid = [grid_anchors(self.cells(i), g, (size[0] // g[0], size[1] // g[1])) for i, g in enumerate(grids)]
        return torch.cat(laid), tuple(anchors.shape[0] for anchors in laid)


def check_sizes(sizes: Sizes, levels: Sequence[Level]) -> Sizes:
    """The same sizes.

    Raises:
        DensekitError: not one tuple a level, or not as many sizes on each.
    """
    names = ", ".join(level.name for level in levels)
    if len(sizes) != len(levels):
        raise DensekitError(f"anchor_sizes has {len(sizes)} tuples; give one a level of the neck: {names}")
    if len({len(own) for own in sizes}) > 1 or not sizes[0]:
        raise DensekitError(f"anchor_sizes {sizes}: every level ({names}) needs the same number of sizes, at least one")
    return sizes


def check_overlaps(positive: float, negative: float, *, stage: str = "") -> None:
    """Refuse thresholds by which an anchor or proposal could be both positive and negative.

    Raises:
        DensekitError: not 0 < negative <= positive <= 1; ``stage`` stands before the options' names.
    """
    if not 0 < negative <= positive <= 1:
        raise DensekitError(
            f"{stage}negative_overlap {negative} and {stage}positive_overlap {positive}: "
            f"give 0 < negative <= positive <= 1, or a candidate could be both"
        )
