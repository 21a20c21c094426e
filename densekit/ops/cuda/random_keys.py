"""Random integers on a GPU: an operator around the kernel of ``random_keys_kernels.py``."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from densekit.ops.cuda import trial


def random_keys(seeds: Tensor, count: int, stream: int) -> Tensor:
    """What ``ops/sampling.py`` computes, in one launch.

    Args:
        seeds: [B] int64.
        count: keys a seed.
        stream: 32 bits that tell the use.

    Returns:
        [B, count] int64 in 0 .. 2**32 - 1.
    """
    return cast(Tensor, torch.ops.densekit.random_keys(seeds, count, stream))


def works(device: torch.device) -> bool:
    """Whether ``random_keys`` may be taken on a device, see ``trial.py``."""
    return trial.works("sampling", device, agrees)


def agrees(device: torch.device) -> bool:
    """Whether the kernel gives the same integers on a device as torch's operators do on the CPU."""
    from densekit.ops.sampling import keys_of, use_of

    seeds, count, stream = torch.tensor([0, 1, -(2**62), 2**40 + 7, 2**63 - 1]), 1500, use_of(2)
    return torch.equal(random_keys(seeds.to(device), count, stream).cpu(), keys_of(seeds, count, stream))


# Not by torch.library.custom_op: the first call of what that makes imports torch's compiler.
torch.library.define("densekit::random_keys", "(Tensor seeds, SymInt count, int stream) -> Tensor")


@torch.library.impl("densekit::random_keys", "default")
def _random_keys(seeds: Tensor, count: int, stream: int) -> Tensor:
    from densekit.ops.cuda import random_keys_kernels

    return random_keys_kernels.random_keys(seeds, count, stream)


@torch.library.register_fake("densekit::random_keys")  # type: ignore[untyped-decorator]
def _(seeds: Tensor, count: int, stream: int) -> Tensor:
    return seeds.new_empty(len(seeds), count)
