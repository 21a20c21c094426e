"""Decoders that join a pyramid of maps at the finest one of them and enlarge the result: FPN, PAN, UPerNet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import pydantic
import torch.nn.functional as F
from torch import Tensor

from densekit.heads.segmentation.head import Decoder, register_decoder
from densekit.heads.segmentation.pyramid import Pyramid, last_levels
from densekit.types import DensekitError, Level

Positive = Annotated[int, pydantic.Field(gt=0)]
Fraction = Annotated[float, pydantic.Field(ge=0, lt=1)]
T = TypeVar("T")


@register_decoder
def fpn(
    levels: Sequence[Level],
    *,
    pyramid_channels: Positive = 256,
    segmentation_channels: Annotated[int, pydantic.Field(gt=0, multiple_of=32)] = 128,
    merge: Literal["add", "cat"] = "add",
    dropout: Fraction = 0.2,
    interpolation: Literal["nearest", "bilinear"] = "nearest",
) -> Decoder:
    """Panoptic FPN's segmentation branch (Kirillov et al. 2019, section 3.1).

    Args:
        levels: of the backbone; the last four must double in stride.
        pyramid_channels: of the feature pyramid.
        segmentation_channels: of the branches, a multiple of the 32 groups of their norm.
        merge: how the four branches are joined.
        dropout: of whole channels, before the classifier.
        interpolation: how the pyramid's maps are enlarged.

    Raises:
        DensekitError: fewer than four levels, or strides that don't double (use output_stride 32).
    """
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder

    pyramid = last_levels(levels, "fpn", least=4)
    strides = [level.stride for level in pyramid.levels]
    if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
        raise DensekitError(
            f"head 'fpn' needs strides that double, the backbone's are {strides}; "
            f"set the backbone's output_stride to 32, or take upernet or pan"
        )
    module = FPNDecoder(
        pyramid.encoder_channels,
        encoder_depth=4,
        pyramid_channels=pyramid_channels,
        segmentation_channels=segmentation_channels,
        dropout=dropout,
        merge_policy=merge,
        interpolation_mode=interpolation,
    )
    return Decoder(module, pyramid, module.out_channels, stride=strides[0], kernel=1)


@register_decoder
def pan(
    levels: Sequence[Level],
    *,
    decoder_channels: Positive = 32,
    interpolation: Literal["nearest", "bilinear"] = "bilinear",
) -> Decoder:
    """Pyramid attention network (Li et al. 2018).

    Args:
        levels: of the backbone; the last four are used, smp's users set output_stride 16.
        decoder_channels: of the whole decoder.
        interpolation: how maps are enlarged.

    Raises:
        DensekitError: fewer than two levels.
    """
    from segmentation_models_pytorch.decoders.pan.decoder import PANDecoder

    pyramid = last_levels(levels, "pan", least=2)
    module = PANDecoder(
        _with_stride_two(pyramid.encoder_channels),
        encoder_depth=len(pyramid.levels) + 1,
        decoder_channels=decoder_channels,
        interpolation_mode=interpolation,
    )

    def features(maps: Sequence[Tensor]) -> list[Tensor]:
        return _with_stride_two(_padded(pyramid, pyramid(maps), cells=8))

    return Decoder(module, features, decoder_channels, stride=pyramid.levels[0].stride, pools=True)


@register_decoder
def upernet(levels: Sequence[Level], *, decoder_channels: Positive = 256) -> Decoder:
    """UPerNet (Xiao et al. 2018): pyramid pooling on the coarsest map, then a feature pyramid.

    Args:
        levels: of the backbone; the last four are used.
        decoder_channels: of the whole decoder.

    Raises:
        DensekitError: fewer than two levels.
    """
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

    pyramid = last_levels(levels, "upernet", least=2)
    module = UPerNetDecoder(
        _with_stride_two(pyramid.encoder_channels),
        encoder_depth=len(pyramid.levels) + 1,
        decoder_channels=decoder_channels,
    )

    def features(maps: Sequence[Tensor]) -> list[Tensor]:
        return _with_stride_two(pyramid(maps))

    return Decoder(module, features, decoder_channels, stride=pyramid.levels[0].stride, kernel=1, pools=True)


def _with_stride_two(features: list[T]) -> list[T]:
    """Put an entry before the maps: these decoders skip the input and the map of stride 2."""
    return [features[0], *features]


def _padded(pyramid: Pyramid, features: list[Tensor], cells: int) -> list[Tensor]:
    """Pad the maps with zeros until the coarsest has ``cells`` cells a side: PAN halves it three times."""
    coarsest = pyramid.levels[-1].stride
    height, width = features[0].shape[-2:]
    bottom, right = max(cells * coarsest - height, 0), max(cells * coarsest - width, 0)
    if not (bottom or right):
        return features
    strides = [1, *(level.stride for level in pyramid.levels)]
    return [F.pad(f, (0, right // s, 0, bottom // s)) for f, s in zip(features, strides)]
