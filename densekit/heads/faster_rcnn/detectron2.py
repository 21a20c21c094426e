"""Weights of detectron2's Faster, Mask and Cascade R-CNNs, on a pyramid, on C4 or on a dilated C5.

Beside the names, three things differ: detectron2's background is the last class, not the first; the anchors of a cell
go size by size, not ratio by ratio; pooled patches are flattened channels first (columns of the first fully connected
layer). The keys of its backbones are taken as ``backbones/detectron2.py`` leaves them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from densekit.types import DensekitError

_STAGE = r"(?:\.(?P<stage>\d))?"  # of a cascade
_PART = r"(?P<norm>\.norm)?\.(?P<rest>weight|bias|running_mean|running_var)"
_NAMES = (
    (r"backbone\.bottom_up\.(?P<rest>.+)", "backbone.{rest}"),
    (r"roi_heads\.layer4\.(?P<rest>.+)", "backbone.layer4.{rest}"),
    (rf"backbone\.fpn_lateral(?P<i>\d){_PART}", "{head}.neck.lateral.{level}.{part}.{rest}"),
    (rf"backbone\.fpn_output(?P<i>\d){_PART}", "{head}.neck.output.{level}.{part}.{rest}"),
    (r"backbone\.(?P<rest>.+)", "backbone.{rest}"),
    (r"proposal_generator\.rpn_head\.conv\.(?P<rest>weight|bias)", "{head}.rpn.head.convs.0.{rest}"),
    (r"proposal_generator\.rpn_head\.conv\.conv(?P<i>\d)\.(?P<rest>weight|bias)", "{head}.rpn.head.convs.{i}.{rest}"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(?P<rest>.+)", "{head}.rpn.head.objectness.{rest}"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(?P<rest>.+)", "{head}.rpn.head.deltas.{rest}"),
    (rf"roi_heads\.box_head{_STAGE}\.conv(?P<i>\d){_PART}", "{head}.{roi}.box_head.convs.{before}.{part}.{rest}"),
    (rf"roi_heads\.box_head{_STAGE}\.fc(?P<i>\d)\.(?P<rest>.+)", "{head}.{roi}.box_head.fc{i}.{rest}"),
    (rf"roi_heads\.box_predictor{_STAGE}\.cls_score\.(?P<rest>.+)", "{head}.{roi}.scores.{rest}"),
    (rf"roi_heads\.box_predictor{_STAGE}\.bbox_pred\.(?P<rest>.+)", "{head}.{roi}.deltas.{rest}"),
    (rf"roi_heads\.mask_head\.mask_fcn(?P<i>\d){_PART}", "{head}.mask.convs.{before}.{part}.{rest}"),
    (r"roi_heads\.mask_head\.deconv\.(?P<rest>.+)", "{head}.mask.upsample.{rest}"),
    (r"roi_heads\.mask_head\.predictor\.(?P<rest>.+)", "{head}.mask.logits.{rest}"),
)
_NO_WEIGHTS = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.")


def is_detectron2_detector(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of one of detectron2's two-stage detectors."""
    return "proposal_generator.rpn_head.objectness_logits.weight" in state


def from_detectron2(
    state: Mapping[str, Tensor], *, head: str, classes: int, sizes: int, pool_size: int
) -> dict[str, Tensor]:
    """Translate detectron2's state dict.

    Args:
        state: of a Faster, Mask or Cascade R-CNN whose backbone's keys are torchvision's.
        head: name of the detector in ``DenseModel.heads``.
        classes: of the detector.
        sizes: of the anchors of a cell.
        pool_size: side of the pooled patch.

    Returns:
        Keys ``backbone.*`` and ``heads.<head>.*`` for ``DenseModel.load_state_dict``, labels in detectron2's order.

    Raises:
        DensekitError: other classes, or a key that no such detector has.
    """
    state = {key: value for key, value in state.items() if not key.startswith(_NO_WEIGHTS)}
    result = {}
    for key, value in state.items():
        name = _renamed(key, head)
        if name.endswith("box_head.fc1.weight"):
            value = value.reshape(len(value), -1, pool_size, pool_size).permute(0, 2, 3, 1).flatten(1)
        elif ".scores." in name:
            if len(value) != classes + 1:
                raise DensekitError(
                    f"the detector tells {len(value) - 1} classes, the data set has {classes}; use the data set that "
                    f"it was trained on, or give it as model.backbone.weights"
                )
            value = value.roll(1, 0)
        elif ".rpn.head.objectness." in name or ".rpn.head.deltas." in name:
            value = _ratio_by_ratio(value, sizes, each=4 if ".deltas." in name else 1)
        result[name] = value
    if any(".box_head.convs." in name for name in result):  # there the only fully connected layer has no number
        result = {name.replace(".box_head.fc1.", ".box_head.fc."): value for name, value in result.items()}
    return result


def _ratio_by_ratio(rows: Tensor, sizes: int, *, each: int) -> Tensor:
    """Rows of the anchors of a cell, ``each`` of them an anchor, from size by size to ratio by ratio."""
    ratios = len(rows) // (sizes * each)
    if ratios * sizes * each != len(rows):
        return rows  # of other anchors than the model has: its shape will be refused
    order = torch.arange(sizes * ratios).view(sizes, ratios).T.flatten()
    return rows.view(-1, each, *rows.shape[1:])[order].flatten(0, 1)


def _renamed(key: str, head: str) -> str:
    for pattern, template in _NAMES:
        if (found := re.fullmatch(pattern, key)) is not None:
            parts = found.groupdict()
            number, stage = int(parts.get("i") or 0), int(parts.get("stage") or 0)
            return template.format(
                head=f"heads.{head}",
                roi="roi" if stage == 0 else f"cascade.stages.{stage - 1}",
                i=number,
                before=number - 1,
                level=number - 2,
                part=1 if parts.get("norm") else 0,
                rest=parts["rest"],
            )
    raise DensekitError(
        f"{key!r} is no key of detectron2's Faster, Mask or Cascade R-CNN with a ResNet; give such a state dict"
    )
