"""Decoders that widen the view on one coarse map: PSPNet by pooling, DeepLab by dilated convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pydantic
from torch import Tensor, nn

from densekit.heads.segmentation.head import Decoder, register_decoder
from densekit.heads.segmentation.pyramid import last_levels, level_named
from densekit.types import Level

Positive = Annotated[int, pydantic.Field(gt=0)]
Fraction = Annotated[float, pydantic.Field(ge=0, lt=1)]
Rates = tuple[Positive, Positive, Positive]


@register_decoder
def pspnet(
    levels: Sequence[Level], *, level: str | None = None, decoder_channels: Positive = 512, dropout: Fraction = 0.2
) -> Decoder:
    """PSPNet (Zhao et al. 2017): one map, pooled to 1, 2, 3 and 6 cells a side and joined.

    Args:
        levels: of the backbone.
        level: which one; None takes the last of stride 8 or finer: c3 of a plain ResNet as in smp, c5 of one with
            output_stride 8 as in the paper.
        decoder_channels: before the classifier.
        dropout: of whole channels, before the classifier.

    Raises:
        DensekitError: there is no such level.
    """
    from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder

    fine = [index for index, each in enumerate(levels) if each.stride <= 8]
    index = level_named(levels, level, "level") if level is not None else (fine or [0])[-1]
    module = PSPDecoder([levels[index].channels], out_channels=decoder_channels, dropout=dropout)

    def features(maps: Sequence[Tensor]) -> list[Tensor]:
        return [maps[index]]

    return Decoder(module, features, decoder_channels, stride=levels[index].stride)


@register_decoder
def deeplab_v3(
    levels: Sequence[Level],
    *,
    decoder_channels: Positive = 256,
    rates: Rates = (12, 24, 36),
    separable: bool = False,
    dropout: Fraction = 0.5,
) -> Decoder:
    """DeepLab v3 (Chen et al. 2017): dilated convolutions of several rates on the coarsest map.

    Args:
        levels: of the backbone; smp's users set output_stride 8.
        decoder_channels: of the whole decoder.
        rates: dilations of the three branches.
        separable: depth-wise separable branches.
        dropout: after the branches are joined.
    """
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder

    module = DeepLabV3Decoder(levels[-1].channels, decoder_channels, rates, separable, dropout)
    return Decoder(module, list, decoder_channels, stride=levels[-1].stride, kernel=1, pools=True)


@register_decoder
def deeplab_v3_plus(
    levels: Sequence[Level],
    *,
    decoder_channels: Positive = 256,
    rates: Rates = (12, 24, 36),
    separable: bool = True,
    dropout: Fraction = 0.5,
) -> Decoder:
    """DeepLab v3+ (Chen et al. 2018): DeepLab v3 joined with a fine map (c2 of a ResNet).

    Args:
        levels: of the backbone; smp's users set output_stride 16. The fine map is the fourth from the end.
        decoder_channels: of the whole decoder.
        rates: dilations of the three branches.
        separable: depth-wise separable branches.
        dropout: after the branches are joined.

    Raises:
        DensekitError: fewer than two levels.
    """
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder

    pyramid = last_levels(levels, "deeplab_v3_plus", least=2)
    fine, coarse = pyramid.levels[0], pyramid.levels[-1]
    module = DeepLabV3PlusDecoder(
        [0, 0, fine.channels, coarse.channels],
        encoder_depth=5,
        out_channels=decoder_channels,
        atrous_rates=rates,
        output_stride=16,
        aspp_separable=separable,
        aspp_dropout=dropout,
    )
    # smp knows strides 8 and 16 only.
    module.up = nn.Upsample(scale_factor=coarse.stride / fine.stride, mode="bilinear", align_corners=True)

    def features(maps: Sequence[Tensor]) -> list[Tensor]:
        empty, first, *_, last = pyramid(maps)
        return [empty, empty, first, last]

    return Decoder(module, features, decoder_channels, stride=fine.stride, kernel=1, pools=True)
