"""FCOS (Tian et al. 2019, arXiv 1904.01355): every point of the pyramid inside an object's middle finds its box.

With the defaults and a ResNet-50 it is torchvision's ``fcos_resnet50_fpn``, number by number; ``torchvision.py`` beside
this file carries weights across.

B images, N padded objects an image, A points an image (all levels), K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.errors import DensekitError
from densekit.heads.dense.pyramid import DensePyramid
from densekit.heads.dense.towers import Tower, best_candidates, by_place, output
from densekit.layers import Norm
from densekit.ops import boxes as box_ops
from densekit.ops.assignment import at_least_one
from densekit.ops.losses import binary_loss, focal_losses, mean_over_ranks
from densekit.ops.points import Points, assign_points, boxes_around, centerness, grid_points
from densekit.ops.suppression import NMS, Suppression
from densekit.registry import HEADS
from densekit.types import Batch, Detections, Level, Task

NormOption = Literal["none", "batch", "group", "frozen", "sync"]


class Judged(NamedTuple):
    """What the towers say of every point, float32.

    Attributes:
        logits: [B, A, K].
        distances: [B, A, 4] to the left, top, right and bottom of its box, in strides; not negative.
        centerness: [B, A] logits.
        points: where they are.
    """

    logits: Tensor
    distances: Tensor
    centerness: Tensor
    points: Points


class FCOS(nn.Module):
    """One-stage detector without anchors on the maps of any backbone.

    Args:
        neck: the backbone's maps -> pyramid; announces ``levels``.
        num_classes: K.
        stride: of the backbone's last map: the padded image is that many times larger.
        convs: of each tower.
        norm: in the towers.
        prior: probability of every class before training.
        radius: points within this many strides of an object's centre may learn it.
        offset: of a point in its cell, in cells: 0 as torchvision has it, 0.5 as the paper (section 3.1).
        focal_alpha: weight of a label's sigmoid in the focal loss; the others' is 1 - alpha.
        focal_gamma: of the focal loss.
        box_loss: overlap whose distance from 1 is the box loss.
        box_weight: of the box loss.
        candidates: best (point, class) pairs of a level that enter the suppression.
        suppression: from candidates to detections.
    """

    task: Task = "detection"
    float32_parts = ("logits", "distances", "centerness")

    def __init__(
        self,
        neck: DensePyramid,
        *,
        num_classes: int,
        stride: int,
        convs: int,
        norm: Norm | None,
        prior: float,
        radius: float,
        offset: float,
        focal_alpha: float,
        focal_gamma: float,
        box_loss: box_ops.IoUKind,
        box_weight: float,
        candidates: int,
        suppression: Suppression,
    ) -> None:
        super().__init__()
        self.neck, self.num_classes, self.stride = neck, num_classes, stride
        channels = neck.levels[0].channels
        self.class_tower = Tower(channels, convs=convs, norm=norm, bias=True)
        self.box_tower = Tower(channels, convs=convs, norm=norm, bias=True)
        self.logits = output(channels, num_classes, bias=-math.log((1 - prior) / prior))
        self.distances, self.centerness = output(channels, 4), output(channels, 1)
        self.radius, self.offset = radius, offset
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
        # In float32 under any autocast: coarse distances move boxes by pixels, coarse scores tie.
        with torch.autocast(pyramid[0].device.type, enabled=False):
            logits = by_place([self.logits(x.float()) for x in classes], self.num_classes)
            distances = by_place([F.relu(self.distances(x.float())) for x in boxes], 4)
            middle = by_place([self.centerness(x.float()) for x in boxes], 1)[..., 0]
        grids = [(x.shape[2], x.shape[3]) for x in pyramid]
        strides = [level.stride for level in self.neck.levels]
        points = grid_points(grids, size, strides, offset=self.offset, device=logits.device)
        return Judged(logits, distances, middle, points)

    def losses(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """``class``, ``box`` and ``centerness``: float32 scalars, already weighted.

        Sums over the points of the batch divided by its positives. Points in crowd regions are ignored; images without
        objects train on what is not there.
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
        assigned = assign_points(judged.points, targets, radius=self.radius)
        positive = assigned.positive
        labels = targets.labels.gather(1, assigned.object)
        classes = focal_losses(judged.logits, labels, positive, alpha=self.focal_alpha, gamma=self.focal_gamma).sum(-1)
        objects = targets.boxes.gather(1, assigned.object[..., None].expand(-1, -1, 4))
        found = boxes_around(judged.points, judged.distances)
        # Elsewhere both are the same box, so that no gradient is undefined.
        objects = torch.where(positive[..., None], objects, boxes_around(judged.points, torch.ones_like(found)))
        found = torch.where(positive[..., None], found, objects)
        boxes = torch.where(positive, 1 - box_ops.aligned_iou(found, objects, self.box_loss), 0.0)
        middle = binary_loss(judged.centerness, centerness(judged.points, objects), positive)
        count = mean_over_ranks(positive.sum())
        return {
            "class": (classes * (positive | assigned.negative)).sum() / count,
            "box": self.box_weight * boxes.sum() / count,
            "centerness": middle / count,
        }

    @torch.no_grad()
    def _detections(self, judged: Judged, batch: Batch) -> Detections:
        best = best_candidates(
            judged.logits,
            judged.points.per_level,
            count=self.candidates,
            threshold=self.suppression.score_threshold,
            quality=judged.centerness,
        )
        boxes = boxes_around(judged.points, judged.distances)
        boxes = box_ops.clip(boxes.gather(1, best.places[..., None].expand(-1, -1, 4)), batch.sizes)
        return self.suppression(boxes, best.scores, best.labels)


# The options stand in groups, not one a line.
# fmt: off
@HEADS.register
def fcos(
    levels: Sequence[Level], *, num_classes: int,
    # neck
    channels: int = 256, neck_norm: NormOption = "none", coarse_from: Literal["c5", "p5"] = "p5",
    # towers
    convs: int = 4, norm: NormOption = "group", prior: float = 0.01,
    # losses
    radius: float = 1.5, offset: float = 0.0, focal_alpha: float = 0.25, focal_gamma: float = 2.0,
    box_loss: box_ops.IoUKind = "giou", box_weight: float = 1.0,
    # detections
    candidates: int = 1000, nms: NMS = "greedy", nms_threshold: float = 0.6, nms_sigma: float = 0.5,
    nms_class_agnostic: bool = False, score_threshold: float = 0.2, max_detections: int = 100,
) -> FCOS:
    """FCOS on any backbone.

    Options are explained at ``FCOS``, ``DensePyramid`` and ``Suppression``.

    Raises:
        DensekitError: a probability or radius that makes no sense.
    """
    if not 0 < prior < 1:
        raise DensekitError(f"prior {prior}: give a probability between 0 and 1, such as 0.01")
    if radius <= 0:
        raise DensekitError(f"radius {radius}: no point would learn an object; give strides above 0, such as 1.5")
    neck = DensePyramid(
        levels, channels=channels, norm=None if neck_norm == "none" else neck_norm, coarse_from=coarse_from
    )
    return FCOS(
        neck, num_classes=num_classes, stride=levels[-1].stride,
        convs=convs, norm=None if norm == "none" else norm, prior=prior, radius=radius, offset=offset,
        focal_alpha=focal_alpha, focal_gamma=focal_gamma, box_loss=box_loss, box_weight=box_weight,
        candidates=candidates,
        suppression=Suppression(nms, nms_threshold, nms_sigma, nms_class_agnostic, score_threshold, max_detections),
    )
# fmt: on
