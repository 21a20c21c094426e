"""Weights of torchvision's ``fasterrcnn_resnet50_fpn``, ``maskrcnn_resnet50_fpn`` and their ``_v2``, there and back.

Beside the names, three things differ: torchvision flattens pooled patches channels first where densekit keeps them
channels last (columns of the first fully connected layer), it has box deltas and a mask for the background class that
nothing reads (dropped; zeros on the way back), and old files name the convolutions of the neck, the first stage and the
masks otherwise (``rpn.head.conv.weight``, ``mask_fcn1.weight``).
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
    ("roi_heads.mask_head.{i}.{rest}", "{head}.mask.convs.{i}.{rest}"),
    ("roi_heads.mask_predictor.conv5_mask.{rest}", "{head}.mask.upsample.{rest}"),
    ("roi_heads.mask_predictor.mask_fcn_logits.{rest}", "{head}.mask.logits.{rest}"),
)
_OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    *((rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.(weight|bias)", rf"roi_heads.mask_head.{i}.0.\1") for i in range(4)),
)
_FLATTENED = ("roi.box_head.fc1.weight", "roi.box_head.fc.weight")
_BACKGROUND = {
    f"{layer}.{part}": rows for layer, rows in (("roi.deltas", 4), ("mask.logits", 1)) for part in ("weight", "bias")
}
"""Rows of the background class that torchvision has and nothing reads."""


def is_torchvision_detector(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of one of torchvision's Faster or Mask R-CNNs."""
    return "roi_heads.box_predictor.cls_score.weight" in state and "rpn.head.cls_logits.weight" in state


def from_torchvision(state: Mapping[str, Tensor], *, head: str, pool_size: int = 7) -> dict[str, Tensor]:
    """Translate torchvision's state dict.

    Args:
        state: of a torchvision Faster or Mask R-CNN with a ResNet-FPN backbone.
        head: name of the detector in ``DenseModel.heads``.
        pool_size: side of the pooled patch.

    Returns:
        Keys ``backbone.*`` and ``heads.<head>.*`` for ``DenseModel.load_state_dict``; label k is torchvision's k + 1.

    Raises:
        DensekitError: a key that no torchvision Faster or Mask R-CNN has.
    """
    result = {}
    for old, value in state.items():
        key = _renamed(old, head)
        if key.endswith(_FLATTENED):
            value = value.reshape(len(value), -1, pool_size, pool_size).permute(0, 2, 3, 1).flatten(1)
        value = value[_background_rows(key) :] if value.dim() else value
        result[key] = value
    return result


def select_classes(state: Mapping[str, Tensor], ids: Sequence[int]) -> dict[str, Tensor]:
    """Keep some of a torchvision detector's classes: its COCO weights have one for each id up to 90, used or not.

    Args:
        state: of a torchvision Faster or Mask R-CNN.
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
    kept = {"cls_score": rows, "bbox_pred": deltas, "mask_fcn_logits": rows}
    return {
        key: value[kept[name]] if key.startswith("roi_heads.") and (name := key.split(".")[-2]) in kept else value
        for key, value in state.items()
    }


def to_torchvision(state: Mapping[str, Tensor], *, head: str, pool_size: int = 7) -> dict[str, Tensor]:
    """Translate a ``DenseModel``'s state dict to torchvision's keys; what is not of backbone or ``head`` is left out.

    Args:
        state: with the defaults of ``faster_rcnn`` or ``mask_rcnn`` (pyramid, one box and one mask a class).
        head: name of the detector in ``DenseModel.heads``.
        pool_size: side of the pooled patch.
    """
    result = {}
    for key, value in state.items():
        if not key.startswith(("backbone.", f"heads.{head}.")):
            continue
        if key.endswith(_FLATTENED):
            value = value.reshape(len(value), pool_size, pool_size, -1).permute(0, 3, 1, 2).flatten(1)
        if rows := _background_rows(key):
            value = torch.cat([torch.zeros_like(value[:rows]), value])
        result[_original(key, head)] = value
    return result


def _background_rows(key: str) -> int:
    return next((rows for name, rows in _BACKGROUND.items() if key.endswith(name)), 0)


def _renamed(key: str, head: str) -> str:
    current = key
    for pattern, template in _OLD_NAMES:
        current = re.sub(f"^{pattern}$", template, current)
    for theirs, ours in _NAMES:
        if found := _fields(theirs, current):
            return ours.format(head=f"heads.{head}", **found)
    raise DensekitError(f"{key!r} is no key of torchvision's ResNet-FPN Faster or Mask R-CNN; give such a state dict")


def _original(key: str, head: str) -> str:
    for theirs, ours in _NAMES:
        if found := _fields(ours.replace("{head}", f"heads.{head}"), key):
            return theirs.format(**found)
    raise DensekitError(f"{key!r} has no counterpart in torchvision's ResNet-FPN Faster or Mask R-CNN")


def _fields(template: str, key: str) -> dict[str, str]:
    """What ``{i}`` (a number) and ``{rest}`` (anything) stand for in ``key``; empty where the template does not fit."""
    pattern = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{rest\}", "(?P<rest>.+)")
    match = re.fullmatch(pattern, key)
    return match.groupdict() if match else {}
