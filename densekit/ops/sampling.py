"""Random choice of anchors and proposals without a random generator.

Which candidates are drawn is a pure function of (seed of the image, index of the candidate), computed on the device:
the same on one rank or many, after a resumption, and inside a compiled graph.

B images, A candidates an image, S samples an image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from densekit.ops.cuda import random_keys as in_triton

_MASK = 0xFFFFFFFF


class Samples(NamedTuple):
    """Candidates drawn from each image, positives first, padded to S.

    Attributes:
        chosen: [B, S] int64: candidates; of no meaning where not valid.
        positive: [B, S] bool.
        valid: [B, S] bool: False where an image has too few candidates.
    """

    chosen: Tensor
    positive: Tensor
    valid: Tensor


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers that scatters neighbours (Wellons 2018, lowbias32), in int64 tensors."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def random_keys(seeds: Tensor, count: int, stream: int) -> Tensor:
    """Random integers, distinct within each row.

    Args:
        seeds: [B] int64.
        count: keys a seed.
        stream: number of the use, so that two uses of one seed draw independently.

    Returns:
        [B, count] int64 in 0 .. 2**32 - 1.
    """
    if not torch.compiler.is_compiling() and in_triton.works(seeds.device):
        return in_triton.random_keys(seeds, count, use_of(stream))
    return keys_of(seeds, count, use_of(stream))


def use_of(stream: int) -> int:
    """32 bits that tell the use of a seed."""
    return stream * 0x9E3779B9 & _MASK


def keys_of(seeds: Tensor, count: int, use: int) -> Tensor:
    """``random_keys`` by torch's operators, on any device."""
    low, high = seeds & _MASK, (seeds >> 32) & _MASK
    seed = _mix(_mix(low ^ use) ^ high)
    index = torch.arange(count, device=seeds.device)
    return _mix(_mix(index[None] ^ seed[:, None]) ^ _mix(seed ^ 0x85EBCA6B)[:, None])


@torch.no_grad()
def weighted_choice(weights: Tensor, always: Tensor, seeds: Tensor, *, count: int, stream: int) -> Tensor:
    """Choose ``count`` of K things for each seed: some always, the others by their weights, none twice.

    The others are drawn one after another with chances in proportion to the weights of those that are left (Efraimidis
    and Spirakis 2006: the largest u ** (1 / weight) of uniform u, here in logarithms).

    Args:
        weights: [K] 0 or more; a thing of weight 0 is never drawn.
        always: [B, K] bool, chosen whatever their number.
        seeds: [B] int64.
        count: at least 1.
        stream: see ``random_keys``.

    Returns:
        [B, K] bool.
    """
    uniform = (random_keys(seeds, len(weights), stream).float() + 0.5) / 2**32
    drawable = weights > 0
    keys = torch.where(drawable, uniform.log() / torch.where(drawable, weights, 1.0), -torch.inf)
    keys = torch.where(always, torch.inf, keys)  # [B, K]
    least = keys.topk(min(count, len(weights)), dim=1).values[:, -1:]
    return (keys >= least) & (always | drawable)


@torch.no_grad()
def sample(
    positive: Tensor, negative: Tensor, seeds: Tensor, *, count: int, positive_fraction: float, stream: int
) -> Samples:
    """Draw ``count`` candidates of each image, at most ``positive_fraction`` of them positive, the rest negative.

    Args:
        positive: [B, A] bool.
        negative: [B, A] bool.
        seeds: [B] int64.
        count: samples an image (S, unless there are fewer candidates).
        positive_fraction: 0..1; places that positives do not fill go to negatives, never the other way round.
        stream: see ``random_keys``.
    """
    count = min(count, positive.shape[1])
    keys = random_keys(seeds, positive.shape[1], stream)
    quota = max(1, min(count, int(count * positive_fraction)))
    positive_keys, positive_index = torch.where(positive, keys, -1).topk(quota, dim=1)
    negative_keys, negative_index = torch.where(negative, keys, -1).topk(count, dim=1)
    found = (positive_keys >= 0).sum(1, keepdim=True)  # [B, 1]
    slot = torch.arange(count, device=keys.device)[None]
    is_positive = slot < found
    rank = (slot - found).clamp(min=0)  # of the negatives
    chosen = torch.where(
        is_positive,
        positive_index.gather(1, slot.clamp(max=quota - 1).expand(len(seeds), -1)),
        negative_index.gather(1, rank),
    )
    valid = is_positive | (negative_keys.gather(1, rank) >= 0)
    return Samples(chosen, is_positive, valid)
