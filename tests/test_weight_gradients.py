"""Layers whose weights learn faster on the CPU, against torch's own: values, gradients, and when they step aside."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from densekit.ops import winograd
from densekit.weight_gradients import (
    Conv2d,
    ConvTranspose2d,
    Linear,
    _channels_first,
    _turned,
    use_own_convolutions,
)


def test_the_linear_layer_gives_torchs_values_and_gradients_in_mixed_precision():
    torch.manual_seed(0)
    ours = Linear(12, 5)
    theirs = nn.Linear(12, 5)
    theirs.load_state_dict(ours.state_dict())
    rows = torch.randn(7, 12)
    found = []
    for layer in (ours, theirs):
        x = rows.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.float().square().sum().backward()
        assert y.dtype == torch.bfloat16
        found.append([y.detach().float(), x.grad, layer.weight.grad, layer.bias.grad])
    for mine, peers in zip(*found, strict=True):
        torch.testing.assert_close(mine, peers, atol=2e-2, rtol=2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert "_Product" in type(ours(rows).grad_fn).__name__


def test_the_linear_layer_is_torchs_own_in_float32():
    ours, rows = Linear(12, 5), torch.randn(7, 12)
    assert torch.equal(ours(rows), torch.nn.functional.linear(rows, ours.weight, ours.bias))


@pytest.fixture(params=[1, 4], ids=["1 thread", "4 threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_a_turned_matrix_lies_row_by_row_whatever_the_number_of_threads(threads):
    x = torch.randn(130, 70).bfloat16()
    turned = _turned(x)
    assert turned.is_contiguous()
    assert torch.equal(turned, x.t())


CONVOLUTIONS = {
    "3x3": ((128, 24, 3), {"padding": 1}),
    "3x3, stride 2, bias": ((128, 24, 3), {"padding": 1, "stride": 2, "bias": True}),
    "1x1, stride 2": ((1024, 24, 1), {"stride": 2}),
    "oblong": ((256, 8, (1, 5)), {"padding": (0, 2), "stride": (2, 1)}),
}


@pytest.mark.parametrize(("shape", "options"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("last", [False, True])
def test_the_convolution_gives_torchs_values_and_gradients_in_mixed_precision(monkeypatch, shape, options, last):
    torch.manual_seed(0)
    ours, x = Conv2d(*shape, **{"bias": False, **options}), torch.randn(2, shape[0], 9, 7)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    products = count_products(monkeypatch)
    found = gradients_of(ours, x)
    assert products, "the gradient of the weight was not computed as one product"
    theirs = nn.Conv2d(*shape, **{"bias": False, **options})
    theirs.load_state_dict(ours.state_dict())
    expected = gradients_of(theirs, x)
    for name in expected:
        scale = float(expected[name].abs().max())
        assert torch.allclose(found[name], expected[name], atol=0.01 * scale), name
    assert torch.equal(found["output"], expected["output"])


@pytest.mark.parametrize(
    ("options", "size", "mixed"),
    [({}, (9, 7), False), ({}, (64, 64), True), ({"groups": 2}, (9, 7), True), ({"dilation": 2}, (9, 7), True)],
    ids=["float32", "large map", "groups", "dilation"],
)
def test_the_convolution_is_torchs_own_where_the_product_does_not_pay(monkeypatch, options, size, mixed):
    products = count_products(monkeypatch)
    gradients_of(Conv2d(128, 8, 3, padding=1, **options), torch.randn(1, 128, *size), mixed=mixed)
    assert not products


FLOAT32 = {
    "many channels": ((64, 64, 3), {"padding": 1}, (20, 22), "_Points"),
    "many channels, bias": ((64, 72, 3), {"padding": 1, "bias": True}, (24, 17), "_Points"),
    "stride 2": ((40, 32, 3), {"padding": 1, "stride": 2, "bias": True}, (9, 7), "_Turned"),
    "oblong": ((32, 33, (1, 5)), {"padding": (0, 2)}, (9, 7), "_Turned"),
    "small map": ((64, 64, 3), {"padding": 1}, (9, 7), "_Turned"),
    "few channels": ((16, 64, 3), {"padding": 1}, (20, 22), "Convolution"),
    "1x1": ((64, 64, 1), {}, (9, 7), "Convolution"),
    "groups": ((64, 64, 3), {"padding": 1, "groups": 2}, (20, 22), "Convolution"),
    "dilation": ((64, 64, 3), {"padding": 2, "dilation": 2}, (20, 22), "Convolution"),
}


@pytest.mark.parametrize(("shape", "options", "size", "way"), FLOAT32.values(), ids=FLOAT32)
def test_the_convolution_gives_torchs_values_and_gradients_in_float32(monkeypatch, shape, options, size, way):
    monkeypatch.setattr(winograd, "_faster_here", lambda: True)
    torch.manual_seed(0)
    ours = Conv2d(*shape, **{"bias": False, **options}).to(memory_format=torch.channels_last)
    theirs = nn.Conv2d(*shape, **{"bias": False, **options})
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, shape[0], *size)
    last = x.contiguous(memory_format=torch.channels_last)
    assert type(ours(last).grad_fn).__name__.startswith(way)
    assert type(ours(x).grad_fn).__name__.startswith("Convolution"), "channels first is torch's own path"
    found, expected = gradients_of(ours, last, mixed=False), gradients_of(theirs, x, mixed=False)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].abs().max())
        )


TRANSPOSED = {
    "doubling": ((40, 33, 4), {"stride": 2, "padding": 1}, "_Turned"),
    "no bias, oblong": ((32, 36, (2, 3)), {"stride": (2, 1), "padding": (0, 1), "bias": False}, "_Turned"),
    "few channels": ((16, 40, 4), {"stride": 2, "padding": 1}, "Convolution"),
    "groups": ((64, 64, 2), {"stride": 2, "groups": 2}, "Convolution"),
    "larger output": ((32, 32, 3), {"stride": 2, "output_padding": 1}, "Convolution"),
}


@pytest.mark.parametrize(("shape", "options", "way"), TRANSPOSED.values(), ids=TRANSPOSED)
def test_a_transposed_convolution_gives_torchs_values_and_gradients(threads, shape, options, way):
    torch.manual_seed(0)
    ours, theirs = ConvTranspose2d(*shape, **options), nn.ConvTranspose2d(*shape, **options)
    theirs.load_state_dict(ours.state_dict())
    ours, x = ours.to(memory_format=torch.channels_last), torch.randn(2, shape[0], 9, 7)
    last = x.contiguous(memory_format=torch.channels_last)
    assert type(ours(last).grad_fn).__name__.startswith(way)
    assert type(ours(x).grad_fn).__name__.startswith("Convolution"), "channels first is torch's own path"
    found, expected = gradients_of(ours, last, mixed=False), gradients_of(theirs, x, mixed=False)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].abs().max())
        )


def test_a_transposed_convolution_gives_the_size_that_is_asked_for():
    ours, theirs, x = ConvTranspose2d(32, 33, 3, 2, 1), nn.ConvTranspose2d(32, 33, 3, 2, 1), torch.randn(1, 32, 9, 7)
    theirs.load_state_dict(ours.state_dict())
    assert ours(x).shape[2:] == (17, 13)
    assert torch.equal(ours(x, [18, 13]), theirs(x, [18, 13]))


def test_a_map_that_lies_channels_last_is_turned_whatever_the_number_of_threads(threads):
    x = torch.randn(3, 70, 9, 13)
    for given in (x.contiguous(memory_format=torch.channels_last), x, x[:, :1].expand(-1, 5, -1, -1)):
        turned = _channels_first(given)
        assert turned.is_contiguous()
        assert torch.equal(turned, given)


@pytest.mark.parametrize("size", [(20, 22), (9, 7)], ids=["_Points", "_Turned"])
def test_a_convolution_of_an_input_that_needs_no_gradient_learns_too(monkeypatch, size):
    monkeypatch.setattr(winograd, "_faster_here", lambda: True)
    conv = Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(2, 64, *size).contiguous(memory_format=torch.channels_last)
    conv(x).sum().backward()
    wanted = torch.autograd.grad(torch.conv2d(x, conv.weight, conv.bias, padding=1).sum(), conv.weight)[0]
    torch.testing.assert_close(conv.weight.grad, wanted, rtol=1e-4, atol=1e-2)


FEW_CHANNELS = {
    "one channel": (1, {"stride": 2}, (8, 12)),
    "three channels, bias": (3, {"stride": 2, "bias": True}, (8, 12)),
    "odd sides": (7, {"stride": 2, "padding": "valid"}, (9, 7)),
    "oblong": (15, {"stride": (3, 1)}, (9, 7)),
}


@pytest.mark.parametrize(("channels", "options", "size"), FEW_CHANNELS.values(), ids=FEW_CHANNELS)
@pytest.mark.parametrize("last", [False, True])
def test_single_pixels_of_few_channels_give_torchs_values_and_gradients(channels, options, size, last):
    """Torch's own are those of contiguous maps: with channels last it damages memory where channels are few."""
    torch.manual_seed(0)
    ours, x = Conv2d(channels, 5, 1, **{"bias": False, **options}), torch.randn(2, channels, *size)
    theirs = nn.Conv2d(channels, 5, 1, **{"bias": False, **options})
    theirs.load_state_dict(ours.state_dict())
    expected = gradients_of(theirs, x, mixed=False)
    with Strides() as used:
        found = gradients_of(ours, x.contiguous(memory_format=torch.channels_last) if last else x, mixed=False)
    assert used.seen == {(1, 1)}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", [{"kernel_size": 3}, {"padding": 1}, {"groups": 4}, {"in_channels": 16}], ids=str)
def test_other_convolutions_with_stride_are_torchs_own(change):
    options = {"in_channels": 8, "out_channels": 8, "kernel_size": 1, "stride": 2, **change}
    with Strides() as used:
        Conv2d(**options)(torch.randn(1, options["in_channels"], 8, 8)).sum().backward()
    assert used.seen == {(2, 2)}


def test_another_librarys_convolutions_become_ours_and_keep_their_parameters():
    module = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 2))
    before = dict(module.named_parameters())
    use_own_convolutions(module)
    assert [type(part) for part in module] == [Conv2d, nn.ConvTranspose2d]
    assert all(parameter is before[name] for name, parameter in module.named_parameters())
    assert module[0].groups == 2


class Strides(TorchDispatchMode):
    """Notes the strides of the convolutions that torch runs, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator == torch.ops.aten.convolution.default:
            self.seen.add(tuple(args[3]))
        if operator == torch.ops.aten.convolution_backward.default:
            self.seen.add(tuple(args[4]))
        return operator(*args, **(kwargs or {}))


def count_products(monkeypatch) -> list[str]:
    """Notes each gradient of a weight that is computed from patches."""
    import densekit.weight_gradients

    made: list[str] = []
    patches = densekit.weight_gradients._patches
    monkeypatch.setattr("densekit.weight_gradients._patches", lambda *args: made.append("product") or patches(*args))
    return made


def gradients_of(conv: nn.Conv2d, x: torch.Tensor, *, mixed: bool = True) -> dict[str, torch.Tensor]:
    """The output, and the gradients of its weighted sum with respect to the input and the parameters."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        output = conv(x)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    (output.float() * weights).sum().backward()
    found = {name: p.grad.float() for name, p in conv.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"output": output.detach().float(), "input": x.grad, **found}
