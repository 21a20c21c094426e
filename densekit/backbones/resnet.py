"""The ResNet family: one class and a table of variants.

He et al. 2015 (arXiv 1512.03385), with the stride of a bottleneck in its 3x3 convolution, as torchvision and timm
have it; parameter names are theirs too (``conv1``, ``bn1``, ``layer1.0.conv1`` ...), so state dicts load both ways.

Letters: B images, C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from densekit.layers import Norm, conv_norm, init_convs, make_norm
from densekit.registry import BACKBONES
from densekit.types import DensekitError, Level

EXPANSION = 4
"""Output channels of a bottleneck over its width (He et al. 2015, table 1)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """What distinguishes one network of the family.

    Attributes:
        name: registered name.
        bottleneck: three convolutions a block (1x1, 3x3, 1x1) in place of two 3x3.
        depths: blocks per stage.
    """

    name: str
    bottleneck: bool
    depths: tuple[int, ...]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, figure 5 left)."""

    def __init__(
        self, channels_in: int, channels: int, *, stride: int, dilations: tuple[int, int], norm: Norm, project: bool
    ) -> None:
        super().__init__()
        self.conv1 = _conv(channels_in, channels, 3, stride=stride, dilation=dilations[0])
        self.bn1 = make_norm(norm, channels)
        self.conv2 = _conv(channels, channels, 3, dilation=dilations[1])
        self.bn2 = make_norm(norm, channels)
        self.downsample = _projection(channels_in, channels, stride, norm) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels, H / stride, W / stride]."""
        y = F.relu_(conv_norm(self.conv1, self.bn1, x))
        y = conv_norm(self.conv2, self.bn2, y)
        return F.relu_(y + _shortcut(self.downsample, x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2015, figure 5 right)."""

    def __init__(
        self, channels_in: int, channels: int, *, stride: int, dilations: tuple[int, int], norm: Norm, project: bool
    ) -> None:
        super().__init__()
        width = channels // EXPANSION
        self.conv1 = _conv(channels_in, width, 1)
        self.bn1 = make_norm(norm, width)
        self.conv2 = _conv(width, width, 3, stride=stride, dilation=dilations[0])
        self.bn2 = make_norm(norm, width)
        self.conv3 = _conv(width, channels, 1)
        self.bn3 = make_norm(norm, channels)
        self.downsample = _projection(channels_in, channels, stride, norm) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels, H / stride, W / stride]."""
        y = F.relu_(conv_norm(self.conv1, self.bn1, x))
        y = F.relu_(conv_norm(self.conv2, self.bn2, y))
        y = conv_norm(self.conv3, self.bn3, y)
        return F.relu_(y + _shortcut(self.downsample, x))


class ResNet(nn.Module):
    """A network of the family as a backbone: gives ``c1`` (stem), ``c2`` (layer1) ... ``c5`` (layer4).

    Args:
        variant: which network.
        in_channels: channels of the images.
        norm: kind of norm after every convolution.
        frozen_stages: how many of the first parts do not learn: 0 none, 1 the stem, 2 stem and layer1, ... 5 all.
            Frozen means that parameters get no gradient and that batch norm keeps its statistics, in training too.
        output_stride: the coarsest stride; stages that would go beyond it keep the size and dilate instead.

    Raises:
        DensekitError: an option out of range.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        in_channels: int = 3,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        output_stride: Literal[8, 16, 32] = 32,
    ) -> None:
        super().__init__()
        self.name = variant.name
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self._check()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = make_norm(norm, 64)
        self._levels = [Level("c1", 64, 2)]
        self._build_stages(variant, norm, output_stride)
        self.levels = tuple(self._levels)
        init_convs(self)
        for part in self._frozen():
            part.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] normalised float images -> one map a level, finest first.

        Raises:
            DensekitError: the images have another number of channels than the network.
        """
        if images.shape[1] != self.in_channels:
            raise DensekitError(
                f"backbone {self.name!r} takes images of {self.in_channels} channels, these have {images.shape[1]}; "
                f"set the backbone's in_channels to {images.shape[1]}"
            )
        x = F.relu_(conv_norm(self.conv1, self.bn1, images))
        maps = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in self._stages():
            x = stage(x)
            maps.append(x)
        return maps

    def train(self, mode: bool = True) -> ResNet:
        """Switch to training or evaluation; frozen parts stay in evaluation, which keeps their statistics."""
        super().train(mode)
        for part in self._frozen():
            part.train(False)
        return self

    def _check(self) -> None:
        if self.in_channels < 1:
            raise DensekitError(f"in_channels: images have at least 1 channel, not {self.in_channels}")
        if not 0 <= self.frozen_stages <= 5:
            raise DensekitError(f"frozen_stages: between 0 (none) and 5 (all), not {self.frozen_stages}")

    def _build_stages(self, variant: Variant, norm: Norm, output_stride: int) -> None:
        block = Bottleneck if variant.bottleneck else BasicBlock
        channels_in, stride, dilation = 64, 4, 1
        for index, depth in enumerate(variant.depths):
            channels = 64 * 2**index * (EXPANSION if variant.bottleneck else 1)
            step, first_dilation = (1 if index == 0 else 2), dilation
            if stride * step > output_stride:
                step, dilation = 1, dilation * 2
            stride *= step
            blocks = []
            for number in range(depth):
                first = number == 0
                project = first and (step != 1 or channels_in != channels)
                blocks.append(
                    block(
                        channels_in,
                        channels,
                        stride=step if first else 1,
                        dilations=(first_dilation if first else dilation, dilation),
                        norm=norm,
                        project=project,
                    )
                )
                channels_in = channels
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
            self._levels.append(Level(f"c{index + 2}", channels, stride))

    def _stages(self) -> list[nn.Module]:
        return [cast(nn.Module, getattr(self, f"layer{n}")) for n in range(1, len(self._levels))]

    def _frozen(self) -> list[nn.Module]:
        if self.frozen_stages == 0:
            return []
        return [self.conv1, self.bn1, *self._stages()[: self.frozen_stages - 1]]


def _conv(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2 * dilation, dilation, bias=False)


def _projection(channels_in: int, channels: int, stride: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(_conv(channels_in, channels, 1, stride=stride), make_norm(norm, channels))


def _shortcut(downsample: nn.Sequential | None, x: Tensor) -> Tensor:
    if downsample is None:
        return x
    return conv_norm(cast(nn.Conv2d, downsample[0]), downsample[1], x)


VARIANTS: Sequence[Variant] = (
    Variant("resnet18", False, (2, 2, 2, 2)),
    Variant("resnet34", False, (3, 4, 6, 3)),
    Variant("resnet50", True, (3, 4, 6, 3)),
    Variant("resnet101", True, (3, 4, 23, 3)),
    Variant("resnet152", True, (3, 8, 36, 3)),
)

for _variant in VARIANTS:
    BACKBONES.add(_variant.name, functools.partial(ResNet, _variant))
