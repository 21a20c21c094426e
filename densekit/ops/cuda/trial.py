"""Whether this machine's GPU runs our kernels: each is tried once on a few numbers, beside what it should compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

_FOUND: dict[tuple[str, torch.device], bool] = {}


def works(name: str, device: torch.device, trial: Callable[[torch.device], bool]) -> bool:
    """Whether a kernel gives the right numbers on a device, so that it may be taken there.

    What fails (no Triton, no compiler on the machine, a GPU that Triton does not know, other numbers) is said in one
    warning; torch's own operators serve then.

    Args:
        name: of the kernel, for the warning.
        device: only a GPU is asked.
        trial: runs the kernel on small inputs and says whether it gave what its reference gives; it may fail in any
            way.
    """
    if device.type != "cuda":
        return False
    if (name, device) not in _FOUND:
        _FOUND[name, device] = _try(name, device, trial)
    return _FOUND[name, device]


# The compiler takes the answer as it is, instead of looking inside. torch.compiler.assume_constant_result sets the same
# mark, but imports the compiler for it.
works._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _try(name: str, device: torch.device, trial: Callable[[torch.device], bool]) -> bool:
    try:
        with torch.inference_mode(False), torch.enable_grad():
            why = None if trial(device) else "it gives other numbers here"
    except Exception as error:  # of many kinds: of imports, of Triton's compiler, of the driver
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if why is not None:
        warnings.warn(f"{name} runs without its kernel for GPUs: {why}", RuntimeWarning, stacklevel=2)
    return why is None
