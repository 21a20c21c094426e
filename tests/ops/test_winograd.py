"""3x3 convolutions with a quarter of the products, against torch's own in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from densekit.ops import winograd

LAST = torch.channels_last
SIZES = [(2, 8, 5, 9, 14), (3, 70, 64, 20, 20), (1, 64, 66, 7, 4), (5, 16, 16, 33, 18)]


@pytest.fixture(params=[1 << 12, 1 << 17, winograd.CHUNK], ids=["row by row", "image by image", "at once"])
def rounds(request, monkeypatch):
    monkeypatch.setattr(winograd, "CHUNK", request.param)


def inputs(images, channels, out, height, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, height, width, generator=generator).contiguous(memory_format=LAST)
    return x, torch.randn(out, channels, 3, 3, generator=generator), torch.randn(out, generator=generator)


def near(found, wanted):
    return (found - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("relu", [False, True])
def test_the_values_are_a_direct_convolutions_at_any_size(rounds, size, relu):
    x, weight, bias = inputs(*size)
    found = winograd.convolve(x, winograd.turn_weight(weight), bias, relu=relu)
    wanted = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert near(found, wanted.relu() if relu else wanted)
    assert found.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("of_input", [True, False])
def test_the_gradients_are_a_direct_convolutions_at_any_size(rounds, size, of_input):
    x, weight, _ = inputs(*size)
    exact = [part.double().requires_grad_() for part in (x, weight)]
    y = F.conv2d(*exact, padding=1)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(gradient.double())
    for_input, for_weight = winograd.gradients(x, winograd.turn_weight(weight), gradient, of_input=of_input)
    assert near(for_weight, exact[1].grad)
    assert near(for_input, exact[0].grad) if of_input else for_input is None


def test_it_pays_for_many_channels_and_tiles_in_float32_with_channels_last_on_cpus_of_that_kind(monkeypatch):
    monkeypatch.setattr(winograd, "_faster_here", lambda: True)
    many, few = torch.zeros(128, 128, 3, 3), torch.zeros(64, 64, 3, 3)
    x = torch.zeros(2, 128, 16, 16).contiguous(memory_format=LAST)
    assert winograd.pays(x, many)
    assert not winograd.pays(x.contiguous(), many)
    assert not winograd.pays(x.double(), many)
    assert not winograd.pays(x[:1, :, :12, :12].contiguous(memory_format=LAST), many)
    assert not winograd.pays(x[:, :64].contiguous(memory_format=LAST), few)
    assert winograd.pays(x[:, :64].contiguous(memory_format=LAST), few, learning=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.pays(x, many)
    monkeypatch.setattr(winograd, "_faster_here", lambda: False)
    assert not winograd.pays(x, many)


def test_its_constants_serve_training_though_inference_made_them():
    winograd._input.cache_clear()
    x, weight, bias = inputs(1, 4, 4, 8, 8)
    with torch.inference_mode():
        winograd.convolve(x, winograd.turn_weight(weight), bias)
    learned = (winograd._input() * torch.ones(1, requires_grad=True)).sum()
    learned.backward()  # torch refuses to keep what inference mode made
