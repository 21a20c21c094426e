"""Whether kernels in Triton run here: on a GPU or, without one, under Triton's interpreter."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _why_not() -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton does not come with this torch"
    triton, numpy = (tuple(map(int, importlib.metadata.version(name).split(".")[:2])) for name in ("triton", "numpy"))
    if DEVICE.type == "cpu" and triton < (3, 7) and numpy >= (2, 4):
        return "without a GPU: the interpreter of Triton before 3.7 takes an array for a number, as NumPy 2.4 does not"
    return ""


runs_kernels = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "-")
