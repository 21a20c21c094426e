"""The memory that there is for a run."""

from __future__ import annotations

import torch

from densekit import machine
from densekit.forecast.words import GIB


def room_on(device: torch.device) -> int | None:
    """Bytes that a run may take: free ones of the GPU, or what this process has and what the machine has left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free, own = machine.free_memory(), machine.memory_in_use()
    return None if free is None or own is None else round((free + own) * GIB)
