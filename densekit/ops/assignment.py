"""Which object each anchor or proposal is to learn, for a whole batch at once.

B images, N padded objects an image, A candidates (anchors or proposals) an image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from densekit.ops import boxes as box_ops
from densekit.types import Batch, BoxTargets, DensekitError, InstanceMasks


class Assignment(NamedTuple):
    """What each candidate is to learn; a candidate that is neither positive nor negative is ignored.

    Attributes:
        object: [B, A] int64: the object with the best overlap; only of meaning where positive.
        positive: [B, A] bool: learns its object.
        negative: [B, A] bool: learns that there is nothing.
    """

    object: Tensor
    positive: Tensor
    negative: Tensor


@torch.no_grad()
def assign(
    candidates: Tensor,
    targets: BoxTargets,
    *,
    positive_overlap: float,
    negative_overlap: float,
    best_for_each: bool,
    crowd_overlap: float = 0.5,
) -> Assignment:
    """Match candidates with the objects of their image by IoU (Ren et al. 2015, section 3.1.2).

    Args:
        candidates: [B, A, 4], or [1, A, 4] where all images share them.
        targets: N >= 1 objects an image, padding included.
        positive_overlap: IoU from which on a candidate learns an object.
        negative_overlap: IoU below which it learns that there is nothing; in between it is ignored.
        best_for_each: every object also gets the candidates (with ties) that overlap it best, however little.
        crowd_overlap: share of a candidate's area inside a crowd region from which on it is not taken as negative:
            what is in there is not known.
    """
    common = box_ops.intersection(targets.boxes, candidates)  # [B, N, A]
    areas = box_ops.area(candidates)
    crowd = _inside_crowd(common, areas, targets) >= crowd_overlap
    union = (box_ops.area(targets.boxes)[:, :, None] + areas[:, None]).sub_(common)
    real = (targets.valid & ~targets.crowd)[:, :, None]
    overlaps = (common / union).masked_fill_(~real, -1.0)
    best, index = overlaps.max(dim=1)
    positive = best >= positive_overlap
    if best_for_each:
        top = overlaps.amax(dim=2, keepdim=True)  # [B, N, 1]
        # An object that no candidate touches has a best overlap of 0 with all of them: it gets none.
        top = top.masked_fill(top <= 0, 2.0)
        positive = positive | (overlaps == top).any(dim=1)
    return Assignment(index, positive, (best < negative_overlap) & ~positive & ~crowd)


def _inside_crowd(common: Tensor, areas: Tensor, targets: BoxTargets) -> Tensor:
    """[B, A]: the largest share of each candidate's area inside one crowd region."""
    regions = (targets.valid & targets.crowd)[:, :, None]
    return (common * regions).amax(dim=1) / areas.clamp(min=box_ops.SMALLEST_SIDE**2)


def box_targets(batch: Batch) -> BoxTargets:
    """The boxes that a batch is to be learned from, N >= 1.

    Raises:
        DensekitError: it has none.
    """
    if batch.targets is None or batch.targets.boxes is None:
        raise DensekitError("the detector's losses need boxes, but the data set gives none; use a COCO data set")
    return at_least_one(batch.targets.boxes)


def at_least_one(targets: BoxTargets) -> BoxTargets:
    """The same targets with N >= 1: a batch without any object gets one column of padding."""
    if targets.boxes.shape[1]:
        return targets
    shape = (targets.boxes.shape[0], 1)
    empty, masks = targets.valid.new_zeros(shape), targets.masks
    if masks is not None:
        masks = InstanceMasks(masks.pixels, masks.starts.new_zeros(shape), masks.cuts.new_zeros(*shape, 4))
    return BoxTargets(targets.boxes.new_zeros(*shape, 4), targets.labels.new_zeros(shape), empty, empty, masks)
