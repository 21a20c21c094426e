"""The decoder block without the enlarged map: smp's numbers and gradients, in training and packed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch import nn

from densekit.heads.segmentation.doubling import DoublingBlock, spread
from densekit.packed import packed
from densekit.registry import BACKBONES, HEADS


def blocks(skip: int) -> tuple[nn.Module, DoublingBlock]:
    torch.manual_seed(0)
    theirs = UnetDecoderBlock(8, skip, 6)
    return theirs, DoublingBlock(copy.deepcopy(theirs), 8)


def inputs(skip: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    x = torch.randn(2, 8, 5, 7, requires_grad=True)
    return x, torch.randn(2, skip, 10, 14, requires_grad=True) if skip else None


def test_a_spread_kernel_convolves_as_if_the_map_were_enlarged():
    x, weight = torch.randn(1, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 3, 3, dtype=torch.float64)
    wanted = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    torch.testing.assert_close(F.conv_transpose2d(x, spread(weight), stride=2, padding=1), wanted)


@pytest.mark.parametrize("skip", [0, 4])
def test_values_gradients_and_statistics_are_smps(skip):
    theirs, ours = blocks(skip)
    (x, s), weight = inputs(skip), torch.randn(2, 6, 10, 14)
    results = []
    for run in (
        lambda: theirs(x, 10, 14, skip_connection=s),
        lambda: ours.conv2(ours._transposed(x, s)),
        lambda: ours(x, 10, 14, skip_connection=s),
    ):
        for module in (theirs, ours):
            module.zero_grad()
        x.grad = None
        y = run()
        (y * weight).sum().backward()
        module = theirs if not results else ours
        results.append([y.detach(), x.grad.clone(), *(p.grad.clone() for p in module.parameters())])
    for found in results[1:]:
        for ours_, theirs_ in zip(found, results[0], strict=True):
            torch.testing.assert_close(ours_, theirs_, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("skip", [0, 4])
def test_float32_takes_the_short_way_with_channels_last_and_smps_otherwise(skip, monkeypatch):
    theirs, ours = blocks(skip)
    x, s = inputs(skip)
    taken = []
    short = ours._transposed
    monkeypatch.setattr(ours, "_transposed", lambda *maps: taken.append("short") or short(*maps))
    wanted = theirs(x, 10, 14, skip_connection=s)
    torch.testing.assert_close(ours(x, 10, 14, skip_connection=s), wanted)
    assert not taken
    last = [part if part is None else part.contiguous(memory_format=torch.channels_last) for part in (x, s)]
    torch.testing.assert_close(ours(last[0], 10, 14, skip_connection=last[1]), wanted, atol=1e-4, rtol=1e-4)
    assert taken


@pytest.mark.parametrize("skip", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_packed_block_gives_the_same(skip, dtype):
    theirs, ours = blocks(skip)
    x, s = inputs(skip)
    for _ in range(3):
        theirs(x, 10, 14, skip_connection=s)
    ours.load_state_dict(theirs.state_dict())
    block = packed(ours, dtype)
    assert block.packed is not None
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = block(x, 10, 14, skip_connection=s).float()
    with torch.inference_mode():
        wanted = theirs.eval()(x, 10, 14, skip_connection=s)
    assert (found - wanted).norm() <= (1e-5 if dtype == torch.float32 else 0.02) * wanted.norm()


def test_a_unet_doubles_without_the_enlarged_map_where_channels_are_few_and_sizes_double():
    def kinds(**options):
        backbone = BACKBONES.build("resnet18", options)
        head = HEADS.build("unet", {}, backbone.levels, num_classes=2)
        return [type(block).__name__ for block in head.decoder.blocks]

    assert kinds() == ["UnetDecoderBlock"] * 2 + ["DoublingBlock"] * 3
    assert kinds(output_stride=8)[:2] == ["UnetDecoderBlock"] * 2


def test_mixed_precision_is_as_near_to_float32_as_smps():
    theirs, ours = blocks(4)
    (x, s) = inputs(4)
    exact = theirs(x, 10, 14, skip_connection=s)
    with torch.autocast("cpu", torch.bfloat16):
        found, peer = ours(x, 10, 14, skip_connection=s), theirs(x, 10, 14, skip_connection=s)
    assert (found - exact).norm() <= 1.2 * (peer - exact).norm() + 1e-3 * exact.norm()
