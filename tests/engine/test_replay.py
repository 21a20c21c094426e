"""Where the first value that is not finite arises, in models made to fail at a known place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from densekit.config import parse
from densekit.engine.distributed import World
from densekit.engine.guard import write_bundle
from densekit.engine.loss_weights import UncertaintyWeights
from densekit.engine.optim import make_optimizer, parameter_groups
from densekit.engine.replay import Bundle, read_bundle, replay
from densekit.engine.run_folder import RunFolder
from densekit.engine.step import TrainStep
from densekit.model import DenseModel, build_model
from densekit.types import Batch, Classes, Level
from tests.engine.parts import batch_on
from tests.tools import runs

CONFIG = parse(
    {
        "model": {"backbone": {"name": "x"}, "heads": {"a": {"name": "x"}}},
        "data": {"train": {"name": "x"}},
        "train": {"steps": 1, "optimizer": {"lr": 1}},
    },
    "test",
)


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


class Backbone(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.levels = (Level("c1", 3, 1),)
        self.layers = nn.Sequential(*layers)

    def forward(self, images):
        return [self.layers(images)]


class Head(nn.Module):
    task = "classification"

    def __init__(self, function=torch.square):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 2, 1), function

    def losses(self, maps, batch):
        return {"first": maps[0].square().mean(), "second": self.function(self.conv(maps[0])).mean()}


def findings(*layers, function=torch.square, images=100.0):
    model = DenseModel(Backbone(*layers), {"a": Head(function)}, mean=[0.5], std=[0.2], classes=Classes(("x",), (1,)))
    sizes = torch.full((1, 2), 32)
    batch = Batch(torch.full((1, 3, 32, 32), images), sizes, sizes, [7], torch.zeros(1, dtype=torch.int64))
    bundle = Bundle(CONFIG, model, [batch], [["a.jpg"]], 5, 0, 0, "fp32")
    return replay(bundle, torch.device("cpu"))[0]


def test_a_step_that_is_finite_has_no_finding():
    result = findings(nn.Identity())
    assert result.finding is None
    assert result.norm > 0
    assert set(result.losses) == {"first", "second"}


def test_the_first_module_that_gives_nan_is_named():
    finding = findings(nn.Identity(), Root(), nn.ReLU()).finding  # 100 is below the mean: a root of less than zero
    assert (finding.stage, finding.name) == ("forward", "backbone.layers.1")
    assert finding.detail == (
        "Root, largest input 0.539216; 3072 NaN and 0 infinite of 3072 values, shape [1, 3, 32, 32]"
    )


def test_a_loss_that_is_not_finite_from_finite_maps_is_named():
    finding = findings(nn.Identity(), function=lambda x: (x - x).log()).finding
    assert (finding.stage, finding.name) == ("loss", "second")
    assert "second -inf" in finding.detail


def test_a_gradient_that_is_not_finite_behind_finite_losses_is_named():
    finding = findings(nn.ReLU(), function=lambda x: (x - x).sqrt()).finding
    assert finding.stage == "gradient"
    assert finding.name == "heads.a.conv"
    assert "of the output of this Conv2d, on the way back" in finding.detail


@pytest.mark.parametrize(("images", "stage"), [(float("nan"), "image"), (100.0, "weight")])
def test_bad_images_and_weights_are_told_before_anything_runs(images, stage):
    layer = nn.Conv2d(3, 3, 1)
    if stage == "weight":
        layer.bias.data[1] = float("inf")
    finding = findings(layer, images=images).finding
    assert (finding.stage, finding.name) == (stage, "of 7" if stage == "image" else "backbone.layers.0.bias")


CPU = torch.device("cpu")


def boxes_and_masks() -> Batch:
    """One batch that two heads learn from."""
    boxes, masks = batch_on(CPU, "boxes"), batch_on(CPU, "masks")
    return dataclasses.replace(boxes, targets=dataclasses.replace(boxes.targets, masks=masks.targets.masks))


@pytest.mark.parametrize("frozen", [(), ("boxes",)], ids=["two heads", "one of them frozen"])
def test_a_step_of_two_heads_is_the_same_again(tmp_path, frozen):
    tree = runs.config_of("joint", Path("data"))
    tree["model"] |= {"frozen_heads": list(frozen), "weights": "best.pt"}
    classes, config = Classes(("a", "b", "c"), (0, 1, 2)), parse(tree, "test")
    torch.manual_seed(0)
    model = build_model(config.model, classes)
    model.freeze(frozen)
    groups = parameter_groups(model, lr=0.01, weight_decay=0)
    norm = next(m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    options = {"world": World(0, 1, 1, CPU), "seed": 3, "fixed_norms": [norm]}
    step = TrainStep(model, make_optimizer("sgd", groups), lambda _: 1.0, **options)
    if not frozen:
        step.weights = UncertaintyWeights(list(model.heads), lr=0.5, device=CPU)
        step([boxes_and_masks()], 0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = step([boxes_and_masks()], 1)
    model.load_state_dict(before)  # a bad step would have left them
    folder = RunFolder(tmp_path, yaml.safe_dump(config.model_dump(mode="json")), resume=False, world=step.world)
    again = replay(read_bundle(write_bundle(folder, step, result, [["a.jpg", "b.jpg"]])), CPU)
    assert again[0].losses == {name: float(value) for name, value in result.losses.items()}
    assert again[0].norm == float(result.norm)
    assert again[0].finding is None
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
    assert norm.weight.grad is not None
