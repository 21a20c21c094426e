"""Mixup: images and labels blended in pairs (Zhang et al. 2018, arXiv 1710.09412, section 2).

B images, C channels, H, W size, K classes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from densekit.ops.sampling import random_keys
from densekit.types import Batch, Targets

TRIES = 64
"""Draws of Jöhnk's method an image; each succeeds with probability 1/2 or more, so all fail once in 2**64."""

STREAM = 1001
"""Number of this use of the images' seeds."""


def mix_batch(batch: Batch, *, alpha: float, num_classes: int) -> Batch:
    """Blend image 2i with image 2i + 1, each with its own share, and their labels with the same shares.

    The shares are a pure function of ``batch.seeds`` and the pairs one of the positions, so that the result does not
    depend on the number of ranks as long as each of them has an even number of images. An image without a partner
    stays as it is.

    Args:
        batch: images and [B] labels.
        alpha: in (0, 1]; shares come from Beta(alpha, alpha): the smaller, the nearer to 0 and 1.
        num_classes: K.

    Returns:
        A batch with float32 images and [B, K] labels; sizes are those of the larger image of each pair.
    """
    assert batch.targets is not None, "mixup needs labels"
    assert batch.targets.labels is not None, "mixup needs labels"
    count = len(batch.ids)
    own = torch.arange(count, device=batch.images.device)
    partner = own ^ 1
    partner = torch.where(partner < count, partner, own)
    share = beta_shares(batch.seeds, alpha)[:, None]
    images, labels = batch.images.float(), _one_hot(batch.targets.labels, num_classes)
    pixel_share = share[:, :, None, None]
    return dataclasses.replace(
        batch,
        images=images * pixel_share + images[partner] * (1 - pixel_share),
        sizes=torch.maximum(batch.sizes, batch.sizes[partner]),
        targets=Targets(labels=labels * share + labels[partner] * (1 - share)),
    )


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """[B] -> [B, K] float32; torch's own reads the labels, to check them."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()


def beta_shares(seeds: Tensor, alpha: float) -> Tensor:
    """[B] numbers from Beta(alpha, alpha), a pure function of the [B] seeds; alpha in (0, 1].

    Jöhnk's method (1964): of uniform u, v, x = u^(1/alpha) and y = v^(1/alpha), the first pair with x + y <= 1 gives
    x / (x + y). It is done in logarithms, since x and y underflow for a small alpha.
    """
    device = seeds.device
    if device.type == "mps":  # it has no float64
        seeds = seeds.cpu()
    keys = random_keys(seeds, 2 * TRIES, STREAM).double()
    logs = ((keys + 0.5) / 2**32).log() / alpha
    x, y = logs[:, :TRIES], logs[:, TRIES:]
    first = (torch.logaddexp(x, y) <= 0).int().argmax(1, keepdim=True)
    return torch.sigmoid(x.gather(1, first) - y.gather(1, first))[:, 0].float().to(device)
