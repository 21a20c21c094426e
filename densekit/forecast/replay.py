"""How long the operations of a training step take on this machine, found by running those that count."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_unflatten

from densekit.forecast.trace import Operation, Shape

COVERED = 0.9
"""Part of the work, as it is guessed beforehand, that is run."""

_VIEWS = {
    *("view", "slice", "permute", "transpose", "expand", "_unsafe_view", "as_strided", "detach", "select", "t"),
    *("unsqueeze", "squeeze", "alias", "split", "unbind", "split_with_sizes", "empty", "empty_like", "empty_strided"),
}
"""Operations that look at no number."""

_NUMBERS, _BYTES = 25e9, 4e9
"""Multiply-adds and bytes a second and core by which work is guessed: only their ratio counts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Timed:
    """How long a step takes.

    Attributes:
        seconds: of the whole step.
        took: seconds to find it out.
        covered: part of the work, as guessed, that was run.
    """

    seconds: float
    took: float
    covered: float


def seconds_of(operations: Mapping[Operation, float], device: torch.device, *, budget: float = 20.0) -> Timed:
    """The time of a step on a device that is there.

    Operations that count most are run on numbers of the same shapes, each alone; the time of the others follows from
    those of their kind. What Python and autograd take between them is measured on a network that computes nothing.

    Args:
        operations: how often each runs, on average.
        device: that computes them.
        budget: seconds after which no further operation is run.
    """
    now = clock(device)
    began = now()
    work = {one: guessed(one) * count for one, count in operations.items() if one.function._opname not in _VIEWS}
    total, run = sum(work.values()), 0.0
    measured: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in sorted(work, key=lambda one: -work[one]):
        if run > COVERED * total or now() - began > budget:
            break
        if (each := _run(one, device)) is not None:
            run += work[one]
            kind = measured[one.function._opname]
            kind[0], kind[1] = kind[0] + each * operations[one], kind[1] + work[one]
    seconds, known = (sum(kind[i] for kind in measured.values()) for i in (0, 1))
    rest: dict[str, float] = defaultdict(float)
    for one, guess in work.items():
        rest[one.function._opname] += guess
    for name, guess in rest.items():
        found, guess_run = measured.get(name, (seconds, known))
        seconds += (guess - measured[name][1] if name in measured else guess) * (found / guess_run if guess_run else 1)
    seconds += sum(operations.values()) * overhead(device)
    return Timed(seconds, now() - began, run / total if total else 1.0)


def guessed(one: Operation) -> float:
    """Seconds that an operation might take: its numbers and its bytes, at rates that are nobody's."""
    tensors, name = one.tensors, one.function._opname
    moved = one.made + sum(t.bytes for t in tensors)
    return moved / _BYTES + _multiply_adds(name, one, tensors) / _NUMBERS


def _multiply_adds(name: str, one: Operation, tensors: list[Shape]) -> float:
    if name in ("convolution", "_convolution") and len(tensors) >= 2:
        kernel = tensors[1]
        return one.made / tensors[0].dtype.itemsize * kernel.count / max(1, kernel.size[0])
    if name == "convolution_backward" and len(tensors) >= 3:
        sides = sum(flag for flag in one.given[-3:-1] if isinstance(flag, bool))
        return sides * tensors[0].count * tensors[2].count / max(1, tensors[2].size[0])
    if name in ("mm", "bmm", "addmm", "baddbmm", "baddbmm_", "linear") and len(tensors) >= 2:
        return tensors[-2].count * tensors[-1].size[-1]
    return 0.0


def _run(one: Operation, device: torch.device) -> float | None:
    """Seconds of one call, the best of several; None where it does not run on numbers that mean nothing."""
    try:
        given = [_filled(value, device) for value in one.given]
        args, kwargs = tree_unflatten(given, one.structure)
        with torch.no_grad():
            return _best(lambda: one.function(*args, **kwargs), device)
    except (RuntimeError, IndexError, TypeError, ValueError, MemoryError):
        return None


def _filled(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.device):
        return device
    if not isinstance(value, Shape):
        return value
    length = 1 + sum((n - 1) * s for n, s in zip(value.size, value.stride)) if value.count else 0
    numbers = torch.empty(length, dtype=value.dtype, device=device)
    if value.dtype.is_floating_point and length < 2**14:
        numbers.uniform_()
    else:
        numbers.fill_(0.5 if value.dtype.is_floating_point else 0)
    return numbers.as_strided(value.size, value.stride)


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds now. On one thread of the CPU those that this process computed, which others do not disturb."""
    if device.type == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def now() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return now


def _best(call: Callable[[], object], device: torch.device) -> float:
    """The first call, which also gets memory and kernels, is not counted."""
    now = clock(device)
    call()
    best, began, calls = math.inf, now(), 0
    while calls < 2 or (calls < 20 and now() - began < 0.005):
        start = now()
        call()
        best, calls = min(best, now() - start), calls + 1
        if best > 0.5:
            break
    return best


def overhead(device: torch.device) -> float:
    """Seconds that Python and autograd take for an operation: of a network that has next to nothing to compute."""
    layers = [part for _ in range(8) for part in (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())]
    net, x = nn.Sequential(*layers).to(device), torch.ones(1, 4, 2, 2, device=device)
    operations = 8 * (3 + 8)  # forward and backward, with the sums of gradients

    def step() -> None:
        net.zero_grad()
        net(x).sum().backward()

    return _best(step, device) / operations
