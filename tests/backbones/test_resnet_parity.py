"""The same weights give torchvision's and timm's numbers at every level, and state dicts load both ways."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from densekit.backbones.resnet import VARIANTS
from densekit.registry import BACKBONES

IN_TORCHVISION = set(torchvision.models.list_models(torchvision.models))
SHARED = [v.name for v in VARIANTS if v.name in IN_TORCHVISION or timm.is_model(v.name)]


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def peer_levels(net: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """c1 .. c5 of a torchvision ResNet."""
    x = net.relu(net.bn1(net.conv1(images)))
    maps = [x]
    x = net.maxpool(x)
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        maps.append(x)
    return maps


def test_that_every_network_that_the_peers_have_is_compared():
    assert set(SHARED) >= {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d"}
    assert set(SHARED) >= {"resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"}


@torch.no_grad()
@pytest.mark.parametrize("name", SHARED)
def test_levels_equal_torchvisions_and_timms(name, images, filled):
    net = filled(name).eval()
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).eval()
    kept = theirs.load_state_dict(net.state_dict(), strict=False, assign=True)
    assert kept.missing_keys == ["fc.weight", "fc.bias"]
    assert not kept.unexpected_keys
    maps = net(images)
    for level, ours_, torchvisions in zip(net.levels, maps, peer_levels(theirs, images), strict=True):
        assert ours_.shape == (2, level.channels, 32 // level.stride, 32 // level.stride)
        scale = max(1.0, float(torchvisions.abs().max()))
        assert (ours_ - torchvisions).abs().max() <= 1e-5 * scale
    assert sum(p.numel() for p in net.parameters()) == sum(
        p.numel() for n, p in theirs.named_parameters() if not n.startswith("fc.")
    )

    with torch.device("meta"):
        from_timm = timm.create_model(name, pretrained=False, features_only=True).eval()
    from_timm.load_state_dict(net.state_dict(), assign=True)
    assert [(f["num_chs"], f["reduction"]) for f in from_timm.feature_info] == [
        (level.channels, level.stride) for level in net.levels
    ]
    for ours_, timms in zip(maps, from_timm(images), strict=True):
        assert (ours_ - timms).abs().max() <= 1e-5 * max(1.0, float(timms.abs().max()))


@pytest.mark.parametrize("name", SHARED)
def test_the_peers_state_dicts_load_into_ours(name):
    with torch.device("meta"):
        net = BACKBONES.build(name, {})
        theirs = torchvision.models.get_model(name).state_dict()
        from_timm = timm.create_model(name, pretrained=False, features_only=True).state_dict()
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    assert {key: v.shape for key, v in theirs.items() if not key.startswith("fc.")} == shapes
    assert {key: v.shape for key, v in from_timm.items()} == shapes


@torch.no_grad()
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_dilated_levels_equal_timms(name, output_stride, images):
    net = BACKBONES.build(name, {"output_stride": output_stride}).eval()
    theirs = timm.create_model(name, pretrained=False, features_only=True, output_stride=output_stride).eval()
    theirs.load_state_dict(net.state_dict())
    assert [level.stride for level in net.levels] == theirs.feature_info.reduction()
    for ours_, timms in zip(net(images), theirs(images), strict=True):
        assert (ours_ - timms).abs().max() <= 1e-5 * max(1.0, float(timms.abs().max()))


@torch.no_grad()
def test_a_deep_stem_equals_timms(images):
    net = BACKBONES.build("resnet50", {"stem": "deep"}).eval()
    theirs = timm.create_model("resnet50", pretrained=False, features_only=True, stem_type="deep", stem_width=32).eval()
    theirs.load_state_dict(net.state_dict())
    for ours_, timms in zip(net(images), theirs(images), strict=True):
        assert (ours_ - timms).abs().max() <= 1e-5 * max(1.0, float(timms.abs().max()))


@torch.no_grad()
def test_a_frozen_norm_folded_into_the_convolution_equals_batch_norm_in_evaluation(images, filled):
    net = filled("resnet18").eval()
    frozen = BACKBONES.build("resnet18", {"norm": "frozen"})
    frozen.load_state_dict({k: v for k, v in net.state_dict().items() if "num_batches" not in k})
    for ours_, folded in zip(net(images), frozen.train()(images), strict=True):
        assert (ours_ - folded).abs().max() <= 1e-5 * max(1.0, float(ours_.abs().max()))


@pytest.mark.parametrize(
    ("name", "millions"),
    # He et al. 2015, table 6 (CIFAR, 0.1 M of it rounded), with the classifier's 650 parameters; resnet8 by formula.
    [
        ("resnet8", 0.08),
        ("resnet20", 0.27),
        ("resnet32", 0.46),
        ("resnet44", 0.66),
        ("resnet56", 0.85),
        ("resnet110", 1.7),
    ],
)
def test_cifar_networks_have_the_papers_number_of_parameters(name, millions):
    count = sum(p.numel() for p in BACKBONES.build(name, {}).parameters()) + 64 * 10 + 10
    assert count / 1e6 == pytest.approx(millions, abs=0.005 if millions < 1 else 0.05)


def test_pyconvresnet50_has_the_papers_number_of_parameters():
    with torch.device("meta"):
        net = BACKBONES.build("pyconvresnet50", {})
    # Duta et al. 2020: 24.85 million with the classifier of 1000 classes.
    assert (sum(p.numel() for p in net.parameters()) + 2048 * 1000 + 1000) / 1e6 == pytest.approx(24.85, abs=0.005)


def test_pyconvresnet_has_the_authors_parameter_names():
    with torch.device("meta"):
        state = BACKBONES.build("pyconvresnet50", {}).state_dict()
    # The four kernels 3, 5, 7, 9 of the first stage with groups 1, 4, 8, 16, and one 3x3 in the last.
    shapes = [tuple(state[f"layer1.0.conv2.conv2_{n}.weight"].shape) for n in (1, 2, 3, 4)]
    assert shapes == [(16, 64, 3, 3), (16, 16, 5, 5), (16, 8, 7, 7), (16, 4, 9, 9)]
    assert [state[f"layer2.0.conv2.conv2_{n}.weight"].shape[0] for n in (1, 2, 3)] == [32, 32, 64]
    assert tuple(state["layer4.0.conv2.weight"].shape) == (512, 512, 3, 3)
    assert tuple(state["layer1.0.downsample.1.weight"].shape) == (256, 64, 1, 1)
    assert tuple(state["layer1.0.downsample.2.running_var"].shape) == (256,)
