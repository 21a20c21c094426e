"""Every registered backbone does what the contract in ``types.Backbone`` says."""

from __future__ import annotations

import pytest
import torch

from densekit.backbones.weights import load_backbone_weights
from densekit.errors import DensekitError
from densekit.registry import BACKBONES
from densekit.types import Backbone

NAMES = [name for name in BACKBONES.names() if not name.endswith("/...")]


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_gives_the_levels_it_claims_learns_and_survives_saving(name, filled):
    net = filled(name).train()
    assert isinstance(net, Backbone)
    strides = [level.stride for level in net.levels]
    assert strides == sorted(strides)
    assert [level.name for level in net.levels] == [f"c{n}" for n in range(1, len(strides) + 1)]

    maps = net(torch.randn(2, 3, 32, 64))
    shapes = [(2, level.channels, 32 // level.stride, 64 // level.stride) for level in net.levels]
    assert [tuple(m.shape) for m in maps] == shapes
    sum(m.square().mean() for m in maps).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.norm().isfinite(), key  # one pass, where asking each number takes three
    assert any(parameter.grad.abs().max() > 0 for parameter in net.conv1.parameters())

    with torch.device("meta"):
        other = BACKBONES.build(name, {}).eval()
    other.load_state_dict(net.eval().state_dict(), assign=True)
    with torch.no_grad():
        for old, new in zip(net(torch.ones(1, 3, 32, 32)), other(torch.ones(1, 3, 32, 32)), strict=True):
            assert torch.equal(old, new)


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(DensekitError, match=r"there is no backbone 'resnet51'; did you mean .*'resnet50'"):
        BACKBONES.build("resnet51", {})


def test_an_unknown_option_lists_the_nearest():
    with pytest.raises(DensekitError, match="has no such option; did you mean 'frozen_stages'"):
        BACKBONES.build("resnet18", {"frozen_stage": 1})


def test_images_of_another_channel_count_are_refused():
    with pytest.raises(DensekitError, match=r"'resnet20' takes images of 3 channels, these have 2; .* in_channels=2"):
        BACKBONES.build("resnet20", {})(torch.zeros(1, 2, 32, 32))


def test_weights_with_three_channels_serve_two_channels(tmp_path, filled):
    torch.save(filled("resnet20").state_dict(), tmp_path / "w.pth")
    net = BACKBONES.build("resnet20", {"in_channels": 2})
    assert load_backbone_weights(net, str(tmp_path / "w.pth")).folded == "conv1.weight"
    assert net(torch.zeros(1, 2, 32, 32))[0].shape == (1, 16, 32, 32)
