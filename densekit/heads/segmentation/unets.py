"""The U-Net family: decoders that climb back to the input's resolution, taking the backbone's maps on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from torch import Tensor, nn

from densekit.heads.segmentation.doubling import MOST_CHANNELS, DoublingBlock
from densekit.heads.segmentation.head import Decoder, register_decoder
from densekit.heads.segmentation.pyramid import Pyramid, doubling_levels, every_level
from densekit.types import DensekitError, Level
from densekit.weight_gradients import ConvTranspose2d

Positive = Annotated[int, pydantic.Field(gt=0)]
Interpolation = Literal["nearest", "bilinear"]

# smp imports timm and torchvision, 2.4 seconds that a detector's user need not wait: each builder imports its own part.


@register_decoder
def unet(
    levels: Sequence[Level],
    *,
    decoder_channels: tuple[Positive, ...] | None = None,
    attention: Literal["scse"] | None = None,
    interpolation: Interpolation = "nearest",
    plain: bool = False,
) -> Decoder:
    """U-Net (Ronneberger et al. 2015) as smp builds it on a classifier's backbone.

    Args:
        levels: of the backbone; any strides, also with dilations or without stride 2.
        decoder_channels: one per level, coarsest first; None is 256, 128, 64, 32, 16 for five levels.
        attention: ``scse``: squeeze and excitation over space and channels (Roy et al. 2018).
        interpolation: how maps are enlarged.
        plain: the decoder of the first articles that set a ResNet under a segmenter: transposed convolutions from the
            coarsest map alone, without skips; there to measure what the skips gain.

    Raises:
        DensekitError: decoder_channels of another length than the backbone's levels, or attention with ``plain``.
    """
    if plain:
        return _plain(levels, decoder_channels, attention, interpolation)
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

    pyramid = every_level(levels)
    channels = _decoder_channels(decoder_channels, len(pyramid.levels))
    module = UnetDecoder(
        pyramid.encoder_channels,
        channels,
        n_blocks=len(channels),
        attention_type=attention,
        interpolation_mode=interpolation,
    )
    if attention is None and interpolation == "nearest":
        _double_faster(module.blocks, pyramid, channels)
    return Decoder(module, pyramid, channels[-1])


@register_decoder
def unet_plus_plus(
    levels: Sequence[Level],
    *,
    decoder_channels: tuple[Positive, ...] | None = None,
    attention: Literal["scse"] | None = None,
    interpolation: Interpolation = "nearest",
) -> Decoder:
    """UNet++ (Zhou et al. 2018): U-Nets of every depth, nested.

    Args:
        levels: of the backbone; the strides must double.
        decoder_channels: one per level, coarsest first.
        attention: as for ``unet``.
        interpolation: how maps are enlarged.

    Raises:
        DensekitError: the backbone's strides don't double (use output_stride 32).
    """
    from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder

    pyramid = doubling_levels(levels, "unet_plus_plus")
    channels = _decoder_channels(decoder_channels, len(pyramid.levels))
    module = UnetPlusPlusDecoder(
        pyramid.encoder_channels,
        channels,
        n_blocks=len(channels),
        attention_type=attention,
        interpolation_mode=interpolation,
    )
    return Decoder(module, pyramid, channels[-1])


@register_decoder
def manet(
    levels: Sequence[Level],
    *,
    decoder_channels: tuple[Positive, ...] | None = None,
    attention_channels: Positive = 64,
    interpolation: Interpolation = "nearest",
) -> Decoder:
    """MA-Net (Fan et al. 2020): U-Net with attention over positions and scales.

    Args:
        levels: of the backbone; the strides must double.
        decoder_channels: one per level, coarsest first.
        attention_channels: of the position-wise attention on the coarsest map; its memory grows with the fourth power
            of the image's side.
        interpolation: how maps are enlarged.

    Raises:
        DensekitError: the backbone's strides don't double (use output_stride 32).
    """
    from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder

    pyramid = doubling_levels(levels, "manet")
    channels = _decoder_channels(decoder_channels, len(pyramid.levels))
    module = MAnetDecoder(
        pyramid.encoder_channels,
        channels,
        n_blocks=len(channels),
        pab_channels=attention_channels,
        interpolation_mode=interpolation,
    )
    return Decoder(module, pyramid, channels[-1])


@register_decoder
def linknet(levels: Sequence[Level], *, last_channels: Positive = 32) -> Decoder:
    """LinkNet (Chaurasia & Culurciello 2017): skips are added, not concatenated.

    Args:
        levels: of the backbone; the strides must double.
        last_channels: before the classifier.

    Raises:
        DensekitError: the backbone's strides don't double (use output_stride 32).
    """
    from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder

    pyramid = doubling_levels(levels, "linknet")
    module = LinknetDecoder(pyramid.encoder_channels, prefinal_channels=last_channels, n_blocks=len(pyramid.levels))
    return Decoder(module, pyramid, last_channels, kernel=1)


class PlainDecoder(nn.Module):
    """Transposed convolutions from the coarsest map to the input's size, without skips.

    Args:
        in_channels: of the coarsest map.
        channels: of each step, which doubles the size.
    """

    def __init__(self, in_channels: int, channels: Sequence[int]) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for before, after in zip([in_channels, *channels], channels):
            # Kernel 4 with stride 2: every output pixel sees the same number of inputs, so no checkerboard.
            steps += [
                ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.steps = nn.Sequential(*steps)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps, finest first -> [B, D, H, W]."""
        out: Tensor = self.steps(maps[-1])
        return out


def _plain(
    levels: Sequence[Level], decoder_channels: tuple[int, ...] | None, attention: str | None, interpolation: str
) -> Decoder:
    if attention is not None or interpolation != "nearest":
        raise DensekitError("plain: the decoder without skips has neither attention nor interpolation; leave one out")
    channels = _decoder_channels(decoder_channels, levels[-1].stride.bit_length() - 1)
    return Decoder(PlainDecoder(levels[-1].channels, channels), list, channels[-1])


def _double_faster(blocks: nn.ModuleList, pyramid: Pyramid, channels: Sequence[int]) -> None:
    """Put ``DoublingBlock`` where a block doubles the size and gets few channels from below."""
    levels = pyramid.levels[::-1]
    strides = [*(level.stride for level in levels), 1]
    below = [levels[0].channels, *channels]
    for index, block in enumerate(blocks):
        if strides[index] == 2 * strides[index + 1] and below[index] <= MOST_CHANNELS:
            blocks[index] = DoublingBlock(block, below[index])


def _decoder_channels(given: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    if given is None:
        return tuple(min(256, 16 << step) for step in reversed(range(count)))
    if len(given) != count:
        raise DensekitError(
            f"decoder_channels: {list(given)} has {len(given)} numbers; this backbone needs {count}, one per level"
        )
    return given
