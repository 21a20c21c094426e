"""The kernel of the random keys against torch's operators: on a GPU or, without one, under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from densekit.ops import sampling
from densekit.ops.cuda import random_keys as in_triton
from tests.ops.kernels import DEVICE, runs_kernels

pytestmark = runs_kernels

SEEDS = torch.tensor([0, 1, -1, 2**31, -(2**62), 2**63 - 1])


@pytest.mark.parametrize("count", [1, 1024, 1030])
@pytest.mark.parametrize("stream", [0, 1, 2, 77])
def test_keys_are_those_of_the_cpu_to_the_bit(count, stream):
    found = in_triton.random_keys(SEEDS.to(DEVICE), count, sampling.use_of(stream)).cpu()
    assert torch.equal(found, sampling.random_keys(SEEDS, count, stream))
    assert found.unique().numel() > 0.99 * found.numel()


def test_no_seed_and_no_key_are_no_keys():
    for seeds, count in ((SEEDS[:0], 3), (SEEDS, 0)):
        assert in_triton.random_keys(seeds.to(DEVICE), count, 1).shape == (len(seeds), count)


def test_a_gpu_takes_the_kernel_where_it_agrees_but_not_inside_a_compiled_graph(monkeypatch):
    assert in_triton.agrees(DEVICE)
    monkeypatch.setattr(in_triton, "works", lambda _: True)
    monkeypatch.setattr(in_triton, "random_keys", lambda *_: "the kernel's")
    assert sampling.random_keys(SEEDS, 3, 1) == "the kernel's"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # which fuses the operators with their neighbours
    assert sampling.random_keys(SEEDS, 3, 1).shape == (6, 3)


def test_no_value_is_needed_for_the_shape():
    keys = in_triton.random_keys(SEEDS.to("meta"), 5, 1)
    assert (keys.shape, keys.dtype, keys.device.type) == ((6, 5), torch.int64, "meta")
