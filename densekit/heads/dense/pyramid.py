"""The pyramid of one-stage detectors: P3 to P5 of an FPN, and two coarser levels for large objects.

B images, C channels, H, W cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from densekit.heads.faster_rcnn.fpn import FPN
from densekit.layers import Norm
from densekit.types import Level
from densekit.weight_gradients import Conv2d


class DensePyramid(nn.Module):
    """P3 to P7 (Lin et al. 2017, "Focal loss", section 4, footnote 2).

    A backbone without a map of stride 8 or more gives its coarser ones from stride 4 on.

    Args:
        levels: of the backbone.
        channels: C of every output.
        norm: after every convolution of the FPN; None gives them biases instead.
        coarse_from: what P6 is computed from: the backbone's last map, or P5.
    """

    def __init__(
        self, levels: Sequence[Level], *, channels: int, norm: Norm | None, coarse_from: Literal["c5", "p5"]
    ) -> None:
        super().__init__()
        finest: Literal[4, 8] = 8 if any(level.stride >= 8 for level in levels) else 4
        self.fpn = FPN(levels, channels=channels, norm=norm, finest=finest)
        self.from_backbone = coarse_from == "c5"
        self.p6 = Conv2d(levels[-1].channels if self.from_backbone else channels, channels, 3, 2, 1)
        self.p7 = Conv2d(channels, channels, 3, 2, 1)
        for conv in (self.p6, self.p7):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        merged, last = self.fpn.pooled, self.fpn.levels[-1]
        coarsest = Level(f"p{int(last.name[1:]) + 1}", channels, last.stride * 2)
        self.levels = (*merged, last, coarsest)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps -> one [B, C, H, W] a level, finest first."""
        pyramid = self.fpn.merged(maps)
        p6 = self.p6(maps[-1] if self.from_backbone else pyramid[-1])
        return [*pyramid, p6, self.p7(F.relu(p6))]
