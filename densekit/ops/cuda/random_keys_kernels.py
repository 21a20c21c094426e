"""Random integers by a hash of seed and index in Triton: in one launch what takes some fifty operators of torch's."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Keys that a program makes."""


@triton.jit
def _mix(x):
    """See ``ops/sampling.py``."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["count"])
def _random_keys(seeds, keys, count, stream, BLOCK: tl.constexpr):
    """A block of the keys of one seed."""
    row, index = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    whole = tl.load(seeds + row)
    seed = _mix(_mix((whole & 0xFFFFFFFF) ^ stream) ^ ((whole >> 32) & 0xFFFFFFFF))
    key = _mix(_mix(index.to(tl.int64) ^ seed) ^ _mix(seed ^ 0x85EBCA6B))
    tl.store(keys + row * count + index, key, index < count)


def random_keys(seeds: Tensor, count: int, stream: int) -> Tensor:
    """See ``ops/cuda/random_keys.py``; ``stream`` is mixed into 32 bits already."""
    keys = torch.empty(len(seeds), count, dtype=torch.int64, device=seeds.device)
    if keys.numel():
        _random_keys[triton.cdiv(count, BLOCK), len(seeds)](seeds.contiguous(), keys, count, stream, BLOCK=BLOCK)
    return keys
