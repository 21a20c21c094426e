"""Necks: what stands between the backbone's maps and the detector.

B images, C channels of the neck, H, W cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from densekit.errors import DensekitError
from densekit.layers import ConvNormAct, Norm
from densekit.types import Level


class FPN(nn.Module):
    """Feature pyramid (Lin et al. 2017, figure 3): P2..P5, and P6 for large anchors (section 4.1, footnote 3).

    Args:
        levels: of the backbone; those from stride ``finest`` on are used, at most the last four (three from P3 on).
        channels: C of every output.
        norm: after every convolution; None gives them biases instead.
        finest: stride of the first level, which is P2 at 4 and P3 at 8; the last is P5 at most.
    """

    def __init__(
        self, levels: Sequence[Level], *, channels: int = 256, norm: Norm | None = None, finest: Literal[4, 8] = 4
    ) -> None:
        super().__init__()
        first = finest.bit_length() - 1
        self.inputs = [i for i, level in enumerate(levels) if level.stride >= finest][first - 6 :]
        if not self.inputs:
            last = levels[-1]
            raise DensekitError(f"the pyramid needs maps of stride {finest} or more; the backbone's last is {last}")
        used = [levels[i] for i in self.inputs]
        self.pooled = tuple(Level(f"p{i}", channels, level.stride) for i, level in enumerate(used, start=first))
        self.levels = (*self.pooled, Level(f"p{len(used) + first}", channels, used[-1].stride * 2))
        self.lateral = nn.ModuleList(
            ConvNormAct(level.channels, channels, kernel=1, norm=norm, act=False) for level in used
        )
        self.output = nn.ModuleList(ConvNormAct(channels, channels, kernel=3, norm=norm, act=False) for _ in used)
        for conv in (m for m in self.modules() if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps -> one [B, C, H, W] a level, finest first; the last is every second cell of P5."""
        pyramid = self.merged(maps)
        return [*pyramid, F.max_pool2d(pyramid[-1], kernel_size=1, stride=2)]

    def merged(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The ``pooled`` levels alone: as many as maps are used."""
        inner = [lateral(maps[i]) for lateral, i in zip(self.lateral, self.inputs)]
        for i in range(len(inner) - 2, -1, -1):
            inner[i] = inner[i] + F.interpolate(inner[i + 1], size=inner[i].shape[-2:], mode="nearest")
        return [output(x) for output, x in zip(self.output, inner)]


class LastLevel(nn.Module):
    """The backbone's last map alone, reduced to C channels: the classic single-level detector (Ren et al. 2015).

    Args:
        levels: of the backbone; the last is used, at whatever stride it has (32, or 16 in a dilated network).
        channels: C.
        norm: after the convolution; None gives it a bias instead.
    """

    def __init__(self, levels: Sequence[Level], *, channels: int = 256, norm: Norm | None = None) -> None:
        super().__init__()
        last = levels[-1]
        self.reduce = ConvNormAct(last.channels, channels, kernel=1, norm=norm, act=False)
        self.levels = self.pooled = (Level(last.name, channels, last.stride),)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps -> [one [B, C, H, W]]."""
        return [self.reduce(maps[-1])]
