"""Weights of torchvision's ``retinanet_resnet50_fpn``, its ``_v2``, and ``fcos_resnet50_fpn``.

Beside the names one thing differs: torchvision's classes begin with a background, or with the unused id 0, that is
never learned; the rows of the data set's own classes are taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from densekit.types import DensekitError

_LOGITS = "head.classification_head.cls_logits.bias"
_BOXES = "head.regression_head.bbox_reg.bias"
_CENTERNESS = "head.regression_head.bbox_ctrness.bias"

_NAMES = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.(?:0\.)?(weight|bias)", r"HEAD.neck.fpn.lateral.\1.0.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.(?:0\.)?(weight|bias)", r"HEAD.neck.fpn.output.\1.0.\2"),
    (r"backbone\.fpn\.extra_blocks\.(p6|p7)\.(.+)", r"HEAD.neck.\1.\2"),
    (r"head\.classification_head\.conv\.(.+)", r"HEAD.class_tower.\1"),
    (r"head\.regression_head\.conv\.(.+)", r"HEAD.box_tower.\1"),
    (r"head\.classification_head\.cls_logits\.(.+)", r"HEAD.logits.\1"),
    (r"head\.regression_head\.bbox_ctrness\.(.+)", r"HEAD.centerness.\1"),
)


def is_torchvision_dense(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of torchvision's RetinaNet or FCOS."""
    return _LOGITS in state and _BOXES in state


def from_torchvision_dense(state: Mapping[str, Tensor], *, head: str, ids: Sequence[int]) -> dict[str, Tensor]:
    """Translate torchvision's state dict.

    Args:
        state: of a torchvision RetinaNet or FCOS with a ResNet-FPN backbone.
        head: name of the detector in ``DenseModel.heads``.
        ids: of the data set's classes. A detector of just one class more has its background first; else the ids are
            torchvision's labels, as those of its COCO weights are.

    Returns:
        Keys ``backbone.*`` and ``heads.<head>.*`` for ``DenseModel.load_state_dict``.

    Raises:
        DensekitError: an id that the detector has no class for, or a key that no such detector has.
    """
    points = _CENTERNESS in state
    each = 1 if points else len(state[_BOXES]) // 4
    held = len(state[_LOGITS]) // each
    rows = torch.arange(1, held) if held == len(ids) + 1 else torch.tensor(list(ids))
    if not bool(((rows >= 0) & (rows < held)).all()):
        raise DensekitError(
            f"the detector has classes 0 to {held - 1}, the data set's ids run from {min(ids)} to {max(ids)}; use the "
            f"data set that the detector was trained on, or give it as model.backbone.weights"
        )
    result = {}
    for old, value in state.items():
        key = _renamed(old, points).replace("HEAD", f"heads.{head}", 1)
        if "cls_logits" in old:
            value = value.reshape(each, held, *value.shape[1:])[:, rows].flatten(0, 1)
        result[key] = value
    return result


def _renamed(key: str, points: bool) -> str:
    if found := re.fullmatch(r"head\.regression_head\.bbox_reg\.(.+)", key):
        return f"HEAD.{'distances' if points else 'deltas'}.{found[1]}"
    for pattern, name in _NAMES:
        if re.fullmatch(pattern, key):
            return _in_tower(re.sub(pattern, name, key), points)
    raise DensekitError(f"{key!r} is no key of torchvision's RetinaNet or FCOS; give such a state dict")


def _in_tower(name: str, points: bool) -> str:
    """The place of a layer in its tower, where torchvision counts norms and ReLUs as layers of one sequence."""
    found = re.fullmatch(r"(HEAD\.(?:class|box)_tower)\.(\d+)\.(weight|bias)", name)
    if found is None:
        return name
    step = 3 if points else 2  # convolution, norm, ReLU; convolution, ReLU in RetinaNets of older files
    layer, part = divmod(int(found[2]), step)
    return f"{found[1]}.{layer}.{part}.{found[3]}"
