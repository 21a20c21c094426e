"""The backbone's last stage as the box head: ``C4`` of Ren et al. 2015 and He et al. 2017, figure 4, left.

R regions of the batch that are looked at, C channels of the last stage, Q side of the patch that it makes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from densekit.errors import DensekitError
from densekit.types import Level


class LastStage(nn.Module):
    """The last stage over pooled regions, then the mean over the patch.

    The stage stays a part of the backbone, with its weights, its learning rate and what of it is frozen; this module
    holds no parameters.

    Args:
        levels: of the backbone, whose last says which ``stage`` makes it.

    Raises:
        DensekitError: a backbone without a stage that can be run alone.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        last = levels[-1]
        if last.stage is None:
            raise DensekitError(
                "neck 'c4' runs the backbone's last stage on regions, and this backbone has none that runs alone; use "
                "one of our own ResNets with two stages or more, such as resnet50, or neck fpn, c5 or dc5"
            )
        self.stage = last.stage
        self.width = last.channels
        self.shrinks = last.stride // levels[-2].stride

    def patch(self, x: Tensor) -> Tensor:
        """[R, C', ``shrinks`` * Q, ``shrinks`` * Q], pooled from the map before the last -> [R, C, Q, Q]."""
        made: Tensor = self.stage(x)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """[R, C', ``shrinks`` * Q, ``shrinks`` * Q] -> [R, C]."""
        return self.patch(x).mean((2, 3))
