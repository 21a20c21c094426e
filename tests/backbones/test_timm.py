"""timm networks as backbones: levels read from them, options, and which networks do not serve."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from densekit.errors import DensekitError
from densekit.model import DenseModel
from densekit.registry import BACKBONES, HEADS
from densekit.types import Backbone, Batch, Classes, Targets
from tests.tools import runs

FAMILY = (
    "resnet", "resnext", "wide_resnet", "resnetv2", "seres", "ecares", "legacy_se", "resnest", "res2n", "gernet",
    "tresnet", "regnet", "skres", "cspres", "nf_res", "nf_eca", "nf_se", "botnet", "sebotnet", "eca_botnext",
    "halonet", "sehalonet", "halo2botnet", "lamhalobotnet", "lambda_res", "eca_halonext", "bat_res", "gcres", "rexnet",
    "eca_res", "haloregnetz",
)  # fmt: skip
NO_SIZE_WORKS = {"haloregnetz_b": "its blocks and halos fit at no size that was tried (multiples of 32 up to 512)"}


def meta(name: str, **options: object) -> nn.Module:
    """Shapes without numbers: fast, whatever the network's size."""
    with torch.device("meta"):
        return BACKBONES.build(f"timm/{name}", options).eval()


def check(net: nn.Module, side: int = 256) -> None:
    assert isinstance(net, Backbone)
    height, width = net.size or (side, side)
    with torch.no_grad():
        maps = net(torch.empty(2, 3, height, width, device="meta"))
    for level, m in zip(net.levels, maps, strict=True):
        assert tuple(m.shape) == (2, level.channels, -(-height // level.stride), -(-width // level.stride)), level
    names = [level.name for level in net.levels]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("resnet10t", "c1 c2 c3 c4 c5"),
        ("resnetv2_18", "c1 c2 c3 c4 c5"),
        ("tresnet_m", "c2 c3 c4 c5"),
        ("cspdarknet53", "c0 c1 c2 c3 c4 c5"),
        ("botnet26t_256", "c1 c2 c3 c4 c5"),
        ("halonet26t", "c1 c2 c3 c4 c5"),
        ("convnext_atto", "c2 c3 c4 c5"),
        ("swin_tiny_patch4_window7_224", "c2 c3 c4 c5"),
        ("vit_tiny_patch16_224", "c4 c5 c6"),
    ],
)
def test_levels_are_read_from_the_network_and_hold(name, levels):
    net = meta(name)
    check(net)
    assert " ".join(level.name for level in net.levels) == levels


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in timm.list_models() if n.startswith(FAMILY)])
def test_the_whole_resnet_family_serves_but_for_the_known_ones(name):
    if name in NO_SIZE_WORKS:
        with pytest.raises(DensekitError, match="does not take images of 256 x 256"):
            check(meta(name))
        return
    check(meta(name))


def test_the_list_of_the_family_is_not_empty():
    assert len([n for n in timm.list_models() if n.startswith(FAMILY)]) > 230


def test_a_network_learns_and_gives_timms_numbers():
    net = BACKBONES.build("timm/resnet10t", {"in_channels": 1})
    theirs = timm.create_model("resnet10t", pretrained=False, features_only=True, in_chans=1)
    theirs.load_state_dict(net.net.state_dict())
    x = torch.randn(2, 1, 64, 64)
    for a, b in zip(net.eval()(x), theirs.eval()(x), strict=True):
        assert torch.equal(a, b)
    sum(m.square().mean() for m in net.train()(x)).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_dilated_networks_keep_the_names_of_their_levels():
    net = meta("resnet26", output_stride=8)
    check(net)
    assert {level.name: level.stride for level in net.levels} == {"c1": 2, "c2": 4, "c3": 8, "c4": 8, "c5": 8}


@pytest.mark.parametrize("name", ["resnet10t", "regnetx_002"])
def test_frozen_stages_are_found_by_what_the_levels_are_computed_from(name):
    net = BACKBONES.build(f"timm/{name}", {"frozen_stages": 2}).train()
    before = {k: v.clone() for k, v in net.named_buffers() if k.endswith("running_mean")}
    maps = net(torch.randn(2, 3, 64, 64))
    assert not maps[0].requires_grad
    assert not maps[1].requires_grad
    maps[-1].sum().backward()
    kept = [torch.equal(v, before[k]) for k, v in net.named_buffers() if k in before]
    frozen = [p.grad is None for p in net.parameters()]
    assert any(kept)
    assert not all(kept)
    # What is frozen comes first, and something is left to learn.
    assert frozen == sorted(frozen, reverse=True)
    assert frozen[0]
    assert not frozen[-1]
    assert net.levels[1].name == "c2"


@pytest.mark.parametrize(("norm", "kind"), [("frozen", "Frozen"), ("group", "GroupNorm"), ("sync", "SyncBatchNorm2d")])
def test_norms_can_be_replaced(norm, kind):
    net = meta("resnet10t", norm=norm)
    assert not [m for m in net.modules() if type(m) is nn.BatchNorm2d]
    assert [m for m in net.modules() if kind in type(m).__name__]
    check(net)


def test_a_fixed_size_can_be_chosen_and_is_held():
    net = meta("botnet26t_256", image_size=[128, 192])
    assert net.size == (128, 192)
    check(net)
    with pytest.raises(DensekitError, match="takes images of 128 x 192 only, these are 256 x 256; resize them"):
        net(torch.empty(1, 3, 256, 256, device="meta"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50x", {}, "timm has no network 'resnet50x'; did you mean"),
        ("tresnet_m", {"output_stride": 16}, "'tresnet_m' does not take output_stride .*; leave it out"),
        ("resnet10t", {"image_size": [64, 64]}, "'resnet10t' does not take img_size"),
        ("resnet10t", {"frozen_stages": 6}, r"frozen_stages: timm/resnet10t takes 0 \(none\) to 5 \(all\), not 6"),
        ("regnety_002", {"norm": "group"}, "joins norm and activation in BatchNormAct2d"),
        ("vit_small_patch14_dinov2", {}, "gives a map of stride 14, heads need powers of two"),
    ],
)
def test_what_a_network_does_not_have_is_told_in_one_line(name, options, message):
    with pytest.raises(DensekitError, match=message) as error:
        meta(name, **options)
    assert "\n" not in str(error.value)


def test_sizes_that_a_network_refuses_are_told():
    with pytest.raises(DensekitError, match="'timm/halonet26t' does not take images of 64 x 64; resize them"):
        meta("halonet26t")(torch.empty(1, 3, 64, 64, device="meta"))


def test_images_of_another_channel_count_are_refused():
    with pytest.raises(DensekitError, match="takes images of 3 channels, these have 4"):
        meta("resnet10t")(torch.empty(1, 4, 64, 64, device="meta"))


STEMS_OF_1X1 = ("fastvit_t8", "repvgg_a0", "mobileone_s0")


def learn_with_stems_of_1x1(_: int) -> None:
    images, sizes = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.full((2, 2), 64)
    batch = Batch(images, sizes, sizes, [0, 1], torch.arange(2), Targets(labels=torch.arange(2)))
    for name in STEMS_OF_1X1:
        backbone = BACKBONES.build(f"timm/{name}", {})
        head = HEADS.build("classifier", {}, backbone.levels, num_classes=2)
        classes = Classes(("a", "b"), (0, 1))
        model = DenseModel(backbone, {"head": head}, mean=[0.5], std=[0.2], classes=classes).train()
        stems = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
        assert any(m.kernel_size == (1, 1) and m.stride == (2, 2) for m in stems), name
        sum(model(batch).values()).backward()
        assert all(bool(m.weight.grad.isfinite().all()) for m in stems), name


def test_networks_whose_stem_is_a_1x1_convolution_with_stride_learn_with_channels_last():
    """Torch's own convolution ends the process of it, or hangs."""
    runs.apart(learn_with_stems_of_1x1)


@pytest.mark.parametrize("name", ["inception_v3", "legacy_xception"])
def test_networks_that_do_not_pad_their_borders_are_told_with_some_that_do(name):
    with pytest.raises(DensekitError, match=r"61 x 61 where heads need 64 x 64 \(stride 2.*timm/xception41, ") as error:
        meta(name)
    assert "\n" not in str(error.value)
    check(meta("xception41"))
    check(meta("inception_next_tiny"))
