"""The scale of fp16's loss against torch's own scaler."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from densekit.engine import loss_scale
from densekit.engine.distributed import World
from densekit.engine.loss_scale import LossScale
from densekit.engine.optim import make_optimizer, parameter_groups
from densekit.engine.step import TrainStep

CPU = torch.device("cpu")


class Line(nn.Module):
    """Its gradient is what the batch says."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.heads = {"head": self}

    def prefix(self, head):
        return ""

    def learning(self, batch):
        return ["head"]

    def using(self, batch):
        return contextlib.nullcontext()

    def forward(self, batch):
        return {"loss": (self.weight * batch).sum()}


GRADIENTS = [[0.5, -1.0], [1e38, 1.0], [2.0, 0.25], [1.0, 1.0], [3.0, 0.5]]  # the second overflows once scaled


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_and_scales_are_those_of_torchs_scaler(name, monkeypatch):
    monkeypatch.setattr(loss_scale, "INTERVAL", 2)
    model, theirs = Line(), Line()
    optimizer = make_optimizer(name, parameter_groups(model, lr=0.1, weight_decay=0.0))
    step = TrainStep(model, optimizer, lambda _: 1.0, world=World(0, 1, 1, CPU), seed=0, precision="fp16")
    scaler = torch.amp.GradScaler("cpu", growth_interval=2)
    plain = make_optimizer(name, parameter_groups(theirs, lr=0.1, weight_decay=0.0))
    for number, gradient in enumerate(torch.tensor(GRADIENTS)):
        result = step([gradient], number)
        plain.zero_grad()
        scaler.scale(theirs(gradient)["loss"]).backward()
        scaler.step(plain)
        scaler.update()
        torch.testing.assert_close(model.weight, theirs.weight)
        assert step.scaler.state_dict() == scaler.state_dict()
        assert result.bad == 0  # an overflow is part of the search
    assert step.scaler.state_dict()["scale"] == 2.0**16  # halved once, doubled once


def test_a_state_of_torchs_scaler_is_gone_on_from_and_what_does_not_count_leaves_no_trace():
    theirs = torch.amp.GradScaler("cpu", init_scale=8.0)
    theirs.scale(torch.ones(()))
    mine = LossScale(CPU, enabled=True)
    mine.load_state_dict(theirs.state_dict())
    assert mine.scale(torch.tensor(2.0)) == 16.0
    assert mine.unscale(torch.tensor(16.0)) == 2.0
    before = mine.state_dict()
    mine.update(torch.ones(()), stay=torch.ones(()))
    assert mine.state_dict() == before == theirs.state_dict()
    off = LossScale(CPU, enabled=False)
    off.update(torch.ones(()), stay=torch.zeros(()))
    assert off.scale(torch.tensor(2.0)) == 2.0
    assert off.state_dict() == {}
