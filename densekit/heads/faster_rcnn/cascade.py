"""Further box stages, each learned from the boxes of the one before (Cai and Vasconcelos 2018, section 4).

B images, N padded objects an image, P proposals an image, S samples an image, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from densekit.heads.faster_rcnn.roi import SMALLEST_DETECTION, ProposalSamples, RegionHead
from densekit.heads.faster_rcnn.rpn import Proposals, rows
from densekit.ops import boxes as box_ops
from densekit.ops.assignment import assign
from densekit.types import Detections


class Cascade(nn.Module):
    """The stages after the first; each refines the boxes of the one before and is stricter in what it calls an object.

    Args:
        stages: class-agnostic second stages; ``positive_overlap`` of each is its strictness.
        weights: of the losses of the first stage and of these.
    """

    def __init__(self, stages: Sequence[RegionHead], *, weights: Sequence[float]) -> None:
        super().__init__()
        assert len(weights) == len(stages) + 1
        self.stages = nn.ModuleList(stages)
        self.weights = tuple(weights)

    def losses(self, first: RegionHead, pyramid: Sequence[Tensor], samples: ProposalSamples) -> dict[str, Tensor]:
        """``class`` and ``box`` of the first stage, ``class_2``, ``box_2`` and so on of the others, weighted."""
        logits, deltas = first(pyramid, samples.proposals)
        losses = {name: self.weights[0] * loss for name, loss in first.losses_of(logits, deltas, samples).items()}
        before = first
        for number, (stage, weight) in enumerate(zip(self._stages(), self.weights[1:]), start=2):
            samples = _again(samples, before, deltas, overlap=stage.positive_overlap)
            logits, deltas = stage(pyramid, samples.proposals)
            own = stage.losses_of(logits, deltas, samples)
            losses |= {f"{name}_{number}": weight * loss for name, loss in own.items()}
            before = stage
        return losses

    @torch.no_grad()
    def predict(self, first: RegionHead, pyramid: Sequence[Tensor], proposals: Proposals) -> Detections:
        """Detections of the last stage's boxes, with the mean of all stages' probabilities."""
        logits, deltas = first(pyramid, proposals.boxes)
        probabilities, before = first.classes.probabilities(logits), first
        for stage in self._stages():
            boxes = _refined(before, deltas, proposals.boxes, proposals.sizes)
            proposals = proposals._replace(boxes=torch.where(proposals.valid[..., None], boxes, 0.0))
            logits, deltas = stage(pyramid, proposals.boxes)
            probabilities, before = probabilities + stage.classes.probabilities(logits), stage
        return before.detections(probabilities / len(self.weights), deltas, proposals)

    def _stages(self) -> list[RegionHead]:
        return [stage for stage in self.stages if isinstance(stage, RegionHead)]


def _refined(stage: RegionHead, deltas: Tensor, boxes: Tensor, sizes: Tensor) -> Tensor:
    """What a stage makes of its boxes [B, P, 4]."""
    return box_ops.clip(box_ops.decode(deltas[:, :, 0].detach(), boxes, stage.weights), sizes)


@torch.no_grad()
def _again(samples: ProposalSamples, before: RegionHead, deltas: Tensor, *, overlap: float) -> ProposalSamples:
    """The same samples with refined boxes, which may belong to other objects now: none is drawn anew."""
    boxes = _refined(before, deltas, samples.proposals, samples.sizes)
    targets = samples.targets
    assigned = assign(boxes, targets, positive_overlap=overlap, negative_overlap=overlap, best_for_each=False)
    usable = samples.valid & box_ops.longer_than(boxes, SMALLEST_DETECTION)
    labels = torch.where(assigned.positive & usable, targets.labels.gather(1, assigned.object) + 1, 0)
    return samples._replace(
        proposals=torch.where(usable[..., None], boxes, 0.0),
        labels=labels,
        valid=usable & (assigned.positive | assigned.negative),
        boxes=rows(targets.boxes, assigned.object),
        objects=assigned.object,
    )
