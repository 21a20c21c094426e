"""A process on the CPU keeps the memory that tensors free."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import torch
from densekit.engine import distributed
if sys.argv[1] == "keep":
    assert distributed.join("cpu").device == torch.device("cpu")
def step():
    tensors = [torch.ones(2_000_000) for _ in range(20)]
    return sum(float(t[0]) for t in tensors)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
before = faults()
for _ in range(3):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's setting, on Linux"
)
def test_a_step_does_not_pay_for_its_memory_again():
    def faults(how: str) -> int:
        found = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
        return int(found.stdout)

    # A system that hands out huge pages, or has memory to spare, may ask little even where nothing is kept.
    assert faults("keep") <= max(300, 0.1 * faults("leave"))
