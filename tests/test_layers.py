"""Norms and their folding, ConvNormAct, initialisation."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from densekit.layers import ConvNormAct, FrozenBatchNorm2d, SyncBatchNorm2d, conv_norm, make_norm
from tests.tools import runs


def random_frozen(channels: int, *, eps: float = 1e-5) -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(channels, eps=eps)
    norm.weight.uniform_(0.5, 2)
    norm.bias.uniform_(-1, 1)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return norm


@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_frozen_batch_norm_equals_torchvisions_and_takes_its_weights(eps):
    import torchvision

    norm = random_frozen(6, eps=eps)
    theirs = torchvision.ops.FrozenBatchNorm2d(6, eps=eps)
    theirs.load_state_dict(norm.state_dict())
    norm.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 5, 5)
    assert torch.allclose(norm(x), theirs(x), atol=1e-6)
    assert not list(norm.parameters())


def test_frozen_batch_norm_loads_a_batch_norm_and_equals_it_in_evaluation():
    batch = nn.BatchNorm2d(6)
    batch.train()(torch.randn(8, 6, 5, 5) * 3 + 1)
    norm = FrozenBatchNorm2d(6)
    norm.load_state_dict(batch.state_dict())
    x = torch.randn(2, 6, 5, 5)
    assert torch.allclose(norm.train()(x), batch.eval()(x), atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_a_folded_norm_gives_the_outputs_and_gradients_of_the_unfolded_one(bias):
    conv, norm = nn.Conv2d(4, 6, 3, padding=1, bias=bias), random_frozen(6)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    folded, plain = conv_norm(conv, norm, x), norm(conv(x))
    assert torch.allclose(folded, plain, atol=1e-5)
    inputs = [x, *conv.parameters()]
    gradients = [torch.autograd.grad(out.square().sum(), inputs) for out in (folded, plain)]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 32), (256, 32), (32, 16), (16, 8), (96, 32), (6, 3), (2, 1), (1, 1), (7, 1)]
)
def test_group_norm_has_groups_of_two_channels_or_more(channels, groups):
    norm = make_norm("group", channels)
    assert norm.num_groups == groups


def test_conv_norm_act_equals_torchvisions_layer_key_for_key():
    import torchvision

    layer = ConvNormAct(4, 6, kernel=3, stride=2, norm="batch")
    theirs = torchvision.ops.Conv2dNormActivation(4, 6, 3, 2)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(layer(x), theirs(x))


def test_conv_norm_act_without_a_norm_has_a_bias_and_without_an_activation_goes_below_zero():
    layer = ConvNormAct(4, 6, norm=None, act=False)
    assert layer[0].bias is not None
    assert layer(torch.randn(1, 4, 8, 8)).min() < 0
    assert ConvNormAct(4, 6, norm="frozen").train()(torch.randn(1, 4, 8, 8)).min() == 0


def _rank(rank: int, folder: str, images: torch.Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    norm = SyncBatchNorm2d(3).train()
    # Uneven shares: three images here, one there.
    own = (images[:3] if rank == 0 else images[3:]).clone().requires_grad_()
    out = norm(own)
    (out * out.detach().cos()).sum().backward()
    dist.all_reduce(norm.weight.grad)
    result = [out.detach(), own.grad, norm.weight.grad, norm.running_mean, norm.running_var]
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_sync_batch_norm_on_two_cpu_ranks_equals_batch_norm_over_all_images(tmp_path):
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1
    whole = nn.BatchNorm2d(3).train()
    x = images.clone().requires_grad_()
    out = whole(x)
    (out * out.detach().cos()).sum().backward()
    runs.apart(_rank, str(tmp_path), images, ranks=2)
    first, second = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    assert torch.allclose(torch.cat([first[0], second[0]]), out, atol=1e-5)
    assert torch.allclose(torch.cat([first[1], second[1]]), x.grad, atol=1e-4)
    assert torch.allclose(first[2], whole.weight.grad, rtol=1e-4)
    for mine, theirs in ((first[3], whole.running_mean), (second[4], whole.running_var)):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_sync_batch_norm_without_a_process_group_is_batch_norm():
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(SyncBatchNorm2d(3)(x), nn.BatchNorm2d(3)(x))
