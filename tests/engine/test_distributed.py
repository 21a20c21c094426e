"""A process on the CPU keeps the memory that tensors free."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

STEPS = """
import resource
import torch
from densekit.engine import distributed
def step():
    tensors = [torch.ones(2_000_000) for _ in range(20)]
    return sum(float(t[0]) for t in tensors)
def faults_of_steps():
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
left = faults_of_steps()
assert distributed.join("cpu").device == torch.device("cpu")
print(left, faults_of_steps())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's setting, on Linux"
)
def test_a_step_does_not_pay_for_its_memory_again():
    # A process of its own, fresh: what was imported and freed before leaves memory to spare.
    told = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True).stdout
    left, kept = map(int, told.split())
    # A system that hands out huge pages, or has memory to spare, may ask little even where nothing is kept.
    assert kept <= max(300, 0.1 * left)
