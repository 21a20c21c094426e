"""FCOS (Tian et al. 2019, arXiv 1904.01355): every point of the pyramid inside an object's middle finds its box.

With the defaults and a ResNet-50 it is torchvision's ``fcos_resnet50_fpn``, number by number; ``torchvision.py`` beside
this file carries weights across.

B images, N padded objects an image, A points an image (all levels), K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.errors import DensekitError
from densekit.heads.dense.detector import DenseDetector
from densekit.heads.dense.pyramid import DensePyramid
from densekit.heads.dense.towers import best_candidates, by_place, output
from densekit.layers import Norm, NormOption, chosen_norm
from densekit.ops import boxes as box_ops
from densekit.ops.kept import ByShape
from densekit.ops.losses import binary_loss, mean_over_ranks
from densekit.ops.points import Points, assign_points, boxes_around, centerness, grid_points
from densekit.ops.suppression import NMS, Suppression
from densekit.precision import in_float32
from densekit.registry import HEADS
from densekit.types import BoxTargets, Detections, Level


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


class FCOS(DenseDetector[Judged]):
    """A ``DenseDetector`` whose places are points, one a cell.

    Args:
        neck: see ``DenseDetector``, with the options that are not here.
        radius: points within this many strides of an object's centre may learn it.
        offset: of a point in its cell, in cells: 0 as torchvision has it, 0.5 as the paper (section 3.1).
        box_loss: overlap whose distance from 1 is the box loss.
    """

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
        super().__init__(
            neck, num_classes=num_classes, stride=stride, places=1, convs=convs, norm=norm, bias=True, prior=prior,
            focal_alpha=focal_alpha, focal_gamma=focal_gamma, box_weight=box_weight,
            candidates=candidates, suppression=suppression,
        )  # fmt: skip
        channels = neck.levels[0].channels
        self.distances, self.centerness = output(channels, 4), output(channels, 1)
        self.radius, self.offset, self.box_loss = radius, offset, box_loss
        self._kept = ByShape()

    def judge(self, maps: Sequence[Tensor]) -> Judged:
        """Run the neck and both towers over all levels."""
        pyramid, classes, boxes, size = self._towers(maps)
        # In float32 under any autocast: coarse distances move boxes by pixels, coarse scores tie.
        with in_float32(pyramid[0].device):
            logits = self._class_logits(classes)
            distances = by_place([F.relu(self.distances(x)) for x in boxes], 4)
            middle = by_place([self.centerness(x) for x in boxes], 1)[..., 0]
        grids = tuple((x.shape[2], x.shape[3]) for x in pyramid)
        strides = [level.stride for level in self.neck.levels]
        lay_out = functools.partial(grid_points, grids, size, strides, offset=self.offset, device=logits.device)
        points = self._kept((grids, size), pyramid[0], lay_out)
        return Judged(logits, distances, middle, points)

    def _losses(self, judged: Judged, targets: BoxTargets) -> dict[str, Tensor]:
        """``class``, ``box`` and ``centerness``: sums over the points of the batch divided by its positives."""
        assigned = assign_points(judged.points, targets, radius=self.radius)
        positive = assigned.positive
        objects = targets.boxes.gather(1, assigned.object[..., None].expand(-1, -1, 4))
        found = boxes_around(judged.points, judged.distances)
        # Elsewhere both are the same box, so that no gradient is undefined.
        objects = torch.where(positive[..., None], objects, boxes_around(judged.points, torch.ones_like(found)))
        found = torch.where(positive[..., None], found, objects)
        boxes = torch.where(positive, 1 - box_ops.aligned_iou(found, objects, self.box_loss), 0.0)
        middle = binary_loss(judged.centerness, centerness(judged.points, objects), positive)
        count = mean_over_ranks(positive.sum())
        return {
            "class": self._class_losses(judged.logits, assigned, targets).sum() / count,
            "box": self.box_weight * boxes.sum() / count,
            "centerness": middle / count,
        }

    @torch.no_grad()
    def _detections(self, judged: Judged, sizes: Tensor) -> Detections:
        best = best_candidates(
            judged.logits,
            judged.points.per_level,
            count=self.candidates,
            threshold=self.suppression.score_threshold,
            quality=judged.centerness,
        )
        boxes = boxes_around(judged.points, judged.distances)
        boxes = box_ops.clip(boxes.gather(1, best.places[..., None].expand(-1, -1, 4)), sizes)
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

    Options are explained at ``FCOS``, ``DenseDetector``, ``DensePyramid`` and ``Suppression``.

    Raises:
        DensekitError: a probability or radius that makes no sense.
    """
    if radius <= 0:
        raise DensekitError(f"radius {radius}: no point would learn an object; give strides above 0, such as 1.5")
    neck = DensePyramid(levels, channels=channels, norm=chosen_norm(neck_norm), coarse_from=coarse_from)
    return FCOS(
        neck, num_classes=num_classes, stride=levels[-1].stride,
        convs=convs, norm=chosen_norm(norm), prior=prior, radius=radius, offset=offset,
        focal_alpha=focal_alpha, focal_gamma=focal_gamma, box_loss=box_loss, box_weight=box_weight,
        candidates=candidates,
        suppression=Suppression(nms, nms_threshold, nms_sigma, nms_class_agnostic, score_threshold, max_detections),
    )
# fmt: on
