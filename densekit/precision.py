"""The arithmetic of a run: its names, what this machine can do, and what is chosen."""

from __future__ import annotations

import contextlib
import functools
from typing import Literal

import torch

from densekit.errors import DensekitError

Precision = Literal["fp32", "bf16", "fp16"]
Asked = Literal["auto", "fp32", "bf16", "fp16"]
"""What a config may say: a precision, or that the machine decides."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The arithmetic behind each name of a precision."""


@functools.cache
def convolves_packed(dtype: torch.dtype) -> bool:
    """Whether this CPU runs convolutions of a dtype in oneDNN's packed form, tried on one pixel.

    oneDNN refuses bf16 where the CPU has no instructions to compute it with (on x86: AVX-512 or AVX-NE-CONVERT).
    Torch's other way takes tens of times as long as float32 there.
    """
    pixel, place = torch.ones(1, 1, 1, 1, dtype=dtype), ([0, 0], [1, 1], [1, 1], 1)
    try:
        laid_out = torch.ops.mkldnn._reorder_convolution_weight(pixel, *place, list(pixel.shape))
        torch.ops.mkldnn._convolution_pointwise(pixel, laid_out, None, *place, "none", [], "")
    except (RuntimeError, AttributeError):  # AttributeError: a torch that was built without oneDNN
        return False
    return True


def choose_precision(asked: Asked, device: torch.device) -> Precision:
    """The arithmetic that a user asks for: ``auto`` takes bf16 where the hardware has matrix units for it, else fp32.

    Raises:
        DensekitError: the device does not run it.
    """
    if asked == "auto":
        return _fastest(device)
    if refusal := why_not(asked, device):
        raise DensekitError(f"precision: {refusal}; use auto or fp32")
    return asked


def settle_precision(named: Asked, device: torch.device, *, asked: bool) -> tuple[Precision, list[str]]:
    """The arithmetic for a config that may come from another machine, in a checkpoint, a run's folder or a bundle.

    Args:
        named: in the config.
        device: that it is to run on.
        asked: the user names it now; else it was named when the checkpoint was made or the run begun, perhaps on
            another machine, and gives way to ``auto`` where this device does not run it.

    Returns:
        The precision, and a line that says so where another one was named.

    Raises:
        DensekitError: the user asks for what the device does not run.
    """
    refusal = None if asked or named == "auto" else why_not(named, device)
    if refusal is None:
        return choose_precision(named, device), []
    chosen = _fastest(device)
    return chosen, [f"made in {named}, runs in {chosen} here: {refusal}"]


def why_not(precision: Precision, device: torch.device) -> str | None:
    """Why a device does not run a precision: on the CPU fp16 and, without instructions for it, bf16; None: it does."""
    if device.type == "cpu" and precision == "fp16":
        return "fp16 does not train on the CPU"  # its range is too small without the scaled losses of a GPU's step
    if device.type == "cpu" and precision == "bf16" and not convolves_packed(torch.bfloat16):
        return "bf16 does not run on this CPU, which has no instructions for bf16 convolutions"
    return None


def _fastest(device: torch.device) -> Precision:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if device.type == "cpu" and has_units and convolves_packed(torch.bfloat16) else "fp32"


def in_float32(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Without mixed precision, for the last layers; an exported graph that has none is spared the switch."""
    if torch.compiler.is_exporting() and not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Mixed precision for the forward pass."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])
