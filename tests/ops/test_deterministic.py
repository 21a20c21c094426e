"""The forms with a deterministic backward give torch's numbers and gradients, and take over its calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densekit.ops import deterministic

SHAPES = [(5, 7), (4, 4), (1, 1), (6, 3)]


def same(ours, theirs, x):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert ours.dtype == theirs.dtype
    weights = torch.rand(theirs.shape, generator=torch.Generator().manual_seed(1))
    mine, expected = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, theirs))
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


def maps(shape):
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    return x.to(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "target",
    [
        {"size": (9, 4)},
        {"size": 1},
        {"scale_factor": 2.0},
        {"scale_factor": (1.7, 2.3)},
        {"scale_factor": 1.7, "recompute_scale_factor": True},
    ],
)
def test_bilinear_enlargement_is_torchs(shape, align_corners, target):
    x, options = maps(shape), {**target, "mode": "bilinear", "align_corners": align_corners}
    same(deterministic.interpolate(x, **options), F.interpolate(x, **options), x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 3, 6, (2, None), (4, 3)])
def test_adaptive_means_are_torchs(shape, size):
    x = maps(shape)
    same(deterministic.adaptive_mean(x, size), F.adaptive_avg_pool2d(x, size), x)


@pytest.mark.parametrize(
    "options", [{"scale_factor": 2.0}, {"size": (3, 2), "mode": "area"}, {"size": 8, "mode": "bicubic"}]
)
def test_other_ways_to_resize_are_torchs(options):
    x = maps((4, 6))
    same(deterministic.interpolate(x, **options), F.interpolate(x, **options), x)


def test_the_layout_and_the_precision_stay():
    x = maps((4, 6)).detach().bfloat16()
    for y in (deterministic.interpolate(x, size=8, mode="bilinear"), deterministic.adaptive_mean(x, 2)):
        assert y.dtype == torch.bfloat16
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_calls_are_taken_over_only_where_the_device_needs_it(monkeypatch):
    network, x = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.UpsamplingBilinear2d(scale_factor=2)), maps((7, 7))
    cpu = torch.device("cpu")

    def backward_nodes():
        with deterministic.deterministic_backward(cpu):
            node, names = network(x).grad_fn, []
        while node is not None:
            names.append(type(node).__name__)
            node = node.next_functions[0][0] if node.next_functions else None
        return " ".join(names)

    assert "AdaptiveAvgPool2D" in backward_nodes()
    assert "UpsampleBilinear2D" in backward_nodes()
    assert not deterministic.replaces(torch.device("cuda"))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert deterministic.replaces(torch.device("cuda"))
    assert not deterministic.replaces(cpu)
    monkeypatch.setattr(deterministic, "replaces", lambda _: True)
    assert "AdaptiveAvgPool2D" not in backward_nodes()
    assert "UpsampleBilinear2D" not in backward_nodes()


def test_a_compiled_graph_takes_over_calls_too(monkeypatch):
    monkeypatch.setattr(deterministic, "replaces", lambda _: True)

    def run(x):
        with deterministic.deterministic_backward(x.device):
            return F.interpolate(x, scale_factor=2.0, mode="bilinear")

    graphs = []
    compiled = torch.compile(run, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    x = maps((4, 5))
    torch.testing.assert_close(compiled(x), run(x))
    assert "matmul" in graphs[0].code
    assert "interpolate" not in graphs[0].code
