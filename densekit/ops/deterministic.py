"""Operators whose backward on a GPU gives other bits on each run, as products of matrices, which give the same.

Bilinear enlargement and adaptive mean pooling add their gradients atomically there. Both are linear along each side of
a map, so they are a product with a small matrix from the left and one from the right, and so is their backward.

Letters: B images, C channels, H, W size of a map, h, w of the result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Size = int | Sequence[int | None] | None
Factor = float | Sequence[float] | None


def deterministic_backward(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Where deterministic algorithms are asked for and a device lacks some, their calls take the forms of this file."""
    return _Replacing() if replaces(device) else contextlib.nullcontext()


def replaces(device: torch.device) -> bool:
    """Whether a device needs the forms of this file now; the CPU's own operators are deterministic."""
    return device.type != "cpu" and torch.are_deterministic_algorithms_enabled()


class _Replacing(TorchFunctionMode):
    """Takes over the calls of whatever network runs inside, also of another library's."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own: dict[Callable[..., Any], Callable[..., Any]] = {
            F.interpolate: interpolate,
            F.adaptive_avg_pool2d: adaptive_mean,
        }
        return own.get(func, func)(*args, **(kwargs or {}))


def interpolate(
    input: Tensor,
    size: Size = None,
    scale_factor: Factor = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """``torch.nn.functional.interpolate``: [B, C, H, W] -> [B, C, h, w], with its arguments and numbers."""
    if mode not in ("bilinear", "area") or input.dim() != 4 or antialias:
        options: tuple[Any, ...] = (size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
        return F.interpolate(input, *options)
    before = (input.shape[2], input.shape[3])
    factors: list[Any] = _pair(scale_factor)
    after = [int(side * factor) for side, factor in zip(before, factors)] if size is None else _pair(size)
    if mode == "area":
        return adaptive_mean(input, after)
    given = factors if size is None and not recompute_scale_factor else [None, None]
    matrices = [
        _bilinear(b, a, bool(align_corners), b / a if factor is None else 1 / factor, input.device)
        for b, a, factor in zip(before, after, given)
    ]
    return _both_sides(input, *matrices)


def adaptive_mean(input: Tensor, output_size: Size) -> Tensor:
    """``torch.nn.functional.adaptive_avg_pool2d``: [B, C, H, W] -> [B, C, h, w], with its arguments and numbers."""
    before = (input.shape[-2], input.shape[-1])
    after = [b if a is None else a for b, a in zip(before, _pair(output_size))]
    return _both_sides(input, *(_means(b, a, input.device) for b, a in zip(before, after)))


def _pair(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) else [value, value]


def _bilinear(before: int, after: int, align_corners: bool, step: float, device: torch.device) -> Tensor:
    """[after, before]: what each pixel of the result takes of each pixel along one side."""
    place = torch.arange(after, device=device, dtype=torch.float32)
    if align_corners:
        place = place * ((before - 1) / (after - 1) if after > 1 else 0.0)
    else:
        place = ((place + 0.5) * step - 0.5).clamp(min=0)
    distance = place.clamp(max=before - 1)[:, None] - torch.arange(before, device=device)
    return (1 - distance.abs()).clamp(min=0)


def _means(before: int, after: int, device: torch.device) -> Tensor:
    """[after, before]: each cell of the result is the mean of the pixels that it reaches into."""
    cell, pixel = torch.arange(after, device=device)[:, None], torch.arange(before, device=device)
    inside = (pixel >= cell * before // after) & (pixel < ((cell + 1) * before + after - 1) // after)
    return inside / inside.sum(1, keepdim=True)


def _both_sides(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows [h, H] times x [..., H, W] times columns [w, W] turned: [..., h, w], in float32 under any autocast."""
    with torch.autocast(x.device.type, enabled=False):
        y = (rows @ (x.float() @ columns.T)).to(x.dtype)
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return y.contiguous(memory_format=torch.channels_last) if last else y
