"""Segmentation heads: a decoder of segmentation-models-pytorch over any backbone's levels."""

from densekit.heads.segmentation.atrous import deeplab_v3, deeplab_v3_plus, pspnet
from densekit.heads.segmentation.head import SegmentationHead
from densekit.heads.segmentation.pyramids import fpn, pan, upernet
from densekit.heads.segmentation.smp_weights import from_smp, is_smp
from densekit.heads.segmentation.unets import linknet, manet, unet, unet_plus_plus

__all__ = [
    "SegmentationHead",
    "deeplab_v3",
    "deeplab_v3_plus",
    "fpn",
    "from_smp",
    "is_smp",
    "linknet",
    "manet",
    "pan",
    "pspnet",
    "unet",
    "unet_plus_plus",
    "upernet",
]
