"""What the system underneath offers, asked in one place: cores, processes that start as a copy, the memory in use."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import BaseContext
from pathlib import Path

_STATUS, _MEMORY, _CONTAINER = Path("/proc/self/statm"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may use; where the system does not say so, cores of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forking() -> BaseContext | None:
    """Processes that start as a copy of this one: at once, and sharing what it holds in memory.

    Returns:
        None where there are none (Windows), and where a copy may crash in the system's libraries (macOS).
    """
    if sys.platform == "darwin" or "fork" not in multiprocessing.get_all_start_methods():
        return None
    return multiprocessing.get_context("fork")


def memory_in_use() -> float | None:
    """Memory of this process in GiB: resident now, or its most where the system tells that alone; None: not told."""
    if _STATUS.exists():
        return int(_STATUS.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def free_memory() -> float | None:
    """Main memory in GiB that a process may still take, by the machine and by its container's limit; None: not told."""
    if not _MEMORY.exists():
        return None
    table = dict(line.split(":", 1) for line in _MEMORY.read_text("ascii").splitlines() if ":" in line)
    free = int(table["MemAvailable"].split()[0]) / 2**20
    limit, used = _CONTAINER / "memory.max", _CONTAINER / "memory.current"
    if limit.exists() and used.exists() and (most := limit.read_text("ascii").strip()).isdigit():
        free = min(free, (int(most) - int(used.read_text("ascii"))) / 2**30)
    return free
