"""Losses over the pixels of an image: cross-entropy, BCE, focal, Dice, Jaccard, Tversky and Lovász.

Each gives smp's or torch's number wherever theirs is defined (the tests hold it) and differs from them where they fail:

* a pixel of the label ``IGNORE`` adds nothing, to no loss and to no count that a loss is divided by;
* a batch without a pixel to learn from gives zero with a gradient, where theirs give NaN or raise;
* shapes are fixed and nothing is read back to the host, so that a step compiles whole and does not wait for the GPU;
* counts and overlaps are summed over ranks, so that two ranks give the loss of one rank with the whole batch. Lovász
  alone sorts the pixels of its own rank.

Convention: logits [B, C, H, W] in any float type, computed in float32; ``multiclass``: C = K, masks [B, H, W] of class
indices; ``binary``: C = 1, masks [B, H, W] of 0 and 1; ``multilabel``: C = K, masks [B, K, H, W] of 0 and 1, or
[B, H, W] of class indices, which are then one class a pixel.

Letters: B images, C channels of the logits, K classes, H height, W width, P pixels.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal, cast

import pydantic
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from densekit.types import IGNORE, DensekitError

Mode = Literal["multiclass", "binary", "multilabel"]

Weight = Annotated[float, pydantic.Field(ge=0)]
"""How much a loss counts; zero leaves it out."""

NAMES = ("cross_entropy", "bce", "dice", "jaccard", "tversky", "focal", "lovasz")


@dataclasses.dataclass(frozen=True, slots=True)
class Losses:
    """Which losses are summed, with which weights and options.

    Attributes:
        cross_entropy: weight; softmax over the classes, multi-class only.
        bce: weight; a sigmoid per class, binary and multi-label only.
        dice: weight; 1 - Dice over the whole batch, mean over classes (Milletari et al. 2016, section 3).
        jaccard: weight; 1 - intersection over union.
        tversky: weight; false positives count ``tversky_alpha``, false negatives ``tversky_beta`` (Salehi et al. 2017).
        focal: weight; a sigmoid per class (Lin et al. 2017, equation 5).
        lovasz: weight; Lovász-softmax, or the hinge for sigmoids (Berman et al. 2018).
        class_weights: one number per class, for all of them but Lovász; not for binary.
        label_smoothing: for cross-entropy (torch's rule) and BCE (smp's: 0 becomes s, 1 becomes 1 - s).
        positive_weight: of BCE: how much an object's pixel counts against one of the rest.
        focal_gamma: exponent that plays down the pixels which are right already.
        focal_alpha: weight of positives against 1 - alpha for negatives; None weighs them alike.
        tversky_alpha: weight of false positives.
        tversky_beta: weight of false negatives.
        smooth: pixels added to both sides of the ratio of Dice, Jaccard and Tversky.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid")

    cross_entropy: Weight = 0.0
    bce: Weight = 0.0
    dice: Weight = 0.0
    jaccard: Weight = 0.0
    tversky: Weight = 0.0
    focal: Weight = 0.0
    lovasz: Weight = 0.0
    class_weights: tuple[Weight, ...] | None = None
    label_smoothing: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    positive_weight: Annotated[float, pydantic.Field(gt=0)] = 1.0
    focal_gamma: Annotated[float, pydantic.Field(ge=0)] = 2.0
    focal_alpha: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    tversky_alpha: Weight = 0.5
    tversky_beta: Weight = 0.5
    smooth: Weight = 0.0

    def chosen(self) -> dict[str, float]:
        """The losses with a weight above zero."""
        return {name: getattr(self, name) for name in NAMES if getattr(self, name) > 0}


def default_losses(mode: Mode) -> Losses:
    """Cross-entropy, or BCE where each class has a sigmoid, together with Dice: what a first run wants."""
    return Losses(cross_entropy=1.0, dice=1.0) if mode == "multiclass" else Losses(bce=1.0, dice=1.0)


def check_losses(losses: Losses, mode: Mode, num_classes: int) -> None:
    """Refuse what cannot be computed.

    Raises:
        DensekitError: no loss at all, a loss that does not go with the mode, or not one class weight per class.
    """
    chosen = losses.chosen()
    if not chosen:
        raise DensekitError(f"losses: none has a weight above zero; give at least one of {', '.join(NAMES)}")
    wrong, right = ("bce", "cross_entropy") if mode == "multiclass" else ("cross_entropy", "bce")
    if wrong in chosen:
        raise DensekitError(f"losses.{wrong}: does not go with mode {mode!r}; use {right}")
    weights = losses.class_weights
    if weights is None:
        return
    if mode == "binary":
        raise DensekitError("losses.class_weights: binary has one logit; use positive_weight instead")
    if len(weights) != num_classes or sum(weights) == 0:
        raise DensekitError(
            f"losses.class_weights: {list(weights)} for {num_classes} classes; give one per class, not all zero"
        )


def segmentation_losses(
    logits: Tensor, masks: Tensor, *, mode: Mode, losses: Losses, class_weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Compute each chosen loss, already weighted, as a float32 scalar.

    Args:
        logits: [B, C, H, W].
        masks: [B, H, W] or [B, K, H, W], see the convention above.
        mode: what the channels of the logits mean.
        losses: weights and options.
        class_weights: [K] float32, those of ``losses`` on the device of the logits; None copies them there.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        if class_weights is None and losses.class_weights is not None:
            class_weights = logits.new_tensor(losses.class_weights)
        values = {
            name: _one_loss(name, logits, masks, mode, losses, class_weights) * weight
            for name, weight in losses.chosen().items()
        }
    return values


def _one_loss(name: str, logits: Tensor, masks: Tensor, mode: Mode, options: Losses, weights: Tensor | None) -> Tensor:
    if name == "cross_entropy":
        return cross_entropy(logits, masks, weights, options.label_smoothing)
    if name == "lovasz" and mode == "multiclass":
        return lovasz_softmax(logits.softmax(1), masks)
    positive, valid = targets_per_class(masks, logits.shape[1], mode)
    if name == "lovasz":
        return lovasz_hinge(logits, positive, valid)
    if name == "bce":
        return bce(logits, positive, valid, weights, options.label_smoothing, options.positive_weight)
    if name == "focal":
        return focal(logits, positive, valid, weights, options.focal_gamma, options.focal_alpha)
    probabilities = logits.softmax(1) if mode == "multiclass" else logits.sigmoid()
    alpha, beta = {"dice": (0.5, 0.5), "jaccard": (1.0, 1.0)}.get(name, (options.tversky_alpha, options.tversky_beta))
    return tversky(probabilities, positive, valid, weights, alpha, beta, options.smooth)


def targets_per_class(masks: Tensor, channels: int, mode: Mode) -> tuple[Tensor, Tensor]:
    """Turn masks into what each channel should say.

    Returns:
        positive: [B, C, H, W] bool, never where ignored; valid: [B, 1 or C, H, W] bool.
    """
    if masks.dim() == 4:
        return masks == 1, masks != IGNORE
    masks = masks[:, None]
    if mode == "binary":
        return masks == 1, masks != IGNORE
    classes = torch.arange(channels, device=masks.device)[:, None, None]
    return masks == classes, masks != IGNORE


def cross_entropy(logits: Tensor, masks: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Give torch's ``cross_entropy`` with ``reduction="mean"``, divided by the (weighted) count over all ranks.

    Args:
        logits: [B, K, H, W] float32.
        masks: [B, H, W] int64.
        weights: [K] or None.
        smoothing: part of the target that is spread over all classes.
    """
    # Summed here: torch's own sum on a GPU has other bits on each run.
    pixels = F.cross_entropy(logits, masks, weights, ignore_index=IGNORE, label_smoothing=smoothing, reduction="none")
    total = pixels.sum()
    valid = masks != IGNORE
    counted = valid if weights is None else weights[masks.where(valid, 0)] * valid
    return _over_count(total, counted.sum())


def bce(
    logits: Tensor,
    positive: Tensor,
    valid: Tensor,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    positive_weight: float = 1.0,
) -> Tensor:
    """Binary cross-entropy of each channel, mean over pixels, then mean over channels by ``weights``."""
    target = positive.float() * (1 - 2 * smoothing) + smoothing
    ratio = logits.new_full((), positive_weight) if positive_weight != 1 else None
    loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=ratio, reduction="none")
    return _mean_over_classes(loss, valid, weights)


def focal(
    logits: Tensor,
    positive: Tensor,
    valid: Tensor,
    weights: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> Tensor:
    """Focal loss of each channel's sigmoid (Lin et al. 2017, equation 5), as smp computes it for all three modes."""
    loss = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
    # The floor keeps the gradient of the power finite for an exponent below one.
    wrong = (1 - torch.exp(-loss)).clamp_min(1e-6)
    loss = wrong**gamma * loss
    if alpha is not None:
        loss = loss * torch.where(positive, alpha, 1 - alpha)
    return _mean_over_classes(loss, valid, weights)


def tversky(
    probabilities: Tensor,
    positive: Tensor,
    valid: Tensor,
    weights: Tensor | None = None,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = 0.0,
) -> Tensor:
    """1 - TP / (TP + alpha FP + beta FN) over the whole batch, mean over classes (Salehi et al. 2017, equation 3).

    alpha = beta = 1/2 is Dice, alpha = beta = 1 is Jaccard. A class without a pixel in the batch adds zero to the
    mean, as in smp.
    """
    probabilities = probabilities * valid
    hit = (probabilities * positive).sum((0, 2, 3))
    sums = torch.stack([hit, probabilities.sum((0, 2, 3)), positive.sum((0, 2, 3)).float()])
    hit, predicted, true = _sum_over_ranks(sums)
    ratio = (hit + smooth) / (hit + alpha * (predicted - hit) + beta * (true - hit) + smooth).clamp_min(1e-7)
    return _weighted_mean((1 - ratio) * (true > 0), weights)


def lovasz_softmax(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Lovász-softmax over the classes that the masks hold (Berman et al. 2018, section 3.2).

    Args:
        probabilities: [B, K, H, W].
        masks: [B, H, W] class indices.
    """
    valid, masks = (masks != IGNORE).flatten(), masks.flatten()
    total, present = probabilities.new_zeros(()), probabilities.new_zeros(())
    for label in range(probabilities.shape[1]):
        positive = masks == label
        errors = (positive.float() - probabilities[:, label].flatten()).abs()
        here = positive.any()
        total = total + _lovasz(errors, positive, valid) * here
        present = present + here
    return total / present.clamp_min(1)


def lovasz_hinge(logits: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
    """Lovász hinge over all pixels and channels together (Berman et al. 2018, section 3.1), as in smp."""
    errors = 1 - logits * (positive.float() * 2 - 1)
    return _lovasz(errors.flatten(), positive.flatten(), valid.expand_as(positive).flatten())


def _lovasz(errors: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
    """Sum of the sorted errors [P] times the steps of the Jaccard loss along them (algorithm 1 of the paper)."""
    # Ignored pixels sort last, where they change no other pixel's step, and count zero.
    errors, order = errors.where(valid, -1.0).sort(descending=True)
    sorted_positive = positive[order].long()  # sums of integers are exact, and deterministic on every device
    count = sorted_positive.sum()
    union = count + (1 - sorted_positive).cumsum(0)
    jaccard = 1 - (count - sorted_positive.cumsum(0)) / union.clamp_min(1)
    steps = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
    return torch.dot(errors.relu(), steps)


def _mean_over_classes(loss: Tensor, valid: Tensor, weights: Tensor | None) -> Tensor:
    """[B, C, H, W] -> mean over the valid pixels of each channel, then over channels by weight."""
    counted = valid.expand_as(loss).sum((0, 2, 3))
    return _weighted_mean(_over_count((loss * valid).sum((0, 2, 3)), counted), weights)


def _weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()


def _over_count(total: Tensor, count: Tensor) -> Tensor:
    # The mean over ranks, not the own count: DDP's mean of the gradients is then that of the whole batch. Unlike the
    # detector's counts these may be below one, where class weights are.
    count = _sum_over_ranks(count.to(total.dtype)) / _world()
    return total / torch.where(count > 0, count, 1)


def _sum_over_ranks(sums: Tensor) -> Tensor:
    """Sum over ranks with the gradient: DDP's mean of the gradients is then that of the loss on the whole batch."""
    if _world() == 1:
        return sums
    from torch.distributed.nn.functional import all_reduce  # not in every build of torch

    return cast(Tensor, all_reduce(sums))  # type: ignore[no-untyped-call]


def _world() -> int:
    """Ranks that learn together; in validation, without gradients, each rank stands alone."""
    if torch.is_grad_enabled() and dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1
