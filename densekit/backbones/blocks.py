"""The parts of the ResNet family: stems, blocks, pyramidal convolutions and shortcuts.

Parameter names are torchvision's, timm's and the PyConv authors' (``conv1``, ``bn1``, ``downsample.0`` ...).

Letters: B images, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.layers import Norm, conv_norm, make_norm
from densekit.weight_gradients import Conv2d

Stem = Literal["7x7", "deep", "3x3"]
"""How a network begins: a 7x7 convolution of stride 2; three 3x3 ones of which the first has stride 2 (Szegedy et al.
2016, as in ResNet-C, He et al. 2018, arXiv 1812.01187, figure 2b); one 3x3 of stride 1, for small images."""


class Block(nn.Module):
    """Convolutions with norms in a row and a shortcut around them (He et al. 2015, figure 5).

    Args:
        convs: without biases; a ReLU follows each norm, after the last one the shortcut is added first.
        channels: channels that each of the convolutions gives.
        norm: kind of norm.
        shortcut: from the block's input to the shape of its output; None for a plain network.
        drop_path: probability that an image skips the convolutions in training (stochastic depth, Huang et al. 2016,
            arXiv 1603.09382).
        spare_input: nobody else needs the block's input: a packed copy of the block may write its output over it.
    """

    def __init__(
        self,
        convs: list[nn.Module],
        channels: list[int],
        *,
        norm: Norm,
        shortcut: nn.Module | None,
        drop_path: float,
        spare_input: bool = False,
    ) -> None:
        super().__init__()
        self.pairs = [(f"conv{number}", f"bn{number}") for number in range(1, len(convs) + 1)]
        for number, (conv, width) in enumerate(zip(convs, channels), 1):
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", make_norm(norm, width))
        self.downsample = shortcut
        self.drop_path = drop_path
        self.spare_input = spare_input

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the sum."""
        return cast(nn.Module, getattr(self, self.pairs[-1][1]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels[-1], H / stride, W / stride]."""
        y, pairs = x, [(getattr(self, conv), getattr(self, norm)) for conv, norm in self.pairs]
        for conv, norm in pairs[:-1]:
            y = conv_norm(conv, norm, y, relu=True)
        conv, norm = pairs[-1]
        if self.downsample is None:
            return conv_norm(conv, norm, y, relu=True)
        if self.training and self.drop_path:
            return F.relu_(_drop_path(conv_norm(conv, norm, y), self.drop_path) + self.downsample(x))
        shortcut = self.downsample(x)
        spare = self.spare_input or shortcut is not x
        return conv_norm(conv, norm, y, relu=True, add=shortcut, spare=spare)


class PyramidalConv(nn.Module):
    """Convolutions of several kernel sizes side by side (Duta et al. 2020, section 3, figure 2b).

    The output channels are shared out in equal parts; of three levels the last takes half.

    Args:
        channels: in and out.
        levels: (kernel, groups) of each.
        stride: of all.
        dilation: of all.
    """

    def __init__(self, channels: int, levels: tuple[tuple[int, int], ...], *, stride: int, dilation: int) -> None:
        super().__init__()
        part = channels // {2: 2, 3: 4, 4: 4}[len(levels)]
        widths = [part] * (len(levels) - 1)
        widths.append(channels - sum(widths))
        self.names = [f"conv2_{number}" for number in range(1, len(levels) + 1)]
        for name, width, (kernel, groups) in zip(self.names, widths, levels):
            self.add_module(
                name, unbiased_conv(channels, width, kernel, stride=stride, dilation=dilation, groups=groups)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H / stride, W / stride]."""
        return torch.cat([getattr(self, name)(x) for name in self.names], 1)


class Projection(nn.Sequential):
    """Shortcut by a 1x1 convolution and a norm, after a max pool where one is given first."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels, H / stride, W / stride]."""
        x = self[0](x) if len(self) == 3 else x
        return conv_norm(self[-2], self[-1], x)


class PaddingShortcut(nn.Module):
    """Shortcut without parameters: every ``stride``-th pixel, and zeros for the new channels (option A)."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C + new_channels, H / stride, W / stride]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def make_stem(stem: Stem, in_channels: int, channels: int, norm: Norm) -> nn.Module:
    """The convolutions before a network's first norm, from the image's channels to ``channels``."""
    if stem == "7x7":
        return unbiased_conv(in_channels, channels, 7, stride=2)
    if stem == "3x3":
        return unbiased_conv(in_channels, channels, 3)
    half, layers = channels // 2, nn.Sequential()
    for source, stride in ((in_channels, 2), (half, 1)):
        layers.extend([unbiased_conv(source, half, 3, stride=stride), make_norm(norm, half), nn.ReLU(inplace=True)])
    return layers.append(unbiased_conv(half, channels, 3))


def unbiased_conv(
    channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> Conv2d:
    """A convolution before a norm, padded so that stride 1 keeps the size."""
    padding = kernel // 2 * dilation
    return Conv2d(channels_in, channels_out, kernel, stride, padding, dilation, groups, bias=False)


def _drop_path(y: Tensor, rate: float) -> Tensor:
    keep = torch.rand(y.shape[0], 1, 1, 1, device=y.device) >= rate
    return y * (keep / (1.0 - rate)).to(y.dtype)
