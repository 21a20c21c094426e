"""Mask R-CNN (He et al. 2017): a detector that also tells which pixels of a box are its object's.

With the defaults and a ResNet-50 it is torchvision's ``maskrcnn_resnet50_fpn``, number by number;
``faster_rcnn/torchvision.py`` carries weights across.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from densekit.errors import DensekitError
from densekit.heads.faster_rcnn.head import FasterRCNN, faster_rcnn
from densekit.heads.faster_rcnn.last_stage import LastStage
from densekit.heads.faster_rcnn.rpn import Regions
from densekit.heads.mask_rcnn.mask import MaskHead
from densekit.layers import NormOption, chosen_norm
from densekit.registry import HEADS
from densekit.types import Batch, BoxTargets, Detections


class MaskRCNN(FasterRCNN):
    """Two-stage detector with a third branch.

    Args:
        detector: whose neck and stages it takes over.
        mask: the branch.
    """

    learns_masks = True

    def __init__(self, detector: FasterRCNN, mask: MaskHead) -> None:
        super().__init__(
            detector.neck,
            rpn=detector.rpn,
            roi=detector.roi,
            stride=detector.stride,
            before_nms=detector.before_nms,
            after_nms=detector.after_nms,
            cascade=detector.cascade,
        )
        self.mask = mask

    def _losses(self, pyramid: Sequence[Tensor], regions: Regions, batch: Batch) -> dict[str, Tensor]:
        """Those of ``FasterRCNN``, and ``mask``; objects without a mask have no part in the latter."""
        targets = self._targets(batch)
        anchors, proposals = self.samples(regions, targets, batch)
        losses = self.losses_of(pyramid, regions, anchors, proposals)
        return losses | self.mask.losses(pyramid, proposals, targets, batch.sizes)

    def _detections(self, pyramid: Sequence[Tensor], regions: Regions, batch: Batch) -> Detections:
        found = super()._detections(pyramid, regions, batch)
        return dataclasses.replace(found, masks=self.mask.predict(pyramid, found))

    @staticmethod
    def _targets(batch: Batch) -> BoxTargets:
        targets = FasterRCNN._targets(batch)
        if targets.masks is None:
            raise DensekitError(
                "the losses of mask_rcnn need a mask of each object, but the data set gives none; use one with "
                "polygons or run lengths, or the head faster_rcnn, which learns boxes alone"
            )
        return targets


@HEADS.extend(faster_rcnn)
def mask_rcnn(
    detector: FasterRCNN,
    *,
    mask_convs: int = 4,
    mask_channels: int = 256,
    mask_norm: NormOption = "none",
    class_agnostic_masks: bool = False,
    mask_pool_size: int = 14,
    mask_weight: float = 1.0,
) -> MaskRCNN:
    """Mask R-CNN on any backbone: all that ``faster_rcnn`` has, and a mask of each detection.

    The options of the masks are explained at ``MaskHead``. RoIAlign of the masks is that of the boxes
    (``sampling_ratio``, ``aligned``, ``roi_align``), for patches of ``mask_pool_size``; masks have twice its side. With
    ``neck: c4`` these are the patches that the backbone's last stage makes: detectron2's has ``mask_pool_size: 7`` and
    ``mask_convs: 0`` there.

    Raises:
        DensekitError: options that make no mask head.
    """
    for name, value, least in (
        ("mask_convs", mask_convs, 0), ("mask_channels", mask_channels, 1), ("mask_pool_size", mask_pool_size, 1),
    ):  # fmt: skip
        if value < least:
            raise DensekitError(f"{name} {value}: give {least} or more")
    roi = detector.roi
    stage = roi.box_head if isinstance(roi.box_head, LastStage) else None
    mask = MaskHead(
        detector.neck.pooled[0].channels if stage is None else stage.width,
        stage=stage,
        num_classes=roi.num_classes,
        strides=roi.strides,
        convs=mask_convs,
        width=mask_channels,
        norm=chosen_norm(mask_norm),
        class_agnostic=class_agnostic_masks,
        pool_size=mask_pool_size,
        sampling_ratio=roi.sampling_ratio,
        aligned=roi.aligned,
        roi_align=roi.roi_align,
        most=max(1, int(roi.samples * roi.positive_fraction)),
        weight=mask_weight,
    )
    return MaskRCNN(detector, mask)
