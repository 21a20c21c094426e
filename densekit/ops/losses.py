"""Losses of detectors, and the counts that normalise them."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from densekit.ops import boxes as box_ops

BoxLoss = Literal["smooth_l1", "l1", "giou", "diou", "ciou"]
ClassLoss = Literal["cross_entropy", "focal"]

SMOOTH_L1_BETA = 1 / 9
"""Where smooth L1 turns from a parabola into a line: the value of the reference code."""

SEESAW_LEAST = 0.01
"""A label's own probability counts as this at least in the seesaw loss: the value of the reference code."""


def box_loss(
    deltas: Tensor, boxes: Tensor, references: Tensor, mask: Tensor, *, kind: BoxLoss, weights: box_ops.Weights
) -> Tensor:
    """Sum of ``box_losses``."""
    return box_losses(deltas, boxes, references, mask, kind=kind, weights=weights).sum()


def box_losses(
    deltas: Tensor, boxes: Tensor, references: Tensor, mask: Tensor, *, kind: BoxLoss, weights: box_ops.Weights
) -> Tensor:
    """The loss of each box: [...], 0 where ``mask`` is false.

    Args:
        deltas: [..., 4] predictions relative to ``references``.
        boxes: [..., 4] what they should decode to.
        references: [..., 4] anchors or proposals.
        mask: [...] bool; elsewhere the boxes may hold anything.
        kind: ``smooth_l1`` and ``l1`` compare deltas (summed over the four), the others boxes: 1 - overlap.
        weights: of the box coding.
    """
    boxes = torch.where(mask[..., None], boxes.float(), references.float())
    deltas = torch.where(mask[..., None], deltas.float(), 0.0)
    if kind == "smooth_l1" or kind == "l1":
        target = box_ops.encode(boxes, references, weights)
        target = torch.where(mask[..., None], target, 0.0)
        beta = SMOOTH_L1_BETA if kind == "smooth_l1" else 0.0
        return F.smooth_l1_loss(deltas, target, beta=beta, reduction="none").sum(-1)
    overlap = box_ops.aligned_iou(box_ops.decode(deltas, references, weights), boxes, kind)
    return torch.where(mask, 1 - overlap, 0.0)


def class_loss(logits: Tensor, labels: Tensor, mask: Tensor, *, kind: ClassLoss, gamma: float = 2.0) -> Tensor:
    """Sum of the class losses where ``mask`` is true.

    Args:
        logits: [..., K] softmax logits.
        labels: [...] int64.
        mask: [...] bool.
        kind: ``focal`` weighs cross-entropy by (1 - p) ** gamma, p the probability of the label
            (Lin et al. 2017, eq. 4, with a softmax instead of sigmoids).
        gamma: of the focal loss.
    """
    loss = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="none")
    if kind == "focal":
        loss = loss * (1 - torch.exp(-loss)) ** gamma
    return (loss * mask.flatten()).sum()


def federated_loss(logits: Tensor, labels: Tensor, mask: Tensor, taught: Tensor | None) -> Tensor:
    """Sum of the binary cross-entropies of the classes that an image teaches (Zhou et al. 2021, section 5).

    Args:
        logits: [B, S, K].
        labels: [B, S] int64; no class is present where negative.
        mask: [B, S] bool.
        taught: [B, K] bool; None: all classes.
    """
    own = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    counted = mask[..., None].expand_as(own) if taught is None else mask[..., None] & taught[:, None]
    return binary_loss(logits, own, counted)


def seesaw_loss(
    logits: Tensor, labels: Tensor, mask: Tensor, counts: Tensor, *, mitigation: float, compensation: float
) -> Tensor:
    """Sum of the seesaw losses where ``mask`` is true (Wang et al. 2021, equations 2 to 6).

    Args:
        logits: [..., K].
        labels: [...] int64 in 0..K-1.
        mask: [...] bool.
        counts: [K] how often each class occurs; less than once counts as once.
        mitigation: p: classes rarer than the label are punished less.
        compensation: q: classes that are thought likelier than the label are punished more.
    """
    logits, counts = logits.float(), counts.clamp(min=1.0)
    own = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    rarity = (counts / counts[labels][..., None]).clamp(max=1.0) ** mitigation
    likely = logits.detach().softmax(-1)
    mistaken = (likely / likely.gather(-1, labels[..., None]).clamp(min=SEESAW_LEAST)).clamp(min=1.0) ** compensation
    weighed = torch.where(own, logits, logits + (rarity * mistaken).log())
    return class_loss(weighed, labels, mask, kind="cross_entropy")


def binary_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Sum of the binary cross-entropies of [...] logits and [...] bool labels where ``mask`` is true."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return (loss * mask).sum()


def focal_losses(logits: Tensor, labels: Tensor, positive: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """The focal loss of every sigmoid (Lin et al. 2017, eq. 5).

    Args:
        logits: [..., K].
        labels: [...] int64 class in 0..K-1; only of meaning where positive.
        positive: [...] bool: learns its label; elsewhere all classes are to be absent.
        alpha: weight of the label's sigmoid; 1 - alpha is that of the others.
        gamma: how little well-judged ones count.

    Returns:
        [..., K] float32.
    """
    own = (labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)) & positive[..., None]
    wrong = torch.where(own, -logits.float(), logits.float())  # logit of being wrong: one formula for both sides
    return torch.where(own, alpha, 1 - alpha) * wrong.sigmoid() ** gamma * F.softplus(wrong)


def mean_over_ranks(count: Tensor) -> Tensor:
    """The count that a loss is divided by: at least 1, and in distributed training the mean over the ranks.

    Dividing by the mean makes the average of the ranks' gradients (which DDP takes) equal to the gradient of the
    global batch on one rank, however unevenly the samples fall. Without gradients (validation) each rank stands alone.
    """
    count = count.float()
    if torch.is_grad_enabled() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        count = count.clone()
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1.0)
