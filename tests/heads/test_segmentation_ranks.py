"""Two ranks (gloo) against one: the same loss and the same gradient, however the labelled pixels fall."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from densekit.ops.segmentation_losses import Losses, segmentation_losses
from densekit.types import IGNORE
from tests.tools import runs

LOSSES = {
    "multiclass": Losses(cross_entropy=1.0, dice=0.7, jaccard=0.5, tversky=0.3, focal=2.0,
                         class_weights=(1.0, 0.3, 2.0), label_smoothing=0.1),
    "binary": Losses(bce=1.0, dice=0.7, focal=2.0),
}  # fmt: skip


def make(mode):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3 if mode == "multiclass" else 1, 9, 10, generator=generator)
    masks = torch.randint(0, 3 if mode == "multiclass" else 2, (4, 9, 10), generator=generator)
    masks[0], masks[2, :4] = IGNORE, IGNORE  # so the ranks have unequal counts
    return logits, masks


def total_and_gradient(logits, masks, mode):
    logits = logits.clone().requires_grad_()
    total = torch.stack(list(segmentation_losses(logits, masks, mode=mode, losses=LOSSES[mode]).values())).sum()
    return total.detach(), torch.autograd.grad(total, logits)[0]


def work(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    for mode in LOSSES:
        logits, masks = make(mode)
        half = slice(2 * rank, 2 * rank + 2)
        torch.save(total_and_gradient(logits[half], masks[half], mode), f"{folder}/{mode}{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_give_the_loss_and_gradient_of_one(tmp_path):
    if not dist.is_available():
        pytest.skip("this build of torch has no distributed package")
    runs.apart(work, str(tmp_path), ranks=2)
    for mode in LOSSES:
        total, gradient = total_and_gradient(*make(mode), mode)
        ranks = [torch.load(tmp_path / f"{mode}{rank}.pt") for rank in range(2)]
        # DDP averages: the mean of the ranks' losses, and half of each rank's gradient of its own images.
        torch.testing.assert_close(torch.stack([r[0] for r in ranks]).mean(), total)
        torch.testing.assert_close(torch.cat([r[1] for r in ranks]) / 2, gradient, rtol=1e-4, atol=1e-7)
