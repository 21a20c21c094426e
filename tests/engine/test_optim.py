"""Schedules as functions of the step, parameter groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from densekit.engine.optim import make_optimizer, make_schedule, parameter_groups, set_rate


def test_warm_up_is_linear_and_ends_at_the_full_rate():
    factor = make_schedule("constant", 100, warmup=10, warmup_start=0.1)
    assert [factor(s) for s in (0, 5, 10, 99)] == pytest.approx([0.1, 0.55, 1.0, 1.0])


def test_cosine_falls_from_one_to_its_end_over_the_steps_after_the_warm_up():
    factor = make_schedule("cosine", 110, warmup=10, end=0.2)
    assert [factor(s) for s in (10, 60, 110)] == pytest.approx([1.0, 0.6, 0.2])
    assert factor(35) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_poly_and_step_follow_their_formulas():
    assert make_schedule("poly", 100, power=2.0, end=0.1)(50) == pytest.approx(0.1 + 0.9 * 0.25)
    step = make_schedule("step", 90, milestones=(0.6667, 0.8889), gamma=0.1)
    assert [round(step(s), 6) for s in (0, 59, 61, 79, 81)] == [1.0, 1.0, 0.1, 0.1, 0.01]
    epochs = make_schedule("step", 120, milestones=(8, 11), steps_per_epoch=10)
    assert [round(epochs(s), 6) for s in (79, 80, 109, 110)] == [1.0, 0.1, 0.1, 0.01]


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "poly"])
def test_a_schedule_asked_in_any_order_gives_the_same_rates(name):
    factor = make_schedule(name, 50, warmup=5, milestones=(0.5,))
    rates = [factor(s) for s in range(50)]
    assert [factor(s) for s in reversed(range(50))] == rates[::-1]
    assert all(0 <= r <= 1 for r in rates)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2)})


def test_groups_split_backbone_and_head_decayed_and_not():
    groups = parameter_groups(Parts(), lr=0.1, weight_decay=0.05, backbone_lr=0.5)
    found = [(len(g["params"]), g["base_lr"], g["weight_decay"]) for g in groups]
    assert found == [(1, 0.05, 0.05), (3, 0.05, 0.0), (1, 0.1, 0.05), (1, 0.1, 0.0)]
    (both, heads) = parameter_groups(Parts(), lr=0.1, weight_decay=0.05, backbone_lr=0.5, norm_decay=True)
    assert (len(both["params"]), len(heads["params"])) == (4, 2)


def test_a_backbone_rate_of_zero_freezes_it():
    model = Parts()
    groups = parameter_groups(model, lr=0.1, weight_decay=0.0, backbone_lr=0)
    assert sum(len(g["params"]) for g in groups) == 2
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_the_rate_of_every_group_keeps_its_ratio():
    optimizer = make_optimizer("adamw", parameter_groups(Parts(), lr=0.1, weight_decay=0.0, backbone_lr=0.5))
    set_rate(optimizer, 0.2)
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {0.01, 0.02}


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_that_starts_from_zero_buffers_is_torch_s_own(nesterov):
    values = [torch.ones(3, requires_grad=True) for _ in range(2)]
    ours = make_optimizer("sgd", [{"params": [values[0]], "lr": 0.1}], momentum=0.9, nesterov=nesterov)
    theirs = torch.optim.SGD([values[1]], lr=0.1, momentum=0.9, nesterov=nesterov)
    for gradient in (1.0, -2.0, 0.5):
        for value, optimizer in zip(values, (ours, theirs)):
            value.grad = torch.full((3,), gradient)
            optimizer.step()
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize("gradients", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
def test_adamw_takes_weights_and_gradients_in_any_layout(weights, gradients):
    """The fused kernel of torch's own AdamW mixes the numbers up where the two differ (CPU, torch 2.15)."""
    start, gradient = torch.randn(2, 8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = nn.Parameter(start.clone())
    found = nn.Parameter(start.clone(memory_format=torch.contiguous_format).contiguous(memory_format=weights))
    peer = torch.optim.AdamW([expected], lr=0.1, weight_decay=0.05, foreach=True)
    ours = make_optimizer("adamw", [{"params": [found], "lr": 0.1, "weight_decay": 0.05}])
    for _ in range(3):
        expected.grad = gradient.clone()
        found.grad = gradient.contiguous(memory_format=gradients)
        peer.step()
        ours.step()
    torch.testing.assert_close(found, expected)
    state = ours.state[found]["exp_avg"]
    assert state.stride() == found.stride()
    torch.testing.assert_close(state, peer.state[expected]["exp_avg"])
