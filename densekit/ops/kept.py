"""Tensors that each step would compute anew to the same values, kept: a GPU's host has fewer operators to queue."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

SHAPES = 4
"""Keys whose tensors are kept, the newest: as many as shapes of images that come in turn."""


def keeps(like: Tensor) -> bool:
    """Whether what is computed beside a tensor may be used again later.

    Not what a compiler, an exporter or a CUDA graph records: their own copy of a program owns all that is in it.
    """
    if type(like) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not (like.is_cuda and torch.cuda.is_current_stream_capturing())


class ByShape:
    """What follows from a key alone, for the keys seen last."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Hashable, torch.device, torch.dtype], Any] = {}

    def __call__(self, key: Hashable, like: Tensor, make: Callable[[], T]) -> T:
        """What ``make`` gives on the device and in the dtype of ``like``, made once for a key."""
        if not keeps(like):
            return make()
        place = key, like.device, like.dtype
        found: T | None = self._kept.get(place)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():  # steps that learn use it too
                found = make()
            for oldest in list(self._kept)[: max(0, len(self._kept) + 1 - SHAPES)]:
                self._kept.pop(oldest, None)  # another thread may have taken it out
            self._kept[place] = found
        return found

    def __reduce__(self) -> tuple[type[ByShape], tuple[()]]:
        return ByShape, ()  # a copy begins anew


class OfTensors:
    """What follows from some tensors, until one of them is replaced or written to.

    A write shows by the counter that autograd goes by, so not one through ``.data``.
    """

    def __init__(self) -> None:
        self._sources: tuple[Tensor, ...] = ()
        self._versions: tuple[int, ...] = ()
        self._kept: Any = None

    def __call__(self, sources: Sequence[Tensor], make: Callable[[], T]) -> T:
        """What ``make`` gives of the values that the tensors have now."""
        if not keeps(sources[0]) or any(source.is_inference() for source in sources):
            return make()
        versions = tuple(source._version for source in sources)
        same = len(self._sources) == len(sources) and all(a is b for a, b in zip(self._sources, sources))
        if not same or versions != self._versions:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = make()
            self._sources, self._versions = tuple(sources), versions
        found: T = self._kept
        return found

    def __reduce__(self) -> tuple[type[OfTensors], tuple[()]]:
        return OfTensors, ()  # a copy begins anew
