"""RetinaNet (Lin et al. 2017, "Focal loss for dense object detection"), batched and with constant shapes.

With the defaults and a ResNet-50 it is torchvision's ``retinanet_resnet50_fpn``, number by number; ``torchvision.py``
beside this file carries weights across.

B images, N padded objects an image, A anchors an image (all levels), k anchors a cell, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from densekit.heads.anchors import Anchors, Sizes, check_overlaps, check_sizes
from densekit.heads.dense.detector import DenseDetector
from densekit.heads.dense.pyramid import DensePyramid
from densekit.heads.dense.towers import best_candidates, by_place, output
from densekit.layers import Norm, NormOption, chosen_norm
from densekit.ops import boxes as box_ops
from densekit.ops.assignment import assign
from densekit.ops.losses import BoxLoss, box_losses
from densekit.ops.suppression import NMS, Suppression
from densekit.precision import in_float32
from densekit.registry import HEADS
from densekit.types import BoxTargets, Detections, Level

WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class Judged(NamedTuple):
    """What the towers say of every anchor, float32.

    Attributes:
        logits: [B, A, K].
        deltas: [B, A, 4] relative to the anchors.
        anchors: [A, 4], level by level.
        per_level: number of anchors of each level.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    per_level: tuple[int, ...]


class RetinaNet(DenseDetector[Judged]):
    """A ``DenseDetector`` whose places are anchors.

    Args:
        neck: see ``DenseDetector``, with the options that are not here.
        anchors: of its levels.
        positive_overlap: IoU with an object from which on an anchor learns it.
        negative_overlap: IoU below which it learns that there is nothing; in between it is ignored.
        box_loss: kind of box loss.
    """

    float32_parts = ("logits", "deltas")

    def __init__(
        self,
        neck: DensePyramid,
        *,
        num_classes: int,
        stride: int,
        anchors: Anchors,
        convs: int,
        norm: Norm | None,
        prior: float,
        positive_overlap: float,
        negative_overlap: float,
        focal_alpha: float,
        focal_gamma: float,
        box_loss: BoxLoss,
        box_weight: float,
        candidates: int,
        suppression: Suppression,
    ) -> None:
        super().__init__(
            neck, num_classes=num_classes, stride=stride, places=anchors.each, convs=convs, norm=norm, bias=False,
            prior=prior, focal_alpha=focal_alpha, focal_gamma=focal_gamma, box_weight=box_weight,
            candidates=candidates, suppression=suppression,
        )  # fmt: skip
        self.anchors = anchors
        self.deltas = output(neck.levels[0].channels, anchors.each * 4)
        self.positive_overlap, self.negative_overlap = positive_overlap, negative_overlap
        self.box_loss = box_loss

    def judge(self, maps: Sequence[Tensor]) -> Judged:
        """Run the neck and both towers over all levels."""
        pyramid, classes, boxes, size = self._towers(maps)
        # In float32 under any autocast: coarse deltas move boxes by pixels, coarse scores tie.
        with in_float32(pyramid[0].device):
            logits, deltas = self._class_logits(classes), by_place([self.deltas(x) for x in boxes], 4)
        return Judged(logits, deltas, *self.anchors(pyramid, size))

    def _losses(self, judged: Judged, targets: BoxTargets) -> dict[str, Tensor]:
        """``class`` and ``box``: sums over the anchors of an image divided by its positives, and of these the mean.

        So torchvision has it.
        """
        assigned = assign(
            judged.anchors[None],
            targets,
            positive_overlap=self.positive_overlap,
            negative_overlap=self.negative_overlap,
            best_for_each=True,
        )
        classes = self._class_losses(judged.logits, assigned, targets).sum(1)  # [B]
        objects = targets.boxes.gather(1, assigned.object[..., None].expand(-1, -1, 4))
        anchors, kind = judged.anchors.expand_as(objects), self.box_loss
        boxes = box_losses(judged.deltas, objects, anchors, assigned.positive, kind=kind, weights=WEIGHTS).sum(1)
        positives = assigned.positive.sum(1).clamp(min=1)
        return {"class": (classes / positives).mean(), "box": self.box_weight * (boxes / positives).mean()}

    @torch.no_grad()
    def _detections(self, judged: Judged, sizes: Tensor) -> Detections:
        best = best_candidates(
            judged.logits, judged.per_level, count=self.candidates, threshold=self.suppression.score_threshold
        )
        deltas = judged.deltas.gather(1, best.places[..., None].expand(-1, -1, 4))
        boxes = box_ops.clip(box_ops.decode(deltas, judged.anchors[best.places], WEIGHTS), sizes)
        return self.suppression(boxes, best.scores, best.labels)


# The options stand in groups, not one a line.
# fmt: off
@HEADS.register
def retinanet(
    levels: Sequence[Level], *, num_classes: int,
    # neck and anchors
    channels: int = 256, neck_norm: NormOption = "none", coarse_from: Literal["c5", "p5"] = "p5",
    anchor_sizes: Sizes | None = None, anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    # towers
    convs: int = 4, norm: NormOption = "none", prior: float = 0.01,
    # losses
    positive_overlap: float = 0.5, negative_overlap: float = 0.4, focal_alpha: float = 0.25, focal_gamma: float = 2.0,
    box_loss: BoxLoss = "l1", box_weight: float = 1.0,
    # detections
    candidates: int = 1000, nms: NMS = "greedy", nms_threshold: float = 0.5, nms_sigma: float = 0.5,
    nms_class_agnostic: bool = False, score_threshold: float = 0.05, max_detections: int = 300,
) -> RetinaNet:
    """RetinaNet on any backbone.

    Options are explained at ``RetinaNet``, ``DenseDetector``, ``DensePyramid`` and ``Suppression``. ``anchor_sizes``
    has one tuple a level (default: three sizes from 32 to 812 pixels on each, a third of an octave apart).
    torchvision's ``retinanet_resnet50_fpn_v2`` is ``coarse_from: c5, norm: group, box_loss: giou``.

    Raises:
        DensekitError: options that do not go together.
    """
    check_overlaps(positive_overlap, negative_overlap)
    neck = DensePyramid(levels, channels=channels, norm=chosen_norm(neck_norm), coarse_from=coarse_from)
    return RetinaNet(
        neck, num_classes=num_classes, stride=levels[-1].stride,
        anchors=Anchors(_anchor_sizes(anchor_sizes, neck.levels), anchor_ratios),
        convs=convs, norm=chosen_norm(norm), prior=prior,
        positive_overlap=positive_overlap, negative_overlap=negative_overlap,
        focal_alpha=focal_alpha, focal_gamma=focal_gamma, box_loss=box_loss, box_weight=box_weight,
        candidates=candidates,
        suppression=Suppression(nms, nms_threshold, nms_sigma, nms_class_agnostic, score_threshold, max_detections),
    )
# fmt: on


def _anchor_sizes(given: Sizes | None, levels: Sequence[Level]) -> Sizes:
    if given is None:
        # Whole pixels, as in the reference code: 32, 40, 50 on the finest level.
        bases = [32 * 2**i for i in range(len(levels))]
        return tuple(tuple(float(int(base * 2 ** (third / 3))) for third in range(3)) for base in bases)
    return check_sizes(given, levels)
