"""A block of U-Net's decoder that never makes the enlarged map.

A 3x3 convolution over a map enlarged twofold by its nearest pixels sees each source pixel four times. The same numbers
come from a transposed convolution of the small map, with a 4x4 kernel that sums the 3x3 kernel's taps by source pixel:
16 products a source pixel instead of 36, and neither the enlarged map nor its concatenation with the skip is written,
read or kept. (Shi et al. 2016, arXiv 1609.07009, describe the same equality from the other side.)

Letters: B images, C channels from below, S of the skip, O given, H, W size of the map from below.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.layers import PackedConv2d, fold_norm, foldable
from densekit.weight_gradients import conv2d, conv_transpose2d

MOST_CHANNELS = 128
"""Of the map from below. With more, where maps are small, oneDNN's transposed convolution loses what the sums save."""


class DoublingBlock(nn.Module):
    """smp's decoder block with nearest enlargement and no attention, under the same names.

    On the CPU it runs the transposed convolution, in float32 only where maps lie channels last (the other layout is the
    plain path); on GPUs it computes as smp does.

    Args:
        block: smp's ``UnetDecoderBlock``; its convolutions are taken over.
        channels: C.
    """

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv1, self.conv2 = cast(nn.Sequential, block.conv1), cast(nn.Sequential, block.conv2)
        self.packed: _Packed | None = None

    def forward(
        self, feature_map: Tensor, target_height: int, target_width: int, skip_connection: Tensor | None = None
    ) -> Tensor:
        """[B, C, H, W] and the skip [B, S, 2 H, 2 W] -> [B, O, 2 H, 2 W]; the target is the skip's size."""
        skip = skip_connection if skip_connection is not None and skip_connection.shape[1] else None
        if self.packed is not None:
            x = self.packed(feature_map, skip)
        elif _saves(feature_map):
            x = self._transposed(feature_map, skip)
        else:
            x = F.interpolate(feature_map, size=(target_height, target_width), mode="nearest")
            x = self.conv1(x if skip is None else torch.cat([x, skip], dim=1))
        return cast(Tensor, self.conv2(x))

    def pack(self, dtype: torch.dtype) -> None:
        """For inference on the CPU: fold the norm into both parts, cast and lay out weights (``packed.py``)."""
        conv, norm = self.conv1[0], self.conv1[1]
        if isinstance(conv, nn.Conv2d) and conv.weight.device.type == "cpu" and foldable(norm):
            self.packed = _Packed(*fold_norm(conv, norm), self.channels, dtype)
            self.conv1 = nn.Sequential()

    def _transposed(self, x: Tensor, skip: Tensor | None) -> Tensor:
        conv, norm, relu = self.conv1
        weight, bias = cast(Tensor, conv.weight), cast("Tensor | None", conv.bias)
        y = conv_transpose2d(x, spread(weight[:, : self.channels]), bias, (2, 2), (1, 1))
        if skip is not None:
            y = y + conv2d(skip, weight[:, self.channels :], None, padding=(1, 1))
        return cast(Tensor, relu(norm(y)))


def _saves(x: Tensor) -> bool:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return x.device.type == "cpu" and (last or torch.is_autocast_enabled("cpu"))


class _Packed(nn.Module):
    """The first convolution with its norm and ReLU, for inference."""

    def __init__(self, weight: Tensor, bias: Tensor, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        out, both = weight.shape[:2]
        self.up = spread(weight[:, :channels]).detach().to(dtype)
        self.bias = bias.detach().to(dtype)
        self.skip: PackedConv2d | None = None
        if both > channels:
            conv = nn.Conv2d(both - channels, out, 3, padding=1, bias=False)
            conv.weight = nn.Parameter(weight[:, channels:].detach())
            self.skip = PackedConv2d(conv, None, dtype, relu=True)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        y = F.conv_transpose2d(x.to(self.up.dtype), self.up, self.bias, stride=2, padding=1)
        if self.skip is None:
            return F.relu_(y)
        assert skip is not None
        return cast(Tensor, self.skip(skip, add=y))


def spread(weight: Tensor) -> Tensor:
    """The 3x3 kernels [O, C, 3, 3] as 4x4 ones [C, O, 4, 4] of a transposed convolution: stride 2, padding 1."""
    padded = F.pad(weight.flip(2, 3), (1, 1, 1, 1))
    rows = padded[:, :, :-1] + padded[:, :, 1:]
    return (rows[..., :-1] + rows[..., 1:]).transpose(0, 1)
