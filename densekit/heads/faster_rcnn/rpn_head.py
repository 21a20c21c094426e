"""The small network of the first stage: what it says of all anchors, and, to learn from, of a few.

The losses look at a few hundred anchors an image out of tens of thousands. So the predictions for all of them (which
make the proposals, and take no gradient) are computed once without a graph, and those of the sampled anchors once more
with one, from the few cells that they depend on: the same numbers and gradients, and neither a backward over all cells
nor their activations kept for it.

B images, C channels, S sampled anchors an image, A anchors an image, k anchors a cell, r 3 x 3 convolutions: a
prediction depends on the (2 r + 1) x (2 r + 1) cells around its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.layers import PackedConv2d
from densekit.ops import winograd
from densekit.ops.kept import ByShape
from densekit.precision import in_float32


class RPNHead(nn.Module):
    """3 x 3 convolutions, then objectness and box deltas of the anchors of each cell, shared by all levels.

    The two predictions run in float32 under any autocast: coarse deltas move boxes by pixels, coarse scores tie.

    Args:
        channels: C.
        anchors: k.
        convs: r.
    """

    float32_parts = ("objectness", "deltas")

    def __init__(self, channels: int, *, anchors: int, convs: int = 1) -> None:
        super().__init__()
        self.anchors = anchors
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs))
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.deltas = nn.Conv2d(channels, anchors * 4, 1)
        for conv in (m for m in self.modules() if isinstance(m, nn.Conv2d)):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.constant_(_bias(conv), 0.0)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict for all anchors, without gradient.

        Args:
            pyramid: one [B, C, H, W] a level, finest first.

        Returns:
            [B, A] objectness logits and [B, A, 4] deltas, level by level, cell by cell; float32.
        """
        maps = [x.detach() for x in pyramid]
        # Detached weights instead of no_grad: autocast would keep their cast, made without a graph, for ``at``.
        for conv in self._layers():
            if isinstance(conv, PackedConv2d):
                maps = [conv(x, relu=True) for x in maps]
                continue
            weight, bias = conv.weight.detach(), _bias(conv).detach()
            maps = [F.relu(winograd.convolution(x, weight, bias)) for x in maps]
        cells = torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps], dim=1)
        with torch.no_grad():
            predicted = self._predict(cells)  # [B, cells, k, 5]
        return predicted[..., 0].flatten(1), predicted[..., 1:].flatten(1, 2)

    def at(self, pyramid: Sequence[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Predict for some anchors, with gradients to the weights and the pyramid.

        Args:
            pyramid: one [B, C, H, W] a level, finest first.
            chosen: [B, S] int64 in 0..A-1, in the order of ``forward``.

        Returns:
            [B, S] objectness logits and [B, S, 4] deltas; float32.
        """
        cell = chosen // self.anchors
        reach = len(self.convs)
        rows, inside = _neighbours([(x.shape[2], x.shape[3]) for x in pyramid], cell, reach)
        channels = pyramid[0].shape[1]
        cells = [x.permute(0, 2, 3, 1).reshape(-1, channels) for x in pyramid]
        table = torch.cat([*cells, cells[0].new_zeros(1, channels)])  # the last row is what lies outside
        x = F.embedding(rows % len(table), table, padding_idx=len(table) - 1)  # [B * S, 2 r + 1, 2 r + 1, C]
        for conv in self._layers():
            # A product, not a convolution: those are slow for many patches of a few cells.
            windows = x.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)  # [B * S, side, side, 9 C]
            inside = inside[:, 1:-1, 1:-1]
            x = F.relu(F.linear(windows, conv.weight.flatten(1), conv.bias)) * inside
        predicted = self._predict(x.flatten(1)).reshape(*chosen.shape, -1, 5)  # [B, S, k, 5]
        which = (chosen % self.anchors)[..., None, None].expand(-1, -1, 1, 5)
        own = predicted.gather(2, which)[:, :, 0]
        return own[..., 0], own[..., 1:]

    def _layers(self) -> list[nn.Conv2d | PackedConv2d]:
        return [conv for conv in self.convs if isinstance(conv, nn.Conv2d | PackedConv2d)]

    def _predict(self, cells: Tensor) -> Tensor:
        """[..., C] -> [..., k, 5] float32: objectness and deltas as one product."""
        weights = [self.objectness.weight.flatten(1)[:, None], self.deltas.weight.reshape(self.anchors, 4, -1)]
        biases = [_bias(self.objectness)[:, None], _bias(self.deltas).reshape(self.anchors, 4)]
        with in_float32(cells.device):
            weight, bias = torch.cat(weights, dim=1).flatten(0, 1), torch.cat(biases, dim=1).flatten()
            predicted = F.linear(cells.float(), weight.float(), bias.float())
        return predicted.reshape(*cells.shape[:-1], self.anchors, 5)


def _bias(conv: nn.Conv2d | PackedConv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _neighbours(shapes: Sequence[tuple[int, int]], cell: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Rows of the table of all cells (level by level, image by image, row by row) around some cells.

    Args:
        shapes: (H, W) of each level.
        cell: [B, S] int64: cells of each image, level by level.
        reach: r.

    Returns:
        [B * S, 2 r + 1, 2 r + 1] rows, -1 outside the map, and [B * S, 2 r + 1, 2 r + 1, 1] bool: inside.
    """
    images = cell.shape[0]
    table = _CELLS((tuple(shapes), images), cell, lambda: _cells(shapes, images, cell.device))
    y, x, heights, widths, level = table[cell][..., None, None].unbind(2)  # each [B, S, 1, 1]
    image = torch.arange(images, device=cell.device)[:, None, None, None]
    step = torch.arange(-reach, reach + 1, device=cell.device)
    y, x = y + step[:, None], x + step[None, :]
    inside = (y >= 0) & (y < heights) & (x >= 0) & (x < widths)
    rows = torch.where(inside, level + (image * heights + y) * widths + x, -1)
    return rows.flatten(0, 1), inside.flatten(0, 1)[..., None]


_CELLS = ByShape()


def _cells(shapes: Sequence[tuple[int, int]], images: int, device: torch.device) -> Tensor:
    """[cells, 5] int64: row and column of each cell of an image, size of its level, and where that begins in all."""
    parts, first = [], 0
    for height, width in shapes:
        place = torch.arange(height * width, device=device)
        sides = [torch.full_like(place, value) for value in (height, width, first)]
        parts.append(torch.stack([place // width, place % width, *sides], dim=-1))
        first += images * height * width
    return torch.cat(parts)
