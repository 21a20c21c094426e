"""Weights of torchvision's ``fasterrcnn_resnet50_fpn`` and ``fasterrcnn_resnet50_fpn_v2``, there and back.

Beside the names, three things differ: torchvision flattens pooled patches channels first where densekit keeps them
channels last (columns of the first fully connected layer), it has box deltas for the background class that nothing
reads (dropped; zeros on the way back), and old files name the convolutions of the neck and the first stage without a
position (``rpn.head.conv.weight``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from densekit.types import DensekitError

_NAMES = (
    ("backbone.body.{rest}", "backbone.{rest}"),
    ("backbone.fpn.inner_blocks.{i}.{rest}", "{head}.neck.lateral.{i}.{rest}"),
    ("backbone.fpn.layer_blocks.{i}.{rest}", "{head}.neck.output.{i}.{rest}"),
    ("rpn.head.conv.{i}.0.{rest}", "{head}.rpn.head.convs.{i}.{rest}"),
    ("rpn.head.cls_logits.{rest}", "{head}.rpn.head.objectness.{rest}"),
    ("rpn.head.bbox_pred.{rest}", "{head}.rpn.head.deltas.{rest}"),
    ("roi_heads.box_head.fc6.{rest}", "{head}.roi.box_head.fc1.{rest}"),
    ("roi_heads.box_head.fc7.{rest}", "{head}.roi.box_head.fc2.{rest}"),
    ("roi_heads.box_head.5.{rest}", "{head}.roi.box_head.fc.{rest}"),
    ("roi_heads.box_head.{i}.{rest}", "{head}.roi.box_head.convs.{i}.{rest}"),
    ("roi_heads.box_predictor.cls_score.{rest}", "{head}.roi.scores.{rest}"),
    ("roi_heads.box_predictor.bbox_pred.{rest}", "{head}.roi.deltas.{rest}"),
)
_OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
)
_FLATTENED = ("roi.box_head.fc1.weight", "roi.box_head.fc.weight")
_DELTAS = ("roi.deltas.weight", "roi.deltas.bias")


def is_torchvision_detector(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of one of torchvision's Faster R-CNNs."""
    return "roi_heads.box_predictor.cls_score.weight" in state and "rpn.head.cls_logits.weight" in state


def from_torchvision(state: Mapping[str, Tensor], *, head: str, pool_size: int = 7) -> dict[str, Tensor]:
    """Translate torchvision's state dict.

    Args:
        state: of a torchvision Faster R-CNN with a ResNet-FPN backbone.
        head: name of the detector in ``DenseModel.heads``.
        pool_size: side of the pooled patch.

    Returns:
        Keys ``backbone.*`` and ``heads.<head>.*`` for ``DenseModel.load_state_dict``; label k is torchvision's k + 1.

    Raises:
        DensekitError: a key that no torchvision Faster R-CNN has.
    """
    result = {}
    for old, value in state.items():
        key = _renamed(old, head)
        if key.endswith(_FLATTENED):
            value = value.reshape(len(value), -1, pool_size, pool_size).permute(0, 2, 3, 1).flatten(1)
        elif key.endswith(_DELTAS):
            value = value[4:]
        result[key] = value
    return result


def select_classes(state: Mapping[str, Tensor], ids: Sequence[int]) -> dict[str, Tensor]:
    """Keep some of a torchvision detector's classes: its COCO weights have one for each id up to 90, used or not.

    Args:
        state: of a torchvision Faster R-CNN.
        ids: torchvision's labels (COCO's category ids) in the order of the data set's classes; 0 is its background.

    Raises:
        DensekitError: an id that the detector has no class for.
    """
    held = len(state["roi_heads.box_predictor.cls_score.bias"])
    if not all(0 < i < held for i in ids):
        raise DensekitError(
            f"the detector has classes 1 to {held - 1}, the data set's ids run from {min(ids)} to {max(ids)}; use the "
            f"data set that the detector was trained on, or give it as model.backbone.weights"
        )
    rows = torch.tensor([0, *ids])
    deltas = (4 * rows[:, None] + torch.arange(4)).flatten()
    kept = {"cls_score": rows, "bbox_pred": deltas}
    return {
        key: value[kept[name]] if key.startswith("roi_heads.") and (name := key.split(".")[-2]) in kept else value
        for key, value in state.items()
    }


def to_torchvision(state: Mapping[str, Tensor], *, head: str, pool_size: int = 7) -> dict[str, Tensor]:
    """Translate a ``DenseModel``'s state dict to torchvision's keys; what is not of backbone or ``head`` is left out.

    Args:
        state: with the defaults of ``faster_rcnn`` (pyramid, one box a class).
        head: name of the detector in ``DenseModel.heads``.
        pool_size: side of the pooled patch.
    """
    result = {}
    for key, value in state.items():
        if not key.startswith(("backbone.", f"heads.{head}.")):
            continue
        if key.endswith(_FLATTENED):
            value = value.reshape(len(value), pool_size, pool_size, -1).permute(0, 3, 1, 2).flatten(1)
        elif key.endswith(_DELTAS):
            value = torch.cat([torch.zeros_like(value[:4]), value])
        result[_original(key, head)] = value
    return result


def _renamed(key: str, head: str) -> str:
    current = key
    for pattern, template in _OLD_NAMES:
        current = re.sub(f"^{pattern}$", template, current)
    for theirs, ours in _NAMES:
        if found := _fields(theirs, current):
            return ours.format(head=f"heads.{head}", **found)
    raise DensekitError(f"{key!r} is no key of torchvision's ResNet-FPN Faster R-CNN; give such a state dict")


def _original(key: str, head: str) -> str:
    for theirs, ours in _NAMES:
        if found := _fields(ours.replace("{head}", f"heads.{head}"), key):
            return theirs.format(**found)
    raise DensekitError(f"{key!r} has no counterpart in torchvision's ResNet-FPN Faster R-CNN")


def _fields(template: str, key: str) -> dict[str, str]:
    """What ``{i}`` (a number) and ``{rest}`` (anything) stand for in ``key``; empty where the template does not fit."""
    pattern = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{rest\}", "(?P<rest>.+)")
    match = re.fullmatch(pattern, key)
    return match.groupdict() if match else {}
