"""Necks: what stands between the backbone's maps and the detector.

B images, C channels of the neck, H, W cells of a map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from densekit.errors import DensekitError
from densekit.layers import ConvNormAct, Norm
from densekit.ops.enlarging import nearest
from densekit.types import Level

Neck = Literal["fpn", "c5", "dc5", "c4"]
"""The pyramid; the backbone's last map, reduced; the last map of a dilated backbone, or the last but one, as it is."""


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
            inner[i] = inner[i] + nearest(inner[i + 1], inner[i].shape[-2:])
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
        self.inputs = [len(levels) - 1]
        self.reduce = ConvNormAct(last.channels, channels, kernel=1, norm=norm, act=False)
        self.levels = self.pooled = (Level(last.name, channels, last.stride),)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps -> [one [B, C, H, W]]."""
        return [self.reduce(maps[self.inputs[0]])]


class AsItIs(nn.Module):
    """One map of the backbone with nothing in between.

    Args:
        levels: of the backbone.
        place: which of them; from the end where it is negative.
    """

    def __init__(self, levels: Sequence[Level], *, place: int) -> None:
        super().__init__()
        self.inputs = [place % len(levels)]
        self.levels = self.pooled = (dataclasses.replace(levels[place], stage=None),)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps -> [one of them]."""
        return [maps[self.inputs[0]]]


def make_neck(
    neck: Neck, levels: Sequence[Level], *, channels: int = 256, norm: Norm | None = None
) -> FPN | LastLevel | AsItIs:
    """Build a neck by its name.

    Raises:
        DensekitError: ``dc5`` on a backbone that is not dilated, ``c4`` on one with a single map, or channels or a norm
            where the neck has no convolution.
    """
    if neck == "fpn":
        return FPN(levels, channels=channels, norm=norm)
    if neck == "c5":
        return LastLevel(levels, channels=channels, norm=norm)
    place = -1 if neck == "dc5" else -2
    if len(levels) < 2:
        raise DensekitError(f"neck {neck!r} needs a backbone of two maps or more, this one has {levels[-1]} alone")
    if neck == "dc5" and levels[-1].stride != levels[-2].stride:
        raise DensekitError(
            f"neck 'dc5' looks at the last map of a dilated backbone, but this one goes from stride "
            f"{levels[-2].stride} to {levels[-1].stride} there; set model.backbone.output_stride to "
            f"{levels[-2].stride}, or use neck c5"
        )
    if channels != 256 or norm is not None:
        raise DensekitError(
            f"neck {neck!r} takes {levels[place].name} as it is, with its {levels[place].channels} channels; leave "
            f"channels and neck_norm out"
        )
    return AsItIs(levels, place=place)
