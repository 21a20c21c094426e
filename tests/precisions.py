"""What tests of bf16 need of the CPU."""

from __future__ import annotations

import pytest
import torch

from densekit.precision import convolves_packed

needs_bf16 = pytest.mark.skipif(
    not convolves_packed(torch.bfloat16), reason="this CPU runs no bf16 convolutions in oneDNN's packed form"
)
