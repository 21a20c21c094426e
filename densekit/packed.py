"""Models packed for inference: norms folded, weights cast and laid out once instead of on every call."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from densekit.layers import PackedConv2d, foldable
from densekit.precision import convolves_packed
from densekit.weight_gradients import Conv2d, Linear

M = TypeVar("M", bound=nn.Module)


def packed(model: M, dtype: torch.dtype) -> M:
    """A copy of a model for inference, to be run under autocast in ``dtype`` where that is not float32.

    Convolutions take over the norm, the sum and the ReLU behind them (``PackedConv2d``), linear layers keep their
    weights in ``dtype``. The differences to the model itself are roundings of the dtype. What a module computes in
    float32 whatever the autocast stays so: it names such children in ``float32_parts``. A module with a method ``pack``
    packs itself first.

    Args:
        model: stays as it is.
        dtype: of the arithmetic. In float32 only what runs on the CPU with channels last gains; anything else is the
            model itself, the plain path.

    Returns:
        The copy, in evaluation mode.
    """
    if next(model.parameters(), None) is None or (dtype == torch.float32 and not _gains_in_float32(model)):
        return model.eval()  # an exported file has no parameters: it computes as it was made
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(model.modules()):
        if callable(pack := getattr(module, "pack", None)):
            pack(dtype)
        _pack_children(module, dtype)
    return model


def _gains_in_float32(model: nn.Module) -> bool:
    last = getattr(model, "memory_format", torch.channels_last) == torch.channels_last
    return last and convolves_packed(torch.float32) and all(p.device.type == "cpu" for p in model.parameters())


def _pack_children(module: nn.Module, dtype: torch.dtype) -> None:
    for conv, norm in getattr(module, "pairs", ()):
        _pack(module, conv, norm, "", dtype)
    if isinstance(module, nn.Sequential):
        names = [*module._modules, "", ""]
        for conv, norm, act in zip(names, names[1:], names[2:]):
            _pack(module, conv, norm, act, dtype)
    kept = getattr(module, "float32_parts", ())
    for name, child in module.named_children():
        if name in kept:
            continue
        if type(child) in (nn.Linear, Linear):
            child.to(dtype)
        _pack(module, name, "", "", dtype)


def _pack(parent: nn.Module, conv: str, norm: str, act: str, dtype: torch.dtype) -> None:
    """Put a packed convolution in the place of one, of its norm and, in a sequence, of its ReLU."""
    module = parent._modules.get(conv)
    if not isinstance(module, nn.Conv2d) or type(module) not in (nn.Conv2d, Conv2d):
        return  # a convolution of another kind computes something else
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return
    follower = parent._modules.get(norm)
    folds = follower is not None and foldable(follower)
    rectified = folds and isinstance(parent._modules.get(act), nn.ReLU)
    parent._modules[conv] = PackedConv2d(module, follower if folds else None, dtype, relu=rectified)
    if folds:
        parent._modules[norm] = nn.Identity()
    if rectified:
        parent._modules[act] = nn.Identity()
