"""Maps enlarged by their nearest pixels stay in their precision: under autocast a GPU would write them in float32.

Nothing is computed, so nothing is gained there: the larger map costs twice the memory, what is added or concatenated to
it follows, and the next convolution casts it back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from densekit.precision import in_float32 as without_autocast


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, H, W] -> [B, C, *size] in the dtype of ``x``."""
    with without_autocast(x.device):
        return F.interpolate(x, size=tuple(size), mode="nearest")


def nearest_in_own_dtype(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The same for calls of ``F.interpolate`` in a network of another library, where its autocast would widen them.

    A compiler needs no help: it writes no map in between.
    """
    widens = device.type == "cuda" and torch.is_autocast_enabled("cuda")
    return _InOwnDtype() if widens and not torch.compiler.is_compiling() else contextlib.nullcontext()


class _InOwnDtype(TorchFunctionMode):
    """Switches autocast off for what enlarges by nearest pixels."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.interpolate or kwargs.get("mode", "nearest") != "nearest":
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        with without_autocast(x.device):
            return func(*args, **kwargs)
