"""The region proposal network (Ren et al. 2015, section 3.1), batched over images and with constant shapes.

B images, N padded objects an image, A anchors an image (all levels), C channels, P proposals an image, S samples an
image, k anchors a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from densekit.heads.anchors import Anchors
from densekit.heads.faster_rcnn.rpn_head import RPNHead
from densekit.ops import boxes as box_ops
from densekit.ops.assignment import assign
from densekit.ops.losses import BoxLoss, binary_loss, box_loss, mean_over_ranks
from densekit.ops.nms import best_of, greedy_nms
from densekit.ops.sampling import sample
from densekit.types import BoxTargets

WEIGHTS = (1.0, 1.0, 1.0, 1.0)
SMALLEST_PROPOSAL = 1e-3
STREAM = 1


class Regions(NamedTuple):
    """What the network says of every anchor; float32, without gradient.

    Attributes:
        objectness: [B, A] logits.
        deltas: [B, A, 4] relative to the anchors.
        anchors: [A, 4], level by level.
        per_level: number of anchors of each level.
    """

    objectness: Tensor
    deltas: Tensor
    anchors: Tensor
    per_level: tuple[int, ...]


class AnchorSamples(NamedTuple):
    """The anchors that the losses look at.

    Attributes:
        chosen: [B, S] int64 into the A anchors.
        positive: [B, S] bool.
        valid: [B, S] bool.
        boxes: [B, S, 4] object of each positive.
    """

    chosen: Tensor
    positive: Tensor
    valid: Tensor
    boxes: Tensor


class Proposals(NamedTuple):
    """Boxes that may hold an object, best first.

    Attributes:
        boxes: [B, P, 4] inside the image; zeros where not valid.
        valid: [B, P] bool.
        sizes: [B, 2] (height, width) of the images.
    """

    boxes: Tensor
    valid: Tensor
    sizes: Tensor


class RegionProposalNetwork(nn.Module):
    """Scores anchors, learns them from samples, and turns the best into proposals.

    Args:
        head: gives objectness and deltas of all levels.
        anchor_sizes: sizes in pixels of each level's anchors.
        anchor_ratios: heights over widths, the same on all levels.
        positive_overlap: IoU with an object from which on an anchor is positive.
        negative_overlap: IoU below which it is negative.
        samples: anchors an image in the loss (S).
        positive_fraction: most of them that are positive.
        nms_threshold: IoU above which the worse of two proposals of a level is dropped.
        score_threshold: probability below which an anchor gives no proposal.
        loss: kind of box loss.
        loss_weight: of the box loss.
    """

    def __init__(
        self,
        head: RPNHead,
        *,
        anchor_sizes: Sequence[Sequence[float]],
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        positive_overlap: float = 0.7,
        negative_overlap: float = 0.3,
        samples: int = 256,
        positive_fraction: float = 0.5,
        nms_threshold: float = 0.7,
        score_threshold: float = 0.0,
        loss: BoxLoss = "smooth_l1",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.head = head
        self.anchors = Anchors(anchor_sizes, anchor_ratios)
        self.positive_overlap, self.negative_overlap = positive_overlap, negative_overlap
        self.samples, self.positive_fraction = samples, positive_fraction
        self.nms_threshold, self.score_threshold = nms_threshold, score_threshold
        self.loss, self.loss_weight = loss, loss_weight

    def forward(self, pyramid: Sequence[Tensor], size: tuple[int, int]) -> Regions:
        """Score all anchors.

        Args:
            pyramid: one [B, C, H, W] a level, finest first.
            size: (height, width) of the padded images: the anchors of every level cover it.
        """
        objectness, deltas = self.head(pyramid)
        return Regions(objectness, deltas, *self.anchors(pyramid, size))

    @torch.no_grad()
    def sample(self, regions: Regions, targets: BoxTargets, seeds: Tensor) -> AnchorSamples:
        """Choose the anchors that the losses look at: a pure function of the images' seeds."""
        assigned = assign(
            regions.anchors[None],
            targets,
            positive_overlap=self.positive_overlap,
            negative_overlap=self.negative_overlap,
            best_for_each=True,
        )
        drawn = sample(
            assigned.positive,
            assigned.negative,
            seeds,
            count=self.samples,
            positive_fraction=self.positive_fraction,
            stream=STREAM,
        )
        boxes = rows(targets.boxes, assigned.object.gather(1, drawn.chosen))
        return AnchorSamples(drawn.chosen, drawn.positive, drawn.valid, boxes)

    def losses(self, pyramid: Sequence[Tensor], regions: Regions, samples: AnchorSamples) -> dict[str, Tensor]:
        """``rpn_objectness`` and ``rpn_box``: means over the sampled anchors of the batch (Ren et al. 2015, eq. 1)."""
        objectness, deltas = self.head.at(pyramid, samples.chosen)
        count = mean_over_ranks(samples.valid.sum())
        classes = binary_loss(objectness, samples.positive, samples.valid)
        box = box_loss(
            deltas,
            samples.boxes,
            regions.anchors[samples.chosen],
            samples.positive,
            kind=self.loss,
            weights=WEIGHTS,
        )
        return {"rpn_objectness": classes / count, "rpn_box": self.loss_weight * box / count}

    @torch.no_grad()
    def proposals(self, regions: Regions, sizes: Tensor, *, before_nms: int, after_nms: int) -> Proposals:
        """The best boxes of each image.

        Args:
            regions: of ``forward``.
            sizes: [B, 2] (height, width) of the images inside their padding.
            before_nms: best anchors of each level that enter the suppression.
            after_nms: best boxes of all levels that leave it (P, unless there are fewer anchors).
        """
        scores, place, parts = _best_of_levels(regions, before_nms)
        boxes = box_ops.clip(box_ops.decode(rows(regions.deltas, place), regions.anchors[place], WEIGHTS), sizes)
        valid = box_ops.longer_than(boxes, SMALLEST_PROPOSAL) & (scores.sigmoid() >= self.score_threshold)
        valid = valid & (scores > -torch.inf)
        kept = greedy_nms(boxes, valid, self.nms_threshold, parts=parts)
        scores, order = best_of(torch.where(kept, scores, -torch.inf), after_nms)
        valid = scores > -torch.inf
        return Proposals(torch.where(valid[..., None], rows(boxes, order), 0.0), valid, sizes)


def _best_of_levels(regions: Regions, count: int) -> tuple[Tensor, Tensor, list[int]]:
    """The best ``count`` anchors of each level: [B, n] logits, [B, n] places in 0..A-1, and how many of each level."""
    scores, places, first = [], [], 0
    for number in regions.per_level:  # not by torch.split, whose sizes can't be unknown in an exported graph
        values, place = best_of(regions.objectness.narrow(1, first, number), count)
        scores.append(values)
        places.append(place + first)
        first += number
    return torch.cat(scores, dim=1), torch.cat(places, dim=1), [values.shape[1] for values in scores]


def rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows of each image: [B, n, 4] and [B, m] -> [B, m, 4]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
