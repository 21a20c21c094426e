"""Packed models: the same predictions but for roundings of the dtype, and no norm, cast or ReLU of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from densekit import layers
from densekit.backbones.blocks import Block
from densekit.layers import LAYOUTS, FrozenBatchNorm2d, PackedConv2d
from densekit.model import DenseModel
from densekit.ops import winograd
from densekit.packed import packed
from densekit.registry import BACKBONES, HEADS
from densekit.types import Batch, Classes
from tests.precisions import needs_bf16

CLASSES = Classes(("a", "b", "c"), (1, 2, 3))
OWN = ("resnet18", "resnet50", "resnext50_32x4d", "resnet20", "plain18", "pyconvresnet50")


def settled(module: nn.Module) -> nn.Module:
    """Norms as after training: no statistic and no affine parameter at its first value."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor, low, high in (
                (part.weight, 0.5, 1.0),
                (part.bias, -0.2, 0.2),
                (part.running_mean, -0.2, 0.2),
                (part.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high)
    return module.eval()


def model_of(backbone: str, head: str, **options: object) -> DenseModel:
    torch.manual_seed(1)
    body = BACKBONES.build(backbone, {})
    heads = {"head": HEADS.build(head, dict(options), body.levels, num_classes=len(CLASSES))}
    model = DenseModel(body, heads, mean=[0.5] * 3, std=[0.25] * 3, classes=CLASSES)
    settled(model)
    return model


def batch_of(size: int = 64) -> Batch:
    images = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    sizes = torch.tensor([[size, size]] * 2)
    return Batch(images, sizes, sizes, [0, 1], torch.arange(2))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("fuses", [pytest.param(True, marks=needs_bf16), False], ids=["onednn", "plain"])
def test_a_packed_backbone_is_as_near_to_float32_as_autocast_is(name, fuses, monkeypatch):
    backbone = settled(BACKBONES.build(name, {}))
    if not fuses:
        monkeypatch.setattr(layers, "convolves_packed", lambda dtype: False)
    copy = packed(backbone, torch.bfloat16)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        given, wanted = copy(x), backbone(x)
    with torch.inference_mode():
        exact = backbone(x)
    for ours, theirs, true in zip(given, wanted, exact, strict=True):
        error = (ours.float() - true).norm() / true.norm()
        assert error <= 1.2 * (theirs.float() - true).norm() / true.norm() + 1e-3


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("fuses", [True, False], ids=["onednn", "plain"])
def test_a_packed_convolution_is_convolution_norm_sum_and_relu(groups, relu, add, fuses, monkeypatch):
    if not fuses:
        monkeypatch.setattr(layers, "convolves_packed", lambda dtype: False)
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    norm = settled(nn.BatchNorm2d(16))
    x, other = torch.randn(2, 8, 9, 7), torch.randn(2, 16, 5, 4)
    kept = other.clone()
    with torch.inference_mode():
        found = PackedConv2d(conv, norm, torch.float32)(x, relu=relu, add=other if add else None)
        wanted = norm(conv(x)) + (other if add else 0)
    torch.testing.assert_close(found, wanted.relu() if relu else wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(other, kept)


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)], ids=str)
def test_a_packed_convolution_gives_the_same_where_it_may_write_over_the_sums_other_part(last, dtype):
    conv, x = PackedConv2d(nn.Conv2d(8, 16, 3, padding=1), None, dtype), torch.randn(2, 8, 9, 7)
    other = torch.randn(2, 16, 9, 7, dtype=dtype)
    other = other.contiguous(memory_format=torch.channels_last) if last else other
    with torch.inference_mode():
        wanted = conv(x, relu=True, add=other.clone())
        found = conv(x, relu=True, add=other, spare=True)
    assert torch.equal(found, wanted)
    assert (found.data_ptr() == other.data_ptr()) == last


@needs_bf16  # elsewhere nothing is written in place
@pytest.mark.parametrize("name", OWN)
def test_a_packed_backbone_keeps_every_map_that_it_gives(name):
    copy = packed(settled(BACKBONES.build(name, {})), torch.bfloat16)
    given: list[torch.Tensor] = []
    for number in range(1, len(copy.levels)):
        copy.get_submodule(f"layer{number}.0").register_forward_pre_hook(lambda _, x: given.append(x[0].clone()))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        maps = copy(torch.randn(2, 3, 64, 64))
    assert len(given) == len(maps) - 1  # the first stage may get the stem's map pooled
    for before, level in zip(given[1:], maps[1:], strict=False):
        assert torch.equal(before, level)
    if not copy.pools:
        assert torch.equal(given[0], maps[0])


@pytest.mark.parametrize(
    ("head", "options"), [("faster_rcnn", {}), ("unet", {}), ("deeplab_v3_plus", {}), ("classifier", {})]
)
def test_a_packed_model_predicts_what_the_model_predicts(head, options):
    model = model_of("resnet18", head, **options)
    copy, batch = packed(model, torch.bfloat16), batch_of()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        if head == "faster_rcnn":
            given, wanted = (m.head().rpn.head(m.head().neck(m.features(batch))) for m in (copy, model))
        elif head == "classifier":
            given, wanted = ((m.predict(batch).probabilities,) for m in (copy, model))
        else:
            given, wanted = (m.predict(batch).probabilities for m in (copy, model))
    for ours, theirs in zip(given, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()


def test_a_packed_convolution_takes_any_sizes_and_keeps_a_few_layouts():
    conv = nn.Conv2d(8, 16, 3, padding=1)
    copy = PackedConv2d(conv, None, torch.float32)
    with torch.inference_mode():
        for side in (*range(4, 4 + 2 * LAYOUTS), 4):
            x = torch.randn(1, 8, side, 5)
            torch.testing.assert_close(copy(x), conv(x), atol=1e-5, rtol=1e-5)
    assert len(copy.layouts) <= LAYOUTS


def test_packing_leaves_the_model_alone_and_folds_every_norm_of_it():
    model = model_of("resnet18", "unet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = packed(model, torch.bfloat16)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(p.requires_grad for p in model.parameters())
    kinds = [type(part) for part in copy.modules()]
    assert nn.BatchNorm2d not in kinds
    assert nn.Conv2d not in kinds
    assert PackedConv2d in kinds
    assert not any(p.requires_grad for p in copy.parameters())


def test_norms_that_look_at_the_image_are_not_folded():
    block = BACKBONES.build("resnet18", {"norm": "group"})
    copy = packed(block, torch.bfloat16)
    assert sum(isinstance(part, nn.GroupNorm) for part in copy.modules()) == 20
    blocks = [part for part in copy.modules() if isinstance(part, Block)]
    assert all(isinstance(part.conv1, PackedConv2d) for part in blocks)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in zip(copy(x), block.eval()(x), strict=True):
            assert (ours.float() - theirs.float()).norm() <= 0.02 * theirs.float().norm()


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("points", [True, False], ids=["fewer products", "oneDNN"])
def test_a_backbone_packed_in_float32_gives_its_own_maps(name, points, monkeypatch):
    monkeypatch.setattr(winograd, "_faster_here", lambda: points)
    backbone = settled(BACKBONES.build(name, {}))
    copy = packed(backbone, torch.float32)
    assert any(isinstance(part, PackedConv2d) for part in copy.modules())
    x = torch.randn(2, 3, 96, 64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for found, wanted in zip(copy(x), backbone(x), strict=True):
            assert (found - wanted).norm() <= 2e-5 * wanted.norm()


@pytest.mark.parametrize(("head", "options"), [("faster_rcnn", {}), ("unet", {}), ("classifier", {})])
def test_a_model_packed_in_float32_predicts_what_the_model_predicts(head, options, monkeypatch):
    monkeypatch.setattr(winograd, "_faster_here", lambda: True)
    model = model_of("resnet18", head, **options)
    copy, batch = packed(model, torch.float32), batch_of(128)
    assert copy is not model
    with torch.inference_mode():
        if head == "faster_rcnn":
            given, wanted = (m.head().rpn.head(m.head().neck(m.features(batch))) for m in (copy, model))
        else:
            given, wanted = ((m.predict(batch).probabilities) for m in (copy, model))
    for ours, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_float32_with_channels_first_is_the_plain_path():
    model = model_of("resnet18", "classifier").train()
    model.memory_format = torch.contiguous_format
    assert packed(model, torch.float32) is model
    assert not model.training
