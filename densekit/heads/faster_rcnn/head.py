"""densekit's own Faster R-CNN (Ren et al. 2015; Lin et al. 2017): no loop over images, no data-dependent shape.

With the defaults and a ResNet-50 it is torchvision's ``fasterrcnn_resnet50_fpn``, number by number; ``torchvision.py``
beside this file carries weights across.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from densekit.errors import DensekitError
from densekit.heads.anchors import Sizes, check_overlaps, check_sizes
from densekit.heads.faster_rcnn.cascade import Cascade
from densekit.heads.faster_rcnn.classes import FEDERATED, SEESAW, Federated, RegionClasses, RegionLoss, Seesaw
from densekit.heads.faster_rcnn.fpn import FPN, AsItIs, LastLevel, Neck, make_neck
from densekit.heads.faster_rcnn.last_stage import LastStage
from densekit.heads.faster_rcnn.roi import FourConvFC, ProposalSamples, RegionHead, TwoFC
from densekit.heads.faster_rcnn.rpn import AnchorSamples, Proposals, RegionProposalNetwork, Regions
from densekit.heads.faster_rcnn.rpn_head import RPNHead
from densekit.layers import NormOption, chosen_norm
from densekit.ops.assignment import box_targets
from densekit.ops.losses import BoxLoss
from densekit.ops.roi_align import Method
from densekit.ops.suppression import NMS
from densekit.registry import HEADS
from densekit.types import Batch, BoxTargets, Detections, Level, Task

CLASSIC_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)


class FasterRCNN(nn.Module):
    """Two-stage detector on the maps of any backbone.

    Args:
        neck: the backbone's maps -> pyramid; announces ``levels`` and, of these, the ``pooled`` ones.
        rpn: first stage.
        roi: second stage.
        stride: of the last map that the neck takes: the padded image is that many times larger.
        before_nms: anchors of each level that enter the suppression of proposals, (in training, in prediction).
        after_nms: proposals of an image that leave it, likewise.
        cascade: further stages that refine the boxes of the second; None where that one has the last word.
    """

    task: Task = "detection"

    def __init__(
        self,
        neck: FPN | LastLevel | AsItIs,
        *,
        rpn: RegionProposalNetwork,
        roi: RegionHead,
        stride: int,
        before_nms: tuple[int, int] = (2000, 1000),
        after_nms: tuple[int, int] = (2000, 1000),
        cascade: Cascade | None = None,
    ) -> None:
        super().__init__()
        self.neck, self.rpn, self.roi, self.cascade = neck, rpn, roi, cascade
        self.stride = stride
        self.before_nms, self.after_nms = before_nms, after_nms

    def regions(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Regions]:
        """The pyramid, and what the first stage says of every anchor."""
        pyramid = self.neck(maps)
        last = maps[self.neck.inputs[-1]]
        return pyramid, self.rpn(pyramid, (last.shape[2] * self.stride, last.shape[3] * self.stride))

    @property
    def runs_last_stage(self) -> bool:
        """Whether the backbone's last stage is the box head, and looks at regions alone."""
        return isinstance(self.roi.box_head, LastStage)

    @property
    def nms_threshold(self) -> float:
        """IoU above which two detections are one object."""
        return self.roi.nms_threshold

    def losses(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """``rpn_objectness``, ``rpn_box``, ``class`` and ``box``: float32 scalars, already weighted.

        Crowd regions are ignored; images without objects train on what is not there.
        """
        return self._losses(*self.regions(maps), batch)

    def predict(self, maps: Sequence[Tensor], batch: Batch) -> Detections:
        """Detections in the pixels of ``batch.images`` cut to ``batch.sizes``, with 0-based labels."""
        return self._detections(*self.regions(maps), batch)

    def losses_and_predictions(self, maps: Sequence[Tensor], batch: Batch) -> tuple[dict[str, Tensor], Detections]:
        """What ``losses`` and ``predict`` give, from one pass of the neck and the first stage."""
        pyramid, regions = self.regions(maps)
        return self._losses(pyramid, regions, batch), self._detections(pyramid, regions, batch)

    def _losses(self, pyramid: Sequence[Tensor], regions: Regions, batch: Batch) -> dict[str, Tensor]:
        targets = self._targets(batch)
        return self.losses_of(pyramid, regions, *self.samples(regions, targets, batch))

    def _detections(self, pyramid: Sequence[Tensor], regions: Regions, batch: Batch) -> Detections:
        proposals = self.proposals(regions, batch.sizes, training=False)
        if self.cascade is not None:
            return self.cascade.predict(self.roi, pyramid, proposals)
        return self.roi.predict(pyramid, proposals)

    def losses_of(
        self, pyramid: Sequence[Tensor], regions: Regions, anchors: AnchorSamples, proposals: ProposalSamples
    ) -> dict[str, Tensor]:
        """The losses of given samples: for comparison with other detectors, and for sampling of one's own."""
        losses = self.rpn.losses(pyramid, regions, anchors)
        if self.cascade is not None:
            return losses | self.cascade.losses(self.roi, pyramid, proposals)
        return losses | self.roi.losses(pyramid, proposals)

    def samples(self, regions: Regions, targets: BoxTargets, batch: Batch) -> tuple[AnchorSamples, ProposalSamples]:
        """The anchors and the proposals that the losses look at."""
        anchors = self.rpn.sample(regions, targets, batch.seeds)
        proposals = self.proposals(regions, batch.sizes, training=True)
        return anchors, self.roi.sample(proposals, targets, batch.seeds)

    def proposals(self, regions: Regions, sizes: Tensor, *, training: bool) -> Proposals:
        """The best boxes of the first stage, as many as training or prediction takes."""
        which = 0 if training else 1
        return self.rpn.proposals(regions, sizes, before_nms=self.before_nms[which], after_nms=self.after_nms[which])

    @staticmethod
    def _targets(batch: Batch) -> BoxTargets:
        return box_targets(batch)


# The options stand in groups, not one a line.
# fmt: off
@HEADS.register
def faster_rcnn(
    levels: Sequence[Level], *, num_classes: int,
    # neck and anchors
    neck: Neck = "fpn", channels: int = 256, neck_norm: NormOption = "none",
    anchor_sizes: Sizes | None = None, anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    # first stage
    rpn_convs: int = 1, rpn_positive_overlap: float = 0.7, rpn_negative_overlap: float = 0.3,
    rpn_samples: int = 256, rpn_positive_fraction: float = 0.5, rpn_before_nms: tuple[int, int] = (2000, 1000),
    rpn_after_nms: tuple[int, int] = (2000, 1000), rpn_nms_threshold: float = 0.7, rpn_score_threshold: float = 0.0,
    rpn_box_loss: BoxLoss = "smooth_l1", rpn_box_weight: float = 1.0,
    # second stage
    box_head: Literal["two_fc", "four_conv_fc"] = "two_fc", box_head_width: int = 1024,
    box_head_norm: NormOption = "none", class_agnostic_boxes: bool = False, pool_size: int = 7, sampling_ratio: int = 2,
    aligned: bool = False, roi_align: Method = "auto", positive_overlap: float = 0.5, negative_overlap: float = 0.5,
    samples: int = 512, positive_fraction: float = 0.25, box_loss: BoxLoss = "smooth_l1", box_weight: float = 1.0,
    class_loss: RegionLoss = "cross_entropy", focal_gamma: float = 2.0, federated: Federated = FEDERATED,
    seesaw: Seesaw = SEESAW, class_counts: tuple[float, ...] | None = None,
    # detections
    nms: NMS = "greedy", nms_threshold: float = 0.5, nms_sigma: float = 0.5, nms_class_agnostic: bool = False,
    nms_candidates: int = 2000, score_threshold: float = 0.05, max_detections: int = 100,
) -> FasterRCNN:
    """Faster R-CNN on any backbone.

    Options of the first stage (``rpn_...``) are explained at ``RegionProposalNetwork`` and ``FasterRCNN``, those of the
    second and of the detections at ``RegionHead`` and ``RegionClasses``. Pairs are (in training, in prediction).
    ``anchor_sizes`` has one tuple a level of the neck (default: 32 to 512 pixels, one a level of the pyramid).

    ``neck`` is the pyramid ``fpn``, or one map: ``c5``, the backbone's last, reduced to ``channels``; ``dc5``, the last
    of a backbone with ``output_stride: 16``, and ``c4``, the last but one, as they are. With ``c4`` the backbone's last
    stage is the box head, and ``pool_size`` the side of what that stage makes of a patch.

    Raises:
        DensekitError: options that do not go together.
    """
    _check("rpn_", rpn_positive_overlap, rpn_negative_overlap, rpn_positive_fraction)
    _check("", positive_overlap, negative_overlap, positive_fraction)
    maps = make_neck(neck, levels, channels=channels, norm=chosen_norm(neck_norm))
    width = maps.levels[0].channels
    sizes = _anchor_sizes(anchor_sizes, maps.levels)
    rpn = RegionProposalNetwork(
        RPNHead(width, anchors=len(sizes[0]) * len(anchor_ratios), convs=rpn_convs), anchor_sizes=sizes,
        anchor_ratios=anchor_ratios, positive_overlap=rpn_positive_overlap, negative_overlap=rpn_negative_overlap,
        samples=rpn_samples, positive_fraction=rpn_positive_fraction, nms_threshold=rpn_nms_threshold,
        score_threshold=rpn_score_threshold, loss=rpn_box_loss, loss_weight=rpn_box_weight,
    )
    second = _box_head(box_head, neck, levels, width, pool_size, box_head_width, box_head_norm)
    classes = RegionClasses(
        class_loss, class_counts, num_classes=num_classes, gamma=focal_gamma, federated=federated, seesaw=seesaw
    )
    roi = RegionHead(
        second, classes=classes, strides=[level.stride for level in maps.pooled],
        pool_size=pool_size * getattr(second, "shrinks", 1), sampling_ratio=sampling_ratio, aligned=aligned,
        roi_align=roi_align, class_agnostic=class_agnostic_boxes,
        positive_overlap=positive_overlap, negative_overlap=negative_overlap, samples=samples,
        positive_fraction=positive_fraction, box_loss=box_loss, box_weight=box_weight,
        nms=nms, nms_threshold=nms_threshold, nms_sigma=nms_sigma, nms_class_agnostic=nms_class_agnostic,
         nms_candidates=nms_candidates, score_threshold=score_threshold, max_detections=max_detections,
    )
    stride = levels[maps.inputs[-1]].stride
    return FasterRCNN(maps, rpn=rpn, roi=roi, stride=stride, before_nms=rpn_before_nms, after_nms=rpn_after_nms)
# fmt: on


def _check(stage: str, positive: float, negative: float, fraction: float) -> None:
    check_overlaps(positive, negative, stage=stage)
    if not 0 < fraction <= 1:
        raise DensekitError(f"{stage}positive_fraction {fraction}: give a share of the samples, above 0 and at most 1")


def _anchor_sizes(given: Sizes | None, levels: Sequence[Level]) -> Sizes:
    if given is None:
        return (CLASSIC_SIZES,) if len(levels) == 1 else tuple((32.0 * 2**i,) for i in range(len(levels)))
    return check_sizes(given, levels)


def _box_head(
    kind: Literal["two_fc", "four_conv_fc"],
    neck: Neck,
    levels: Sequence[Level],
    channels: int,
    size: int,
    width: int,
    norm: NormOption,
) -> TwoFC | FourConvFC | LastStage:
    if neck == "c4":
        if (kind, width, norm) != ("two_fc", 1024, "none"):
            raise DensekitError(
                "with neck 'c4' the backbone's last stage is the box head; leave box_head, box_head_width and "
                "box_head_norm out, or use neck fpn, c5 or dc5"
            )
        return LastStage(levels)
    if kind == "four_conv_fc":
        return FourConvFC(channels, size=size, norm=chosen_norm(norm), width=width)
    if norm != "none":
        raise DensekitError(f"box_head_norm {norm!r} needs convolutions; use box_head: four_conv_fc, or norm none")
    return TwoFC(channels, size=size, width=width)
