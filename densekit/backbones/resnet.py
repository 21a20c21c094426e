"""The ResNet family: one class and a table of variants.

* ResNet: He et al. 2015 (arXiv 1512.03385), with the stride of a bottleneck in its 3x3 convolution, as torchvision
  and timm have it; the plain networks are the paper's own control without shortcuts (figure 3, middle).
* ResNeXt: Xie et al. 2016 (arXiv 1611.05431, table 1). Wide ResNet: Zagoruyko and Komodakis 2016 (arXiv 1605.07146).
* PyConvResNet: Duta et al. 2020 (arXiv 2006.11538): pyramidal convolution of section 3 in the blocks of table 1.

Parameter names are torchvision's, timm's and the PyConv authors' (``conv1``, ``bn1``, ``layer1.0.conv1`` ...), so
state dicts load both ways.

Letters: B images, C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from densekit.backbones.blocks import (
    Block,
    PaddingShortcut,
    Projection,
    PyramidalConv,
    Stem,
    make_stem,
    unbiased_conv,
)
from densekit.backbones.checkpointing import checkpointed
from densekit.errors import DensekitError
from densekit.layers import FrozenBatchNorm2d, Norm, conv_norm, init_convs, make_norm
from densekit.registry import BACKBONES
from densekit.types import Level


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """What distinguishes one network of the family.

    Attributes:
        name: registered name.
        block: ``basic`` (two 3x3 convolutions) or ``bottleneck`` (1x1, 3x3, 1x1; four times as many channels out).
        depths: blocks per stage.
        widths: channels of a stage's 3x3 convolutions, before ``groups`` and ``group_width``.
        groups: groups of a bottleneck's 3x3 convolution.
        group_width: channels a group at width 64; the width grows by ``groups * group_width / 64``.
        stem: how the network begins where the user does not say.
        shortcut: what joins a block's ends where they differ in shape: a 1x1 ``projection`` (option B of He et al.
            2015, section 3.3), ``padding`` with zero channels (option A), ``pooled`` projection after a max pool
            (Duta et al. 2020, section 4.1), or ``none``: no block has a shortcut.
        pyramids: per stage the (kernel, groups) of a bottleneck's pyramidal convolution; empty for a 3x3 one.
        stride_in_1x1: whether a bottleneck's first convolution has its stride, not the middle one.
    """

    name: str
    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    groups: int = 1
    group_width: int = 64
    stem: Stem = "7x7"
    shortcut: Literal["projection", "padding", "pooled", "none"] = "projection"
    pyramids: tuple[tuple[tuple[int, int], ...], ...] = ()
    stride_in_1x1: bool = False


_D18, _D34, _D50, _D101, _D152 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_CIFAR = (16, 32, 64)  # He et al. 2015, section 4.2; resnet8 has one block a stage, where they have three and more
_PYCONV = (((3, 1), (5, 4), (7, 8), (9, 16)), ((3, 1), (5, 4), (7, 8)), ((3, 1), (5, 4)), ((3, 1),))  # Duta, table 1
_SMALL = (((1, 1), (3, 4), (5, 8)),) * 4

VARIANTS = (
    Variant("resnet18", "basic", _D18),
    Variant("resnet34", "basic", _D34),
    Variant("resnet50", "bottleneck", _D50),
    Variant("resnet101", "bottleneck", _D101),
    Variant("resnet152", "bottleneck", _D152),
    Variant("resnext50_32x4d", "bottleneck", _D50, groups=32, group_width=4),
    Variant("resnext101_32x8d", "bottleneck", _D101, groups=32, group_width=8),
    Variant("resnext101_64x4d", "bottleneck", _D101, groups=64, group_width=4),
    Variant("wide_resnet50_2", "bottleneck", _D50, group_width=128),
    Variant("wide_resnet101_2", "bottleneck", _D101, group_width=128),
    Variant("resnet8", "basic", (1, 1, 1), _CIFAR, stem="3x3", shortcut="padding"),
    Variant("resnet20", "basic", (3, 3, 3), _CIFAR, stem="3x3", shortcut="padding"),
    Variant("resnet32", "basic", (5, 5, 5), _CIFAR, stem="3x3", shortcut="padding"),
    Variant("resnet44", "basic", (7, 7, 7), _CIFAR, stem="3x3", shortcut="padding"),
    Variant("resnet56", "basic", (9, 9, 9), _CIFAR, stem="3x3", shortcut="padding"),
    Variant("resnet110", "basic", (18, 18, 18), _CIFAR, stem="3x3", shortcut="padding"),
    Variant("plain18", "basic", _D18, shortcut="none"),
    Variant("plain34", "basic", _D34, shortcut="none"),
    Variant("plain20", "basic", (3, 3, 3), _CIFAR, stem="3x3", shortcut="none"),
    Variant("plain32", "basic", (5, 5, 5), _CIFAR, stem="3x3", shortcut="none"),
    Variant("plain44", "basic", (7, 7, 7), _CIFAR, stem="3x3", shortcut="none"),
    Variant("plain56", "basic", (9, 9, 9), _CIFAR, stem="3x3", shortcut="none"),
    Variant("plain110", "basic", (18, 18, 18), _CIFAR, stem="3x3", shortcut="none"),
    Variant("pyconvresnet50", "bottleneck", _D50, shortcut="pooled", pyramids=_PYCONV),
    Variant("pyconvresnet101", "bottleneck", _D101, shortcut="pooled", pyramids=_PYCONV),
    Variant("pyconvresnet152", "bottleneck", _D152, shortcut="pooled", pyramids=_PYCONV),
    Variant("pyconvresnet50_k135", "bottleneck", _D50, shortcut="pooled", pyramids=_SMALL),
)
"""The networks; ``pyconvresnet50_k135`` is PyConvResNet-50 with the small pyramid of kernels 1, 3, 5 in every stage."""


class ResNet(nn.Module):
    """A network of the family as a backbone: gives ``c1`` (stem), ``c2`` (layer1) ... ``c5`` (layer4).

    Args:
        variant: which network.
        in_channels: channels of the images.
        norm: kind of norm after every convolution.
        stem: how the network begins; None takes the variant's own. After a ``3x3`` stem there is no pooling and the
            first stage keeps the size: every level has a quarter of the stride that it has after the others.
        output_stride: the coarsest stride allowed; a stage that would go beyond keeps the size and dilates instead.
        dilate_first_block: dilate the first block of such a stage as far as the others, as
            segmentation-models-pytorch does; torchvision and timm leave it as far as the stage before.
        frozen_stages: how many of the first parts do not learn: 0 none, 1 the stem, 2 stem and layer1, ... 5 all.
            Frozen means that parameters get no gradient and that batch norm keeps its statistics, in training too.
        zero_init_residual: start the last norm of each block at zero, so that each block starts as its shortcut
            (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
        drop_path: stochastic depth: probability of skipping the last block; it rises linearly from 0 at the first.
        num_stages: how many stages to build, finest first; None builds all. With 3 of resnet18's four the coarsest
            level is ``c4``: lighter by three quarters of the parameters, for objects that need no wider view.
        stride_in_1x1: a bottleneck's stride is in its first convolution, as in He et al. 2015 and in the weights of
            Caffe2 and MSRA, not in the 3x3.
        norm_eps: added to the variance in every norm; 0 for weights of torchvision's ``COCO_V1`` detectors, which were
            trained with that.
        activation_checkpointing: keep only each block's input for the backward and compute the rest again: less
            memory, about a third more time.

    Raises:
        DensekitError: an option out of range, or options that contradict one another.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        in_channels: int = 3,
        norm: Norm = "batch",
        stem: Stem | None = None,
        output_stride: Literal[8, 16, 32] = 32,
        dilate_first_block: bool = False,
        frozen_stages: int = 0,
        zero_init_residual: bool = False,
        drop_path: float = 0.0,
        activation_checkpointing: bool = False,
        num_stages: int | None = None,
        norm_eps: float = 1e-5,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        variant = _shortened(variant, num_stages)
        if stride_in_1x1:
            variant = _with_early_stride(variant)
        _check(variant, in_channels, norm, frozen_stages, zero_init_residual, drop_path)
        self.name = variant.name
        self.pairs = [("conv1", "bn1")]
        self.in_channels = in_channels
        self.num_stages = len(variant.depths)
        self.frozen_stages = frozen_stages
        self.activation_checkpointing = activation_checkpointing
        stem = stem or variant.stem
        self.conv1 = make_stem(stem, in_channels, variant.widths[0], norm)
        self.bn1 = make_norm(norm, variant.widths[0])
        self.pools = stem != "3x3" and variant.shortcut != "pooled"
        self.levels: tuple[Level, ...] = (Level("c1", variant.widths[0], 1 if stem == "3x3" else 2),)
        self._add_stages(variant, norm, output_stride, dilate_first_block, drop_path)
        self._start(zero_init_residual, norm_eps)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] normalised float images -> one map a level, finest first.

        Raises:
            DensekitError: the images have another number of channels than the network.
        """
        if images.shape[1] != self.in_channels:
            raise DensekitError(
                f"backbone {self.name!r} takes images of {self.in_channels} channels, these have {images.shape[1]}; "
                f"convert the images, or build it with in_channels={images.shape[1]}"
            )
        x = conv_norm(self.conv1, self.bn1, images, relu=True)
        maps = [x]
        x = F.max_pool2d(x, 3, 2, 1) if self.pools else x
        for stage in self._stages()[: len(self.levels) - 1]:
            x = self._through(stage, x)
            maps.append(x)
        return maps

    def last_stage(self, x: Tensor) -> Tensor:
        """[B, C', H', W'], the map before the last or regions of it -> [B, C, H, W] of the last stage."""
        return self._through(self._stages()[-1], x)

    def leave_last_stage(self) -> None:
        """Give one map less from now on, for heads that run the last stage; it stays a part of the network."""
        self.levels = self.levels[:-1]

    def train(self, mode: bool = True) -> ResNet:
        """Switch to training or evaluation; frozen parts stay in evaluation, which keeps their statistics."""
        super().train(mode)
        for part in self._frozen():
            part.train(False)
        return self

    def _add_stages(
        self, variant: Variant, norm: Norm, output_stride: int, dilate_first_block: bool, drop_path: float
    ) -> None:
        channels_in, stride, dilation = variant.widths[0], self.levels[0].stride * (2 if self.pools else 1), 1
        number, last = 0, max(1, sum(variant.depths) - 1)
        for stage, depth in enumerate(variant.depths):
            downsamples = stage > 0 or (variant.shortcut == "pooled" and stride > 1)
            step, before = (2 if downsamples else 1), dilation
            if stride * step > output_stride:
                step, dilation = 1, dilation * 2
                before = dilation if dilate_first_block else before
            stride *= step
            blocks = nn.Sequential()
            for first in [True] + [False] * (depth - 1):
                shape = _Shape(
                    variant, stage, first, channels_in, step if first else 1, before if first else dilation, dilation
                )
                blocks.append(_block(shape, norm=norm, drop_path=drop_path * number / last))
                channels_in, number = shape.channels, number + 1
            self.add_module(f"layer{stage + 1}", blocks)
            # The pool before the first stage is none's: a network of one stage has none that makes one map of another.
            makes = self.last_stage if 0 < stage == len(variant.depths) - 1 else None
            self.levels += (Level(f"c{stage + 2}", channels_in, stride, makes),)

    def _start(self, zero_init_residual: bool, norm_eps: float) -> None:
        init_convs(self)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm | nn.GroupNorm | FrozenBatchNorm2d):
                module.eps = norm_eps
        if zero_init_residual:
            for block in self.modules():
                if isinstance(block, Block):
                    nn.init.zeros_(cast(Tensor, block.last_norm.weight))
        for part in self._frozen():
            part.requires_grad_(False)
        self.train(self.training)

    def _through(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        for block in stage:
            x = checkpointed(block, block, x) if self.activation_checkpointing else block(x)
        return x

    def _stages(self) -> list[nn.Sequential]:
        return [cast(nn.Sequential, self.get_submodule(f"layer{n}")) for n in range(1, self.num_stages + 1)]

    def _frozen(self) -> list[nn.Module]:
        return [self.conv1, self.bn1, *self._stages()[: self.frozen_stages - 1]] if self.frozen_stages else []


@dataclasses.dataclass(frozen=True, slots=True)
class _Shape:
    """One block's place: its variant and stage, what comes in, its stride, and the dilations of its two 3x3's.

    The ``first`` block of a stage gets the map that the stage before gives to the heads as well.
    """

    variant: Variant
    stage: int
    first: bool
    channels_in: int
    stride: int
    first_dilation: int
    dilation: int

    @property
    def channels(self) -> int:
        return self.variant.widths[self.stage] * (4 if self.variant.block == "bottleneck" else 1)


def _block(shape: _Shape, *, norm: Norm, drop_path: float) -> Block:
    variant, channels = shape.variant, shape.channels
    if variant.block == "basic":
        convs: list[nn.Module] = [
            unbiased_conv(shape.channels_in, channels, 3, stride=shape.stride, dilation=shape.first_dilation),
            unbiased_conv(channels, channels, 3, dilation=shape.dilation),
        ]
        widths = [channels, channels]
    else:
        width = variant.widths[shape.stage] * variant.groups * variant.group_width // 64
        convs = [
            unbiased_conv(shape.channels_in, width, 1, stride=shape.stride if variant.stride_in_1x1 else 1),
            _spatial_conv(shape, width),
            unbiased_conv(width, channels, 1),
        ]
        widths = [width, width, channels]
    shortcut = _shortcut(shape, norm)
    return Block(convs, widths, norm=norm, shortcut=shortcut, drop_path=drop_path, spare_input=not shape.first)


def _spatial_conv(shape: _Shape, width: int) -> nn.Module:
    """The middle convolution of a bottleneck."""
    stride, dilation = 1 if shape.variant.stride_in_1x1 else shape.stride, shape.first_dilation
    pyramid = shape.variant.pyramids[shape.stage] if shape.variant.pyramids else ((3, shape.variant.groups),)
    if len(pyramid) > 1:
        return PyramidalConv(width, pyramid, stride=stride, dilation=dilation)
    kernel, groups = pyramid[0]
    return unbiased_conv(width, width, kernel, stride=stride, dilation=dilation, groups=groups)


def _shortcut(shape: _Shape, norm: Norm) -> nn.Module | None:
    kind, stride = shape.variant.shortcut, shape.stride
    if kind == "none":
        return None
    if stride == 1 and shape.channels_in == shape.channels:
        return nn.Identity()
    if kind == "padding":
        return PaddingShortcut(shape.channels - shape.channels_in, stride)
    if kind == "projection":
        return Projection(
            unbiased_conv(shape.channels_in, shape.channels, 1, stride=stride), make_norm(norm, shape.channels)
        )
    # Without a stride an identity keeps the pool's place, and so the parameters' names.
    pool = nn.MaxPool2d(3, stride, 1) if stride > 1 else nn.Identity()
    return Projection(pool, unbiased_conv(shape.channels_in, shape.channels, 1), make_norm(norm, shape.channels))


def _shortened(variant: Variant, num_stages: int | None) -> Variant:
    most = len(variant.depths)
    if num_stages is None:
        return variant
    if not 1 <= num_stages <= most:
        raise DensekitError(f"num_stages: {variant.name} takes 1 to {most} (all), not {num_stages}")
    return dataclasses.replace(variant, depths=variant.depths[:num_stages])


def _with_early_stride(variant: Variant) -> Variant:
    if variant.block == "basic":
        raise DensekitError(f"stride_in_1x1: {variant.name} has no 1x1 convolutions in its blocks; leave it out")
    return dataclasses.replace(variant, stride_in_1x1=True)


def _check(
    variant: Variant, in_channels: int, norm: Norm, frozen_stages: int, zero_init_residual: bool, drop_path: float
) -> None:
    parts = len(variant.depths) + 1
    if in_channels < 1:
        raise DensekitError(f"in_channels: images have at least 1 channel, not {in_channels}")
    if not 0 <= frozen_stages <= parts:
        raise DensekitError(f"frozen_stages: {variant.name} takes 0 (none) to {parts} (all), not {frozen_stages}")
    if not 0.0 <= drop_path < 1.0:
        raise DensekitError(f"drop_path: a probability of at least 0 and below 1, not {drop_path}")
    if variant.shortcut == "none" and (zero_init_residual or drop_path):
        raise DensekitError(f"{variant.name} has no shortcuts, so zero_init_residual and drop_path can't be set")
    if norm == "frozen" and zero_init_residual:
        raise DensekitError("zero_init_residual needs norms that learn, but norm is 'frozen'; leave one of them out")


for _variant in VARIANTS:
    BACKBONES.add(_variant.name, functools.partial(ResNet, _variant))
