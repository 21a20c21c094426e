"""Each loss against smp's or torch's; ignored pixels; batches with nothing to learn from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch import losses as smp

from densekit.ops import segmentation_losses as ours
from densekit.ops.segmentation_losses import Losses, segmentation_losses
from densekit.types import IGNORE

K = 4


def make(mode, ignored=True, classes=K):
    generator = torch.Generator().manual_seed(0)
    channels = 1 if mode == "binary" else classes
    logits = (2 * torch.randn(2, channels, 12, 15, generator=generator)).requires_grad_()
    if mode == "multilabel":
        masks = torch.randint(0, 2, (2, classes, 12, 15), generator=generator, dtype=torch.uint8)
    else:
        masks = torch.randint(0, 2 if mode == "binary" else classes - 1, (2, 12, 15), generator=generator)
    if ignored:
        masks[..., 3:7] = IGNORE
    return logits, masks


def value(logits, masks, mode, **options):
    (loss,) = segmentation_losses(logits, masks, mode=mode, losses=Losses(**options)).values()
    return loss


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize(
    ("name", "options", "peer", "peer_options"),
    [
        ("dice", {}, smp.DiceLoss, {}),
        ("dice", {"smooth": 1.0}, smp.DiceLoss, {"smooth": 1.0}),
        ("jaccard", {}, smp.JaccardLoss, {}),
        ("tversky", {"tversky_alpha": 0.3, "tversky_beta": 0.7}, smp.TverskyLoss, {"alpha": 0.3, "beta": 0.7}),
        ("focal", {}, smp.FocalLoss, {}),
        ("focal", {"focal_gamma": 1.5, "focal_alpha": 0.25}, smp.FocalLoss, {"gamma": 1.5, "alpha": 0.25}),
        ("lovasz", {}, smp.LovaszLoss, {}),
    ],
)
def test_losses_equal_smps_with_pixels_ignored(mode, name, options, peer, peer_options):
    logits, masks = make(mode)
    if mode == "multilabel" and name == "focal":
        logits, masks = make(mode, ignored=False)  # smp's multi-label focal can't index with its own mask
    theirs = peer(mode, **peer_options, **({} if (mode, name) == ("multilabel", "focal") else {"ignore_index": IGNORE}))
    peer_masks = masks[:, None] if mode == "binary" and name != "lovasz" else masks
    peer_logits = logits[:, 0] if mode == "binary" and name == "lovasz" else logits
    want = theirs(peer_logits, peer_masks.long())
    got = value(logits, masks, mode, **{name: 1.0}, **options)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    want_gradient, got_gradient = (torch.autograd.grad(loss, logits)[0] for loss in (want, got))
    torch.testing.assert_close(got_gradient, want_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "peer"), [("dice", smp.DiceLoss), ("jaccard", smp.JaccardLoss)])
def test_class_weights_of_overlap_losses_equal_smps(name, peer):
    logits, masks = make("multiclass")
    weights = [1.0, 0.5, 3.0, 0.0]
    want = peer("multiclass", class_weights=weights, ignore_index=IGNORE)(logits, masks)
    torch.testing.assert_close(value(logits, masks, "multiclass", **{name: 1.0}, class_weights=tuple(weights)), want)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (1.0, 0.02, 3.0, 0.01)])
def test_cross_entropy_equals_torchs(smoothing, weights):
    logits, masks = make("multiclass")
    tensor = None if weights is None else torch.tensor(weights)
    want = F.cross_entropy(logits, masks, tensor, ignore_index=IGNORE, label_smoothing=smoothing)
    got = value(logits, masks, "multiclass", cross_entropy=1.0, class_weights=weights, label_smoothing=smoothing)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("mode", ["binary", "multilabel"])
def test_bce_equals_torchs_over_the_pixels_that_count(mode):
    logits, masks = make(mode)
    target = masks.float().reshape(logits.shape)
    kept = target != IGNORE
    want = F.binary_cross_entropy_with_logits(logits[kept], target[kept], pos_weight=torch.tensor(3.0))
    torch.testing.assert_close(value(logits, masks, mode, bce=1.0, positive_weight=3.0), want)


def test_bce_smoothing_equals_smps():
    logits, masks = make("binary", ignored=False)
    want = smp.SoftBCEWithLogitsLoss(smooth_factor=0.1)(logits, masks[:, None].float())
    torch.testing.assert_close(value(logits, masks, "binary", bce=1.0, label_smoothing=0.1), want)


MODES_AND_NAMES = [
    (mode, name)
    for mode in ("multiclass", "binary", "multilabel")
    for name in ours.NAMES
    if name != ("bce" if mode == "multiclass" else "cross_entropy")
]


@pytest.mark.parametrize(("mode", "name"), MODES_AND_NAMES)
def test_what_lies_under_ignored_pixels_changes_neither_loss_nor_gradient(mode, name):
    logits, masks = make(mode)
    changed = logits.detach().clone()
    changed[..., 3:7] += 5
    changed.requires_grad_()
    first, second = (value(x, masks, mode, **{name: 1.0}) for x in (logits, changed))
    torch.testing.assert_close(first, second)
    gradient = torch.autograd.grad(second, changed)[0]
    assert gradient[..., 3:7].abs().max() == 0
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(("mode", "name"), MODES_AND_NAMES)
def test_a_batch_with_every_pixel_ignored_gives_zero_with_a_zero_gradient(mode, name):
    logits, masks = make(mode)
    loss = value(logits, torch.full_like(masks, IGNORE), mode, **{name: 1.0})
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize(("mode", "name"), MODES_AND_NAMES)
def test_extreme_logits_and_single_pixels_stay_finite(mode, name):
    for scale in (0.0, 1e4):
        logits, masks = make(mode)
        logits = (logits.detach()[..., :1, :1] * scale).requires_grad_()
        loss = value(logits, masks[..., :1, :1], mode, **{name: 1.0}, focal_gamma=0.5)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()


def test_losses_are_weighted_and_computed_in_float32_under_autocast():
    logits, masks = make("multiclass")
    with torch.autocast("cpu", torch.bfloat16):
        found = segmentation_losses(
            logits.bfloat16(), masks, mode="multiclass", losses=Losses(cross_entropy=0.5, dice=2.0)
        )
    assert {v.dtype for v in found.values()} == {torch.float32}
    plain = logits.bfloat16().float()
    torch.testing.assert_close(found["cross_entropy"], 0.5 * value(plain, masks, "multiclass", cross_entropy=1.0))
    torch.testing.assert_close(found["dice"], 2 * value(plain, masks, "multiclass", dice=1.0))


def test_a_perfect_prediction_has_no_loss():
    _, masks = make("multiclass")
    logits = 100.0 * F.one_hot(masks.where(masks != IGNORE, 0), K).permute(0, 3, 1, 2).float()
    for name in ("cross_entropy", "dice", "jaccard", "tversky", "lovasz"):
        assert value(logits, masks, "multiclass", **{name: 1.0}).item() < 1e-5, name
