"""The second stage (Girshick 2015): pool each proposal's features, classify it and refine its box.

B images, N padded objects an image, P proposals an image, S samples an image, R = all regions of the batch, C channels,
K classes (logit 0 is "nothing", logit k + 1 is class k), D detections an image, M candidates an image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.heads.faster_rcnn.classes import RegionClasses
from densekit.heads.faster_rcnn.last_stage import LastStage
from densekit.heads.faster_rcnn.rpn import Proposals, rows
from densekit.layers import ConvNormAct, Norm, init_convs
from densekit.ops import boxes as box_ops
from densekit.ops.assignment import assign
from densekit.ops.losses import BoxLoss, box_loss, mean_over_ranks
from densekit.ops.nms import best_of
from densekit.ops.roi_align import Method, roi_align
from densekit.ops.sampling import sample
from densekit.ops.suppression import NMS, Suppression
from densekit.precision import in_float32
from densekit.types import BoxTargets, Detections
from densekit.weight_gradients import Linear

WEIGHTS: box_ops.Weights = (10.0, 10.0, 5.0, 5.0)
SMALLEST_DETECTION = 1e-2
STREAM = 2


class ProposalSamples(NamedTuple):
    """The proposals that the losses look at, positives first.

    Attributes:
        proposals: [B, S, 4].
        labels: [B, S] int64 logit to learn: 0 is "nothing", k + 1 is class k.
        valid: [B, S] bool.
        boxes: [B, S, 4] box of each positive's object.
        objects: [B, S] int64 in 0..N-1: the object itself.
        targets: all objects of the images.
        sizes: [B, 2] (height, width) of the images.
        taught: [B, K] bool: the classes that each image teaches; None: all.
    """

    proposals: Tensor
    labels: Tensor
    valid: Tensor
    boxes: Tensor
    objects: Tensor
    targets: BoxTargets
    sizes: Tensor
    taught: Tensor | None = None


class TwoFC(nn.Module):
    """Two fully connected layers (Lin et al. 2017, section 4.2).

    Args:
        channels: C.
        size: side of the pooled patch.
        width: outputs of each layer.
    """

    def __init__(self, channels: int, *, size: int, width: int = 1024) -> None:
        super().__init__()
        self.width = width
        self.fc1 = Linear(channels * size**2, width)
        self.fc2 = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, size, size] -> [R, width]."""
        return F.relu(self.fc2(F.relu(self.fc1(_flat(x)))))


class FourConvFC(nn.Module):
    """Four 3 x 3 convolutions, then one fully connected layer (Wu and He 2018, section 5.2, "4conv1fc").

    Args:
        channels: C.
        size: side of the pooled patch.
        norm: after each convolution.
        width: outputs of the last layer.
    """

    def __init__(self, channels: int, *, size: int, norm: Norm | None = None, width: int = 1024) -> None:
        super().__init__()
        self.width = width
        self.convs = nn.Sequential(*(ConvNormAct(channels, channels, kernel=3, norm=norm) for _ in range(4)))
        self.fc = Linear(channels * size**2, width)

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, size, size] -> [R, width]."""
        return F.relu(self.fc(_flat(self.convs(x))))


def _flat(x: Tensor) -> Tensor:
    """[R, C, h, w] -> [R, h * w * C]: pooled patches lie channels last, so this moves nothing."""
    return x.permute(0, 2, 3, 1).flatten(1)


class RegionHead(nn.Module):
    """Classifies and refines proposals, learns from samples of them.

    Args:
        box_head: pooled patches -> [R, ``box_head.width``].
        classes: how it tells classes.
        strides: of the levels that are pooled, finest first.
        pool_size: side of the pooled patch.
        sampling_ratio: samples a bin and direction of RoIAlign.
        aligned: half-cell shift of RoIAlign.
        roi_align: way to compute it, see ``ops/roi_align.py``.
        class_agnostic: one box a proposal instead of one a class.
        positive_overlap: IoU with an object from which on a proposal is positive.
        negative_overlap: IoU below which it is negative.
        samples: proposals an image in the loss (S).
        positive_fraction: most of them that are positive.
        box_loss: kind of box loss.
        box_weight: of the box loss.
        nms: kind of suppression.
        nms_threshold: IoU above which ``greedy`` drops and ``soft_linear`` lowers the worse of two.
        nms_sigma: of ``soft_gaussian``.
        nms_class_agnostic: detections of different classes suppress one another too.
        nms_candidates: best (proposal, class) pairs of an image that enter the suppression (M).
        score_threshold: lowest score of a detection.
        max_detections: D.
        weights: factors of the box deltas (x, y, width, height).
    """

    float32_parts = ("scores", "deltas")

    def __init__(
        self,
        box_head: TwoFC | FourConvFC | LastStage,
        *,
        classes: RegionClasses,
        strides: Sequence[int],
        pool_size: int = 7,
        sampling_ratio: int = 2,
        aligned: bool = False,
        roi_align: Method = "auto",
        class_agnostic: bool = False,
        positive_overlap: float = 0.5,
        negative_overlap: float = 0.5,
        samples: int = 512,
        positive_fraction: float = 0.25,
        box_loss: BoxLoss = "smooth_l1",
        box_weight: float = 1.0,
        nms: NMS = "greedy",
        nms_threshold: float = 0.5,
        nms_sigma: float = 0.5,
        nms_class_agnostic: bool = False,
        nms_candidates: int = 2000,
        score_threshold: float = 0.05,
        max_detections: int = 100,
        weights: box_ops.Weights = WEIGHTS,
    ) -> None:
        super().__init__()
        self.box_head, self.weights = box_head, weights
        self.classes, self.num_classes, self.strides = classes, len(classes.counts), tuple(strides)
        self.pool_size, self.sampling_ratio, self.aligned, self.roi_align = (
            pool_size,
            sampling_ratio,
            aligned,
            roi_align,
        )
        self.class_agnostic = class_agnostic
        self.positive_overlap, self.negative_overlap = positive_overlap, negative_overlap
        self.samples, self.positive_fraction = samples, positive_fraction
        self.box_loss, self.box_weight = box_loss, box_weight
        self.nms, self.nms_threshold, self.nms_sigma = nms, nms_threshold, nms_sigma
        self.nms_class_agnostic, self.nms_candidates = nms_class_agnostic, nms_candidates
        self.score_threshold, self.max_detections = score_threshold, max_detections
        self.scores = nn.Linear(box_head.width, self.num_classes + 1)
        self.deltas = nn.Linear(box_head.width, 4 * (1 if class_agnostic else self.num_classes))
        self._draw()

    def _draw(self) -> None:
        for layer, std in ((self.scores, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.classes.start(self.scores)

    def another(self, *, overlap: float, weights: box_ops.Weights) -> RegionHead:
        """A stage of the same form with parameters of its own, drawn anew.

        Args:
            overlap: IoU with an object from which on a box is positive; below it is negative.
            weights: factors of the box deltas.
        """
        stage = copy.deepcopy(self)
        stage.positive_overlap, stage.negative_overlap, stage.weights = overlap, overlap, weights
        for module in stage.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
        init_convs(stage.box_head)
        stage._draw()
        return stage

    def forward(self, pyramid: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Look at regions.

        Args:
            pyramid: one [B, C, H, W] a level, finest first; levels beyond ``strides`` are not used.
            boxes: [B, P, 4].

        Returns:
            [B, P, K + 1] logits and [B, P, K, 4] deltas (1 instead of K if class-agnostic), float32 in any autocast.
        """
        pooled = roi_align(
            pyramid[: len(self.strides)],
            boxes,
            self.strides,
            output_size=self.pool_size,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            method=self.roi_align,
        )
        features = self.box_head(pooled)
        with in_float32(features.device):
            features = features.float()
            logits, deltas = self.scores(features), self.deltas(features)
        return logits.unflatten(0, boxes.shape[:2]), deltas.reshape(*boxes.shape[:2], -1, 4)

    @torch.no_grad()
    def sample(self, proposals: Proposals, targets: BoxTargets, seeds: Tensor) -> ProposalSamples:
        """Choose the proposals that the losses look at, the objects' own boxes among them."""
        real = targets.valid & ~targets.crowd
        boxes = torch.cat([proposals.boxes, targets.boxes], dim=1)
        valid = torch.cat([proposals.valid, real], dim=1)
        assigned = assign(
            boxes,
            targets,
            positive_overlap=self.positive_overlap,
            negative_overlap=self.negative_overlap,
            best_for_each=False,
        )
        drawn = sample(
            assigned.positive & valid,
            assigned.negative & valid,
            seeds,
            count=self.samples,
            positive_fraction=self.positive_fraction,
            stream=STREAM,
        )
        target = assigned.object.gather(1, drawn.chosen)
        labels = torch.where(drawn.positive, targets.labels.gather(1, target) + 1, 0)
        chosen, found = rows(boxes, drawn.chosen), rows(targets.boxes, target)
        taught = self.classes.taught(targets, seeds)
        return ProposalSamples(chosen, labels, drawn.valid, found, target, targets, proposals.sizes, taught)

    def losses(self, pyramid: Sequence[Tensor], samples: ProposalSamples) -> dict[str, Tensor]:
        """Losses over the sampled proposals of the batch (Girshick 2015, eq. 1): ``class``, ``box``.

        Means over the samples; the focal loss is divided by the positives (Lin et al. 2017, section 4.1).
        """
        logits, deltas = self(pyramid, samples.proposals)
        return self.losses_of(logits, deltas, samples)

    def losses_of(self, logits: Tensor, deltas: Tensor, samples: ProposalSamples) -> dict[str, Tensor]:
        """The losses of what ``forward`` gave for the sampled proposals."""
        count = mean_over_ranks(samples.valid.sum())
        positive = samples.valid & (samples.labels > 0)
        if not self.class_agnostic:
            place = (samples.labels - 1).clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
            deltas = deltas.gather(2, place)
        own, kind = deltas[:, :, 0], self.box_loss
        box = box_loss(own, samples.boxes, samples.proposals, positive, kind=kind, weights=self.weights)
        cls = self.classes.loss(logits, samples.labels, samples.valid, samples.taught)
        over = mean_over_ranks(positive.sum()) if self.classes.kind == "focal" else count
        return {"class": cls / over, "box": self.box_weight * box / count}

    @torch.no_grad()
    def predict(self, pyramid: Sequence[Tensor], proposals: Proposals) -> Detections:
        """Detections in the pixels of the images, cut to their sizes."""
        logits, deltas = self(pyramid, proposals.boxes)
        return self.detections(self.classes.probabilities(logits), deltas, proposals)

    @torch.no_grad()
    def detections(self, probabilities: Tensor, deltas: Tensor, proposals: Proposals) -> Detections:
        """Detections of [B, P, K + 1] probabilities and [B, P, K or 1, 4] deltas of the proposals."""
        scores = probabilities[..., 1:]  # [B, P, K]
        scores = torch.where(proposals.valid[..., None] & (scores > self.score_threshold), scores, 0.0).flatten(1)
        scores, pair = best_of(scores, self.nms_candidates)  # [B, M]
        region, labels = pair // self.num_classes, pair % self.num_classes
        deltas = rows(deltas.flatten(1, 2), region if self.class_agnostic else pair)
        boxes = box_ops.clip(box_ops.decode(deltas, rows(proposals.boxes, region), self.weights), proposals.sizes)
        valid = (scores > 0) & box_ops.longer_than(boxes, SMALLEST_DETECTION)
        return self._suppression(boxes, torch.where(valid, scores, 0.0), labels)

    @property
    def _suppression(self) -> Suppression:
        return Suppression(
            self.nms,
            self.nms_threshold,
            self.nms_sigma,
            self.nms_class_agnostic,
            self.score_threshold,
            self.max_detections,
        )
