"""Ranks: the same script runs alone or under ``torchrun``."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import sys
from typing import Any

import torch
import torch.distributed as dist

from densekit.errors import DensekitError


@dataclasses.dataclass(frozen=True)
class World:
    """Where this process stands among its peers.

    Attributes:
        rank: of this process; size: number of processes; local: processes on this machine.
        device: what this process computes on.
    """

    rank: int
    size: int
    local: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0


def join(device: str | None = None) -> World:
    """Join the process group that ``torchrun`` describes in the environment, or stand alone.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None takes the CUDA GPU of the local rank where there is one,
            else the CPU.

    Raises:
        DensekitError: the device is not there, or several ranks were started where they cannot talk.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    where = find_device(device, local_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    elif where.type == "cpu":
        keep_freed_memory()
    if size > 1 and not in_group():
        if not dist.is_available() or where.type == "mps":
            reason = (
                "gradients on mps are not averaged" if dist.is_available() else "this torch has no torch.distributed"
            )
            raise DensekitError(f"{size} ranks were started, but {reason}; start one process")
        # gloo carries the control messages (stop, gathered metrics) on the host, also where NCCL carries gradients.
        nccl = where.type == "cuda" and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo")
    return World(rank, size, local, where)


def find_device(asked: str | None, local_rank: int = 0) -> torch.device:
    """The device of a name; see ``join``.

    Raises:
        DensekitError: it is not there.
    """
    if asked is None:
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise DensekitError(f"there is no device {asked!r}; use cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 1)
    if (device.index or 0) >= there:
        raise DensekitError(
            f"--device {asked}: torch {torch.__version__} sees {there} such devices here; use --device cpu"
        )
    return device


def describe(device: torch.device) -> str:
    """A device in a few words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type


def in_group() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized()


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free for the next ones, instead of handing it back to the system.

    A training step on the CPU frees all that it took. glibc then returns it, and the next step pays for every page
    again: a fifth of the CPU time of a U-Net's step, a third of a detector's. The process stays at its peak instead.
    Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, 2**30)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers of M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (malloc.h)."""


def leave() -> None:
    """Leave the process group, if this process is in one."""
    if in_group():
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Every rank's value, in the order of the ranks, on every rank."""
    if not in_group():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """Whether any rank says yes: a decision that all ranks must take alike."""
    if not in_group():
        return flag
    tensor = torch.tensor([int(flag)])
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return bool(tensor.item())


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the ranks, on its own device without asking the host; the same bits on every rank."""
    if not in_group():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def barrier() -> None:
    """Wait for all ranks."""
    if in_group():
        any_rank(False)
