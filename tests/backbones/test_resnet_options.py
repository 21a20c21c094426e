"""Each option of the ResNet family does what it says."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from densekit.backbones.blocks import Block, PaddingShortcut, unbiased_conv
from densekit.backbones.resnet import ResNet, Variant
from densekit.errors import DensekitError
from densekit.layers import FrozenBatchNorm2d, SyncBatchNorm2d
from densekit.registry import BACKBONES


def build(name: str = "resnet20", **options: object) -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES.build(name, options)


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_any_number_of_input_channels(channels):
    assert build(in_channels=channels)(torch.zeros(1, channels, 32, 32))[-1].shape == (1, 64, 8, 8)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("batch", nn.BatchNorm2d), ("frozen", FrozenBatchNorm2d), ("group", nn.GroupNorm), ("sync", SyncBatchNorm2d)],
)
def test_every_norm_of_the_network_is_of_the_kind_asked_for(norm, kind):
    net = build("resnet18", norm=norm)
    norms = [m for n, m in net.named_modules() if n.split(".")[-1].startswith("bn") or n.endswith("downsample.1")]
    assert len(norms) == 20
    assert {type(m) for m in norms} == {kind}
    maps = net(torch.randn(2, 3, 64, 64))
    maps[-1].sum().backward()
    assert maps[-1].isfinite().all()


@pytest.mark.parametrize(
    ("stem", "strides"), [("7x7", [2, 4, 8, 16, 32]), ("deep", [2, 4, 8, 16, 32]), ("3x3", [1, 1, 2, 4, 8])]
)
@pytest.mark.parametrize("name", ["resnet18", "pyconvresnet50_k135"])
def test_stems_set_the_strides(name, stem, strides):
    with torch.device("meta"):
        net = BACKBONES.build(name, {"stem": stem})
        maps = net(torch.zeros(1, 3, 64, 64))
    assert [level.stride for level in net.levels] == strides
    assert [m.shape[-1] for m in maps] == [64 // s for s in strides]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "pyconvresnet50", "plain34"])
def test_the_output_stride_bounds_every_level_and_keeps_the_parameters(name, output_stride):
    with torch.device("meta"):
        net, plain = BACKBONES.build(name, {"output_stride": output_stride}), BACKBONES.build(name, {})
        maps = net(torch.zeros(1, 3, 64, 64))
    assert [level.stride for level in net.levels] == [min(s, output_stride) for s in (2, 4, 8, 16, 32)]
    assert [m.shape[-1] for m in maps] == [64 // level.stride for level in net.levels]
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


@pytest.mark.parametrize("frozen", range(6))
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(frozen):
    net = build("resnet18", frozen_stages=frozen).train()
    before = {k: v.clone() for k, v in net.named_buffers() if k.endswith("running_mean")}
    loss = sum(m.sum() for m in net(torch.randn(2, 3, 32, 32)))
    if frozen < 5:
        loss.backward()
    parts = {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4}
    for key, parameter in net.named_parameters():
        is_frozen = parts[key.split(".")[0]] < frozen
        assert parameter.requires_grad is not is_frozen, key
        assert (parameter.grad is None) is is_frozen, key
    for key, buffer in net.named_buffers():
        if key in before:
            assert torch.equal(buffer, before[key]) is (parts[key.split(".")[0]] < frozen), key


def test_a_network_switched_to_training_keeps_its_frozen_stages_in_evaluation():
    net = build("resnet18", frozen_stages=2).eval().train()
    assert not net.bn1.training
    assert not net.layer1[0].bn1.training
    assert net.layer2[0].bn1.training


def test_the_deep_stem_is_frozen_as_a_whole():
    net = build("resnet18", stem="deep", frozen_stages=1).train()
    assert not any(p.requires_grad for p in net.conv1.parameters())
    assert not any(m.training for m in net.conv1.modules())


def test_convolutions_start_with_the_variance_that_he_et_al_derive():
    weight = build("resnet18").layer3[1].conv2.weight
    assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.02)


def test_zero_initialised_residuals_make_each_block_its_shortcut():
    net = build(zero_init_residual=True).eval()
    maps = net(torch.randn(1, 3, 32, 32))
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(*build().eval()(torch.randn(1, 3, 32, 32))[:2])


def test_option_a_shortcuts_take_every_second_pixel_and_pad_channels_with_zeros():
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    y = PaddingShortcut(3, 2)(x)
    assert y.shape == (1, 5, 2, 2)
    assert torch.equal(y[:, :2], x[:, :, ::2, ::2])
    assert not y[:, 2:].any()


def test_plain_networks_differ_from_residual_ones_by_the_shortcuts_alone():
    torch.manual_seed(0)
    plain, residual = BACKBONES.build("plain20", {}).eval(), BACKBONES.build("resnet20", {}).eval()
    residual.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(plain(x)[0], residual(x)[0])
    assert not torch.allclose(plain(x)[1], residual(x)[1])
    for block in residual.modules():
        if isinstance(block, Block):
            block.downsample = None
    assert torch.equal(plain(x)[-1], residual(x)[-1])


def test_stochastic_depth_drops_the_branch_of_whole_images_and_scales_it_up():
    torch.manual_seed(0)
    convs = [unbiased_conv(4, 4, 3), unbiased_conv(4, 4, 3)]
    block = Block(convs, [4, 4], norm="frozen", shortcut=nn.Identity(), drop_path=0.5).train()
    x = torch.rand(64, 4, 4, 4)
    branch = torch.relu(convs[0](x))
    kept, dropped = torch.relu(x + 2 * convs[1](branch)), x
    y = block(x)
    is_kept = torch.tensor([torch.allclose(a, b, atol=1e-4) for a, b in zip(y, kept)])
    is_dropped = torch.tensor([torch.equal(a, b) for a, b in zip(y, dropped)])
    assert (is_kept ^ is_dropped).all()
    assert 16 < int(is_kept.sum()) < 48
    assert torch.allclose(block.eval()(x), torch.relu(x + convs[1](branch)), atol=1e-4)


def test_stochastic_depth_rises_linearly_over_the_blocks():
    rates = [m.drop_path for m in build("resnet18", drop_path=0.7).modules() if isinstance(m, Block)]
    assert rates == pytest.approx([0.7 * n / 7 for n in range(8)])


def test_activation_checkpointing_changes_neither_gradients_nor_statistics():
    plain = build("resnet18", drop_path=0.3).train()
    saving = build("resnet18", drop_path=0.3, activation_checkpointing=True).train()
    saving.load_state_dict(copy.deepcopy(plain.state_dict()))
    x = torch.randn(4, 3, 32, 32)
    for net in (plain, saving):
        torch.manual_seed(1)
        sum(m.square().mean() for m in net(x)).backward()
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6), key
    for (key, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), key


def test_activation_checkpointing_keeps_less_for_the_backward():
    def kept(net: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(torch.randn(2, 3, 64, 64))
        return sum(sizes.values())

    assert kept(build("resnet56", activation_checkpointing=True)) < 0.5 * kept(build("resnet56"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "frozen"},
        {"norm": "group"},
        {"frozen_stages": 2, "drop_path": 0.2},
        {"activation_checkpointing": True},
    ],
)
def test_one_graph_without_breaks_holds_the_network_and_its_backward(options):
    torch.manual_seed(0)
    torch._dynamo.reset()
    small = Variant("small", "basic", (1, 2), (8, 16), stem="3x3")
    plain, graph = ResNet(small, **options).train(), ResNet(small, **options).train()
    graph.load_state_dict(copy.deepcopy(plain.state_dict()))
    compiled = torch.compile(graph, backend="aot_eager_default_partitioner", fullgraph=True)
    x = torch.randn(2, 3, 32, 32)
    for net in (plain, compiled):
        torch.manual_seed(1)
        sum(m.square().mean() for m in net(x)).backward()
    if "drop_path" in options:  # a graph draws other random numbers
        return
    for (key, a), b in zip(plain.named_buffers(), graph.buffers(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-5), key
    for (key, a), b in zip(plain.named_parameters(), graph.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5), key


def test_channels_last_and_bfloat16_run_through_every_norm():
    for norm in ("batch", "frozen", "group"):
        net = build("resnet18", norm=norm).to(memory_format=torch.channels_last)
        x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            maps = net(x)
        assert maps[-1].dtype in (torch.bfloat16, torch.float32)
        assert maps[1].is_contiguous(memory_format=torch.channels_last)
        maps[-1].float().sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels: images have at least 1 channel, not 0"),
        ({"frozen_stages": 6}, r"frozen_stages: resnet18 takes 0 \(none\) to 5 \(all\), not 6"),
        ({"frozen_stages": -1}, "not -1"),
        ({"num_stages": 0}, r"num_stages: resnet18 takes 1 to 4 \(all\), not 0"),
        ({"num_stages": 5}, "not 5"),
        ({"num_stages": 2, "frozen_stages": 4}, r"frozen_stages: resnet18 takes 0 \(none\) to 3 \(all\), not 4"),
        ({"drop_path": 1.0}, "drop_path: a probability of at least 0 and below 1, not 1.0"),
        ({"output_stride": 4}, "output_stride: input should be 8, 16 or 32, not 4"),
        ({"norm": "layer"}, "norm: input should be 'batch', 'frozen', 'group' or 'sync', not 'layer'"),
        ({"norm": "frozen", "zero_init_residual": True}, "zero_init_residual needs norms that learn"),
    ],
)
def test_options_out_of_range_are_named_with_their_rule(options, message):
    with pytest.raises(DensekitError, match=message):
        BACKBONES.build("resnet18", options)


def test_fewer_stages_give_the_first_levels_of_the_whole_network_from_its_weights():
    whole, short = BACKBONES.build("resnet18", {}).eval(), BACKBONES.build("resnet18", {"num_stages": 3}).eval()
    assert [level.name for level in short.levels] == ["c1", "c2", "c3", "c4"]
    missing, unexpected = short.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    assert unexpected
    assert all(name.startswith("layer4") for name in unexpected)
    images = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(short(images), whole(images)[:4], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("options", [{"zero_init_residual": True}, {"drop_path": 0.1}])
def test_plain_networks_refuse_what_needs_a_shortcut(options):
    with pytest.raises(DensekitError, match="plain18 has no shortcuts"):
        BACKBONES.build("plain18", options)
