"""ResNets as detectron2 and Caffe2 name and scale them, brought to torchvision's names.

Three things can differ that no name tells of: both read images as blue, green, red unless they say otherwise; MSRA's
ResNets, which most of detectron2's models start from, want values of 0 to 255 less their mean and not divided; and they
have a bottleneck's stride in its first convolution (He et al. 2015), torchvision in the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from densekit.errors import DensekitError

_DETECTRON2 = re.compile(
    r"(?:(?<=^)|(?<=\.))(?:stem|res(?P<stage>[2-5])\.(?P<block>\d+))\.(?P<part>conv[1-3]|shortcut)(?P<norm>\.norm)?"
    r"\.(?P<rest>weight|bias|running_mean|running_var)$"
)
_CAFFE2 = re.compile(
    r"(?:conv1|res_conv1|res(?P<stage>[2-5])_(?P<block>\d+)_branch(?P<branch>1|2a|2b|2c))_(?P<bn>bn_)?(?P<rest>[wbs])"
)
_STRAIGHT = "model.normalize.std=[0.00392157,0.00392157,0.00392157] and model.backbone.stride_in_1x1=true"
_EPS = 1e-5  # what the norms add to the variance


def torchvision_name(key: str) -> str:
    """A key of detectron2's ResNets, wherever it stands in a model, as torchvision has it; others as they are.

    ``res2.0.conv1.norm.weight`` is ``layer1.0.bn1.weight``, ``res2.0.shortcut.weight`` its ``downsample.0.weight``,
    ``stem.conv1`` the first convolution.
    """
    found = _DETECTRON2.search(key)
    if found is None:
        return key
    stage, block, part, norm, rest = found.group("stage", "block", "part", "norm", "rest")
    return f"{key[: found.start()]}{_place(stage, block)}{_part(part, bool(norm))}.{rest}"


def with_last_stage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the last stage of a detector on C4, which stands in its heads there, beside the other stages."""
    return {re.sub(r"^roi_heads\.res5\.", "backbone.res5.", key): value for key, value in tensors.items()}


def turned(weight: Tensor, key: str) -> Tensor:
    """A stem's filters for images of red, green, blue, from those for blue, green, red.

    Raises:
        DensekitError: filters that read no three colours.
    """
    if weight.dim() != 4 or weight.shape[1] != 3:
        raise DensekitError(f"bgr: {key} is {tuple(weight.shape)} and reads no three colours; leave bgr out")
    return weight.flip(1)


def is_caffe2(keys: Iterable[str]) -> bool:
    """Whether a file has Caffe2's names of blobs, such as ``res2_0_branch2a_w``."""
    return any(found is not None and found["stage"] is not None for found in map(_CAFFE2.fullmatch, keys))


def from_caffe2(blobs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Caffe2's blobs under torchvision's names.

    Its norms are a scale and a shift alone: their mean is 0, and their variance 1 with what a norm adds to it. What its
    optimiser kept (``..._momentum``) is left out; the last layer (``fc1000_w`` or ``pred_w``) keeps its name.
    """
    state: dict[str, Tensor] = {}
    for blob, value in blobs.items():
        if blob.endswith("_momentum"):
            continue
        found = _CAFFE2.fullmatch(blob)
        if found is None:
            state[re.sub(r"_b$", ".bias", re.sub(r"_w$", ".weight", blob))] = value
            continue
        stage, block, branch, bn, rest = found.group("stage", "block", "branch", "bn", "rest")
        part = {None: "conv1", "1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}[branch]
        name = _place(stage, block) + _part(part, bn is not None)
        state[f"{name}.{'bias' if rest == 'b' else 'weight'}"] = value
        if rest == "s":
            state[f"{name}.running_mean"] = torch.zeros_like(value)
            state[f"{name}.running_var"] = torch.ones_like(value) - _EPS
    return state


def advice(*, caffe2: bool, bgr: bool | None) -> str:
    """What to set beside weights with names of Caffe2, or of detectron2.

    Args:
        caffe2: else detectron2.
        bgr: what the config says of the weights: that they learned on blue, green, red; None: nothing.
    """
    if caffe2:
        turned = "" if bgr is False else "the stem was turned from BGR to RGB; "
        return f"names of Caffe2: {turned}MSRA's ResNets also want {_STRAIGHT}"
    if bgr is not None:
        return f"names of detectron2: where they started from MSRA's ResNets, they also want {_STRAIGHT}"
    return (
        "names of detectron2: unless torchvision's were their start, they learned on BGR images and want "
        f"model.backbone.bgr=true, {_STRAIGHT}"
    )


def _place(stage: str | None, block: str | None) -> str:
    return f"layer{int(stage) - 1}.{block}." if stage else ""


def _part(part: str, norm: bool) -> str:
    if part == "shortcut":
        return f"downsample.{1 if norm else 0}"
    return f"bn{part[-1]}" if norm else part
