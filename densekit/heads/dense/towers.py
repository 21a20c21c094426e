"""What one-stage detectors share: towers of convolutions over all levels, and the best of what they say.

B images, C channels, A places an image (anchors or points, all levels), k places a cell, K classes, M candidates an
image, n numbers a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from densekit.layers import ConvNormAct, Norm
from densekit.ops.nms import best_of
from densekit.weight_gradients import Conv2d


class Tower(nn.Sequential):
    """3 x 3 convolutions, the same for every level: [B, C, H, W] -> [B, C, H, W].

    Args:
        channels: C.
        convs: how many.
        norm: after each.
        bias: whether they have biases beside their norms.
    """

    def __init__(self, channels: int, *, convs: int, norm: Norm | None, bias: bool) -> None:
        super().__init__(*(ConvNormAct(channels, channels, norm=norm, bias=bias) for _ in range(convs)))
        for conv in (m for m in self.modules() if isinstance(m, nn.Conv2d)):
            nn.init.normal_(conv.weight, std=0.01)


def output(channels: int, numbers: int, bias: float = 0.0) -> Conv2d:
    """The last convolution of a tower: C channels to the numbers of each cell."""
    conv = Conv2d(channels, numbers, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
    return conv


def by_place(maps: Sequence[Tensor], numbers: int) -> Tensor:
    """One [B, k * n, H, W] a level -> [B, A, n] float32: level by level, row by row, cell by cell, place by place."""
    return torch.cat([m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, numbers) for m in maps], dim=1).float()


class Candidates(NamedTuple):
    """The best pairs of a place and a class, best first.

    Attributes:
        scores: [B, M]; 0 for those that are none.
        places: [B, M] int64 in 0..A-1.
        labels: [B, M] int64.
    """

    scores: Tensor
    places: Tensor
    labels: Tensor


@torch.no_grad()
def best_candidates(
    logits: Tensor, per_level: Sequence[int], *, count: int, threshold: float, quality: Tensor | None = None
) -> Candidates:
    """The best ``count`` pairs of each level whose score passes ``threshold``.

    The best pairs of a level are among its ``count`` best places, so that no score but theirs is computed for every
    class.

    Args:
        logits: [B, A, K].
        per_level: number of places of each level.
        count: most candidates of a level.
        threshold: scores up to this are none.
        quality: [B, A] logits of how good a place is: a score is then the geometric mean of the two probabilities (as
            in torchvision; Tian et al. 2019, section 3.3, take the product).
    """
    best = logits.amax(-1)
    scores = best if quality is None else _score(best, quality)
    found, first = [], 0
    for number in per_level:
        values, place = best_of(scores.narrow(1, first, number), count)
        found.append(_pairs(logits, quality, place + first, values > -torch.inf, count))
        first += number
    values, places, labels = (torch.cat(parts, dim=1) for parts in zip(*found))
    values, order = torch.where(values > threshold, values, 0.0).sort(dim=1, descending=True, stable=True)
    return Candidates(values, places.gather(1, order), labels.gather(1, order))


def _pairs(
    logits: Tensor, quality: Tensor | None, place: Tensor, valid: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of some places [B, m], [B, m] those that are some: scores, places and labels."""
    classes = logits.shape[-1]
    own = logits.gather(1, place[..., None].expand(-1, -1, classes))
    scores = _score(own, None if quality is None else quality.gather(1, place)[..., None])
    values, pair = best_of(torch.where(valid[..., None], scores, -torch.inf).flatten(1), count)
    return values, place.gather(1, pair // classes), pair % classes


def _score(logits: Tensor, quality: Tensor | None) -> Tensor:
    return logits.sigmoid() if quality is None else (logits.sigmoid() * quality.sigmoid()).sqrt()
