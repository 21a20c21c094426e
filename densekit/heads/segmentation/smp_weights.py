"""Weights of segmentation-models-pytorch's models under densekit's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from densekit.types import DensekitError

# DeepLab v3's decoder was a Sequential before smp 0.5.
_OLD_DEEPLAB = {"decoder.0.": "decoder.aspp.", "decoder.1.": "decoder.conv.", "decoder.2.": "decoder.bn."}


def is_smp(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of one of smp's models."""
    parts = {key.removeprefix("module.").partition(".")[0] for key in state}
    return {"encoder", "decoder", "segmentation_head"} <= parts


def from_smp(state: Mapping[str, Tensor], head: str = "masks") -> dict[str, Tensor]:
    """Rename the state dict of any of smp's models for a ``DenseModel`` with one segmentation head.

    ``encoder.*`` becomes ``backbone.*`` (a ``tu-`` encoder is timm's network without ``model.``), ``decoder.*`` stays
    under the head, ``segmentation_head.0`` is the head's ``classifier``. smp's image classifier beside the decoder has
    no counterpart and is left out.

    The logits are smp's where the backbone has its dilations: DeepLab and PAN need ``output_stride`` (8 for
    DeepLab v3, else 16) and ``dilate_first_block``.

    Args:
        state: ``smp.Unet(...).state_dict()`` or what was saved of it.
        head: the head's name in the model.

    Raises:
        DensekitError: these are not the weights of one of smp's models.
    """
    old_deeplab = "decoder.2.running_mean" in state and "decoder.1.weight" in state
    renamed = {}
    for key, value in state.items():
        name = _densekit_name(key.removeprefix("module."), head, old_deeplab)
        if name is not None:
            renamed[name] = value
    if not is_smp(state):
        found = ", ".join(list(state)[:3]) or "no key"
        raise DensekitError(
            f"weights with {found} are not those of an smp model; its keys begin with encoder., decoder. and "
            f"segmentation_head."
        )
    return renamed


def _densekit_name(key: str, head: str, old_deeplab: bool) -> str | None:
    if key.startswith("encoder."):
        return "backbone." + re.sub(r"^(model\.)?", "", key.removeprefix("encoder."))
    if key.startswith("segmentation_head.0."):
        return f"heads.{head}.classifier.{key.removeprefix('segmentation_head.0.')}"
    if not key.startswith("decoder."):
        return None
    for old, new in _OLD_DEEPLAB.items():
        if old_deeplab and key.startswith(old):
            key = key.replace(old, new, 1)
    return f"heads.{head}.{key}"
