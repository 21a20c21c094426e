"""RetinaNet (Lin et al. 2017, "Focal loss for dense object detection"), batched and with constant shapes.

With the defaults and a ResNet-50 it is torchvision's ``retinanet_resnet50_fpn``, number by number; ``torchvision.py``
beside this file carries weights across.

B images, N padded objects an image, A anchors an image (all levels), k anchors a cell, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from densekit.errors import DensekitError
from densekit.heads.anchors import Anchors, Sizes, check_overlaps, check_sizes
from densekit.heads.dense.pyramid import DensePyramid
from densekit.heads.dense.towers import Tower, best_candidates, by_place, output
from densekit.layers import Norm
from densekit.ops import boxes as box_ops
from densekit.ops.assignment import assign, at_least_one
from densekit.ops.losses import BoxLoss, box_losses, focal_losses
from densekit.ops.suppression import NMS, Suppression
from densekit.registry import HEADS
from densekit.types import Batch, Detections, Level, Task

NormOption = Literal["none", "batch", "group", "frozen", "sync"]
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


class RetinaNet(nn.Module):
    """One-stage detector on the maps of any backbone.

    Args:
        neck: the backbone's maps -> pyramid; announces ``levels``.
        num_classes: K.
        stride: of the backbone's last map: the padded image is that many times larger.
        anchor_sizes: sizes in pixels of each level's anchors.
        anchor_ratios: heights over widths, the same on all levels.
        convs: of each tower.
        norm: in the towers.
        prior: probability of every class before training (section 4.1).
        positive_overlap: IoU with an object from which on an anchor learns it.
        negative_overlap: IoU below which it learns that there is nothing; in between it is ignored.
        focal_alpha: weight of a label's sigmoid in the focal loss; the others' is 1 - alpha.
        focal_gamma: of the focal loss.
        box_loss: kind of box loss.
        box_weight: of the box loss.
        candidates: best (anchor, class) pairs of a level that enter the suppression.
        suppression: from candidates to detections.
    """

    task: Task = "detection"
    float32_parts = ("logits", "deltas")

    def __init__(
        self,
        neck: DensePyramid,
        *,
        num_classes: int,
        stride: int,
        anchor_sizes: Sequence[Sequence[float]],
        anchor_ratios: Sequence[float],
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
        super().__init__()
        self.neck, self.num_classes, self.stride = neck, num_classes, stride
        channels = neck.levels[0].channels
        self.anchors = Anchors(anchor_sizes, anchor_ratios)
        self.class_tower = Tower(channels, convs=convs, norm=norm, bias=False)
        self.box_tower = Tower(channels, convs=convs, norm=norm, bias=False)
        self.logits = output(channels, self.anchors.each * num_classes, bias=-math.log((1 - prior) / prior))
        self.deltas = output(channels, self.anchors.each * 4)
        self.positive_overlap, self.negative_overlap = positive_overlap, negative_overlap
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.box_loss, self.box_weight = box_loss, box_weight
        self.candidates, self.suppression = candidates, suppression

    @property
    def nms_threshold(self) -> float:
        """IoU above which two detections are one object."""
        return self.suppression.threshold

    def judge(self, maps: Sequence[Tensor]) -> Judged:
        """Run the neck and both towers over all levels."""
        pyramid = self.neck(maps)
        size = (maps[-1].shape[2] * self.stride, maps[-1].shape[3] * self.stride)
        classes, boxes = [self.class_tower(x) for x in pyramid], [self.box_tower(x) for x in pyramid]
        # In float32 under any autocast: coarse deltas move boxes by pixels, coarse scores tie.
        with torch.autocast(pyramid[0].device.type, enabled=False):
            logits = by_place([self.logits(x.float()) for x in classes], self.num_classes)
            deltas = by_place([self.deltas(x.float()) for x in boxes], 4)
        return Judged(logits, deltas, *self.anchors(pyramid, size))

    def losses(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """``class`` and ``box``: float32 scalars, already weighted.

        Sums over the anchors of an image divided by its positives, and of these the mean over the batch (as torchvision
        has it). Crowd regions are ignored; images without objects train on what is not there.
        """
        return self._losses(self.judge(maps), batch)

    def predict(self, maps: Sequence[Tensor], batch: Batch) -> Detections:
        """Detections in the pixels of ``batch.images`` cut to ``batch.sizes``, with 0-based labels."""
        return self._detections(self.judge(maps), batch)

    def losses_and_predictions(self, maps: Sequence[Tensor], batch: Batch) -> tuple[dict[str, Tensor], Detections]:
        """What ``losses`` and ``predict`` give, from one pass of the towers."""
        judged = self.judge(maps)
        return self._losses(judged, batch), self._detections(judged, batch)

    def _losses(self, judged: Judged, batch: Batch) -> dict[str, Tensor]:
        if batch.targets is None or batch.targets.boxes is None:
            raise DensekitError("the detector's losses need boxes, but the data set gives none; use a COCO data set")
        targets = at_least_one(batch.targets.boxes)
        assigned = assign(
            judged.anchors[None],
            targets,
            positive_overlap=self.positive_overlap,
            negative_overlap=self.negative_overlap,
            best_for_each=True,
        )
        labels = targets.labels.gather(1, assigned.object)
        classes = focal_losses(
            judged.logits, labels, assigned.positive, alpha=self.focal_alpha, gamma=self.focal_gamma
        ).sum(-1)
        classes = (classes * (assigned.positive | assigned.negative)).sum(1)  # [B]
        objects = targets.boxes.gather(1, assigned.object[..., None].expand(-1, -1, 4))
        anchors = judged.anchors.expand_as(objects)
        boxes = box_losses(judged.deltas, objects, anchors, assigned.positive, kind=self.box_loss, weights=WEIGHTS).sum(
            1
        )
        positives = assigned.positive.sum(1).clamp(min=1)
        return {"class": (classes / positives).mean(), "box": self.box_weight * (boxes / positives).mean()}

    @torch.no_grad()
    def _detections(self, judged: Judged, batch: Batch) -> Detections:
        best = best_candidates(
            judged.logits, judged.per_level, count=self.candidates, threshold=self.suppression.score_threshold
        )
        deltas = judged.deltas.gather(1, best.places[..., None].expand(-1, -1, 4))
        boxes = box_ops.clip(box_ops.decode(deltas, judged.anchors[best.places], WEIGHTS), batch.sizes)
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

    Options are explained at ``RetinaNet``, ``DensePyramid`` and ``Suppression``. ``anchor_sizes`` has one tuple a level
    of the pyramid (default: three sizes from 32 to 812 pixels on each, a third of an octave apart).
    torchvision's ``retinanet_resnet50_fpn_v2`` is ``coarse_from: c5, norm: group, box_loss: giou``.

    Raises:
        DensekitError: options that do not go together.
    """
    check_overlaps(positive_overlap, negative_overlap)
    if not 0 < prior < 1:
        raise DensekitError(f"prior {prior}: give a probability between 0 and 1, such as 0.01")
    neck = DensePyramid(levels, channels=channels, norm=_norm(neck_norm), coarse_from=coarse_from)
    return RetinaNet(
        neck, num_classes=num_classes, stride=levels[-1].stride,
        anchor_sizes=_anchor_sizes(anchor_sizes, neck.levels), anchor_ratios=anchor_ratios,
        convs=convs, norm=_norm(norm), prior=prior,
        positive_overlap=positive_overlap, negative_overlap=negative_overlap,
        focal_alpha=focal_alpha, focal_gamma=focal_gamma, box_loss=box_loss, box_weight=box_weight,
        candidates=candidates,
        suppression=Suppression(nms, nms_threshold, nms_sigma, nms_class_agnostic, score_threshold, max_detections),
    )
# fmt: on


def _norm(option: NormOption) -> Norm | None:
    return None if option == "none" else option


def _anchor_sizes(given: Sizes | None, levels: Sequence[Level]) -> Sizes:
    if given is None:
        # Whole pixels, as in the reference code: 32, 40, 50 on the finest level.
        bases = [32 * 2**i for i in range(len(levels))]
        return tuple(tuple(float(int(base * 2 ** (third / 3))) for third in range(3)) for base in bases)
    return check_sizes(given, levels)
