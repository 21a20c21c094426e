"""RoIAlign's kernels for GPUs against torchvision's, on a GPU or, where there is none, under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torchvision

from densekit.errors import DensekitError
from densekit.ops import roi_align
from densekit.ops.cuda import roi_align as in_triton
from densekit.ops.cuda import trial
from tests.ops.kernels import DEVICE, runs_kernels

STRIDES = (4, 8)
BOXES = torch.tensor(
    [
        [40.0, 3, 61, 9],
        [0, 0, 64, 32],  # the whole image
        [-30, -30, 20, 20],  # begins where no point counts
        [63, 31, 64, 32],  # less than a cell, at the corner
        [0, 0, 0, 0],  # padding
    ]
)
IMAGES, LEVELS = torch.tensor([1, 0, 0, 1, 0]), torch.tensor([0, 1, 0, 1, 1])
"""Neither in order."""


def maps_of(channels: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, channels, 32 // stride, 64 // stride, generator=generator) for stride in STRIDES]
    return [m.to(DEVICE, dtype, memory_format=torch.channels_last).requires_grad_() for m in maps]


def pooled(maps, size, samples, aligned):
    boxes, images, levels = (values.to(DEVICE) for values in (BOXES, IMAGES, LEVELS))
    return in_triton.pool(maps, boxes, images, levels, STRIDES, size, samples, aligned)


def theirs(maps, size, samples, aligned):
    """Torchvision's, level by level."""
    found = maps[0].new_zeros(len(BOXES), maps[0].shape[1], size, size)
    for level, stride in enumerate(STRIDES):
        here = torch.eq(LEVELS, level)
        boxes = torch.cat([IMAGES[here, None].float(), BOXES[here]], 1).to(DEVICE)
        found[here] = torchvision.ops.roi_align(maps[level], boxes, size, 1 / stride, samples, aligned)
    return found


@runs_kernels
@pytest.mark.parametrize(("size", "samples", "aligned", "channels"), [(2, 2, False, 5), (3, 1, True, 16)])
def test_patches_and_gradients_are_torchvisions(size, samples, aligned, channels):
    maps = maps_of(channels)
    ours, expected = pooled(maps, size, samples, aligned), theirs(maps, size, samples, aligned)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    gradients = [torch.autograd.grad((patches * weights).sum(), maps) for patches in (ours, expected)]
    for mine, their in zip(*gradients):
        assert their.abs().max() > 0.1
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=0)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_of_16_bits_are_summed_in_float32_and_not_copied(dtype):
    maps = maps_of(16, dtype)
    ours, expected = pooled(maps, 2, 2, False), theirs([m.float() for m in maps], 2, 2, False)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, expected.to(dtype), atol=1e-6, rtol=torch.finfo(dtype).eps)
    if (dtype, DEVICE.type) == (torch.bfloat16, "cpu"):
        return  # Triton's interpreter multiplies matrices of bfloat16 as if its bits were integers
    gradients = torch.autograd.grad(ours.float().sum(), maps)
    for mine, their in zip(gradients, torch.autograd.grad(expected.sum(), maps)):
        assert mine.dtype == dtype
        assert mine.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=2 * torch.finfo(dtype).eps)


@runs_kernels
def test_no_box_leaves_no_patch_and_no_gradient():
    maps, none = maps_of(4), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    patches = in_triton.pool(maps, torch.zeros(0, 4, device=DEVICE), none, none, STRIDES, 2, 2, False)
    assert patches.shape == (0, 4, 2, 2)
    assert all(not gradient.any() for gradient in torch.autograd.grad(patches.sum(), maps))


@runs_kernels
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.long)])
def test_a_compiled_graph_holds_both_ways_whole(backend):
    maps = maps_of(4)

    def gradients(run):
        torch._dynamo.reset()
        return torch.autograd.grad(run(maps, 1, 1, False).square().sum(), maps)

    compiled = torch.compile(pooled, fullgraph=True, backend=backend)
    torch.testing.assert_close(gradients(compiled), gradients(pooled))


@runs_kernels
def test_the_reference_says_the_same_and_the_trial_compares_with_it():
    maps = [m.detach().cpu().contiguous() for m in maps_of(3)]
    found = in_triton.reference(maps, BOXES, IMAGES, LEVELS, STRIDES, 2, 3, True)
    expected = [
        torchvision.ops.roi_align(
            maps[level], [BOXES[i : i + 1] if image == j else BOXES[:0] for j in (0, 1)], 2, s, 3, True
        )
        for i, (image, level) in enumerate(zip(IMAGES, LEVELS.tolist()))
        for s in (1 / STRIDES[level],)
    ]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)
    assert in_triton.agrees(DEVICE)


@pytest.fixture
def untried(monkeypatch):
    """No kernel was tried before, nor is afterwards."""
    monkeypatch.setattr(trial, "_FOUND", {})


def test_a_kernel_that_fails_or_errs_gives_way_with_one_line(untried):
    gpu = torch.device("cuda")

    def fails(device):
        raise OSError("no C compiler\n  in 3 lines\n")

    with pytest.warns(RuntimeWarning, match=r"^a runs without its kernel for GPUs: OSError: no C compiler in 3 lines$"):
        assert not trial.works("a", gpu, fails)
    with pytest.warns(RuntimeWarning, match="^b runs without its kernel for GPUs: it gives other numbers here$"):
        assert not trial.works("b", gpu, lambda _: False)
    assert trial.works("c", gpu, lambda _: True)
    assert not trial.works("a", gpu, lambda _: True), "tried once"
    assert not trial.works("d", torch.device("cpu"), lambda _: True)


def test_the_compiler_takes_the_answer_of_a_trial_and_does_not_look_inside(untried):
    tried = []

    def notes(device):
        tried.append(device.type)
        return bool(torch.ones(1, requires_grad=True).sum().item())  # a graph could not hold this

    def double(x):
        return x * 2 if trial.works("e", torch.device("cuda"), notes) else x

    found = torch.compile(double, fullgraph=True, backend="eager")(torch.ones(1))
    assert (found.item(), tried) == (2, ["cuda"])


def test_a_gpu_takes_the_kernels_where_they_work_also_for_the_same_bits(monkeypatch):
    gpu = torch.device("cuda")
    for works, method, same_bits in ((True, "triton", "triton"), (False, "kernel", "table")):
        monkeypatch.setattr(in_triton, "works", lambda _, works=works: works)
        assert roi_align.best_method(gpu) == method
        torch.set_deterministic_debug_mode("error")
        assert roi_align.best_method(gpu) == same_bits
        torch.set_deterministic_debug_mode("default")


def test_a_device_without_triton_is_told_what_to_use():
    maps, boxes = [torch.zeros(1, 2, 4, 4)], torch.zeros(1, 3, 4)
    with pytest.raises(DensekitError, match=r"^roi_align: 'triton' needs a GPU .* not cpu; use auto$"):
        roi_align.roi_align(maps, boxes, [4], method="triton")
