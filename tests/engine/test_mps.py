"""The GPU of a Mac, without one: torch's device without values takes the paths that are neither the CPU's nor CUDA's.

There every operator is recorded, and torch's own table says which ones have a form for mps. What mps does with them
only a Mac can show.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from densekit.engine import distributed
from densekit.engine.distributed import World
from densekit.engine.loss_scale import LossScale
from densekit.engine.loss_weights import LossWeights
from densekit.engine.optim import AveragedModel, make_optimizer, restore
from densekit.engine.record import memory_in_use
from densekit.engine.step import TrainStep
from densekit.errors import DensekitError
from densekit.memory import is_out_of_memory
from densekit.model import DenseModel
from densekit.ops import mixup
from densekit.precision import choose_precision
from densekit.registry import BACKBONES, HEADS
from densekit.types import Batch, BoxTargets, Classes, Targets

META, MPS = torch.device("meta"), torch.device("mps")
SIDE = 64


class Operators(TorchDispatchMode):
    """Records the names of operators, and those that see float64."""

    def __init__(self):
        super().__init__()
        self.names, self.wide = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.add(str(func))
        leaves = tree_leaves((args, kwargs, out))
        if any(isinstance(t, torch.Tensor) and t.device == META and t.dtype == torch.float64 for t in leaves):
            self.wide.add(str(func))
        return out


@functools.cache
def table():
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = yaml.load(path.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {entry["func"].split("(")[0]: entry for entry in entries}


def runs_on_mps(operator: str) -> bool:
    """Whether torch's table names a form of an operator for mps, or one for every device."""
    entry = table()[operator]
    if "structured_delegate" in entry:
        return runs_on_mps(entry["structured_delegate"])
    keys = {
        key.strip() for names in entry.get("dispatch", {"CompositeImplicitAutograd": ""}) for key in names.split(",")
    }
    return "MPS" in keys or any(key.startswith("Composite") for key in keys)


class Plain(torch.optim.SGD):
    """Torch's fused kernels know no device without values, and mps is given none."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad, alpha=-group["lr"])


def batch_of(kind, images=2):
    boxes = torch.tensor([4.0, 8.0, 40.0, 50.0]).repeat(images, 3, 1)
    none = torch.zeros(images, 3, dtype=torch.bool)
    targets = {
        "boxes": BoxTargets(boxes, torch.zeros(images, 3, dtype=torch.int64), none, ~none),
        "masks": torch.zeros(images, SIDE, SIDE, dtype=torch.int64),
        "labels": torch.zeros(images, dtype=torch.int64),
    }
    pixels, sizes = torch.zeros(images, 3, SIDE, SIDE, dtype=torch.uint8), torch.full((images, 2), SIDE)
    batch = Batch(pixels, sizes, sizes, list(range(images)), torch.arange(images), Targets(**{kind: targets[kind]}))
    return batch.to(META)


@pytest.mark.parametrize(
    ("head", "kind"),
    [("faster_rcnn", "boxes"), ("retinanet", "boxes"), ("fcos", "boxes"), ("unet", "masks"), ("classifier", "labels")],
)
def test_training_and_predicting_need_no_operator_that_mps_lacks_and_no_float64(monkeypatch, head, kind):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # unknown to that device
    backbone = BACKBONES.build("resnet18", {})
    heads = {"head": HEADS.build(head, {}, backbone.levels, num_classes=3)}
    classes = Classes(("a", "b", "c"), (0, 1, 2))
    model = DenseModel(backbone, heads, mean=(0.5,) * 3, std=(0.25,) * 3, classes=classes).to(META)
    optimizer = Plain([{"params": list(model.parameters()), "lr": 0.1, "base_lr": 0.1}])
    average = AveragedModel(model, 0.9)
    world = World(0, 1, 1, META)
    step = TrainStep(model, optimizer, lambda _: 1.0, world=world, seed=0, clip=1.0, average=average)
    with Operators() as seen:
        step([batch_of(kind)], 0)
        if kind != "masks":  # masks are cut to the sizes of their files, which are values
            with torch.no_grad():
                model.eval().predict(batch_of(kind))
    assert seen.wide == set()
    ours = {name.removeprefix("aten.").removesuffix(".default") for name in seen.names if name.startswith("aten.")}
    assert "convolution" in ours
    assert [name for name in sorted(ours) if not runs_on_mps(name)] == []


def test_the_table_tells_operators_that_mps_lacks():
    assert not runs_on_mps("_fused_adagrad_")
    assert runs_on_mps("add.Tensor")


class OnMps(torch.Tensor):
    """A tensor that says it lies on mps."""

    @property
    def device(self):
        return MPS


def test_mixup_draws_the_same_shares_on_the_cpu_where_there_is_no_float64(monkeypatch):
    seeds, moved = torch.arange(5), []
    monkeypatch.setattr(OnMps, "cpu", lambda tensor: moved.append("cpu") or tensor.as_subclass(torch.Tensor))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: moved.append(device) or tensor)
    expected = mixup.beta_shares(seeds, 0.3)
    assert moved == [torch.device("cpu")]
    assert torch.equal(mixup.beta_shares(seeds.as_subclass(OnMps), 0.3), expected)
    assert moved[1:] == ["cpu", MPS]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimiser_is_not_fused_on_mps_and_goes_on_from_one_that_was(name):
    where = [torch.device("cpu")]

    class Parameter(torch.nn.Parameter):
        device = property(lambda self: where[0])

    def make(device):
        where[0] = device
        groups = [{"params": [Parameter(torch.ones(3, 2))], "lr": 0.1, "base_lr": 0.1}]
        optimizer = make_optimizer(name, groups)
        where[0] = torch.device("cpu")
        return optimizer

    fused, plain, again = (make(device) for device in (torch.device("cpu"), MPS, torch.device("cpu")))
    for one, other in ((fused, plain), (plain, again)):
        one.param_groups[0]["params"][0].grad = torch.full((3, 2), 0.5)
        one.step()
        own = other.param_groups[0]["fused"]
        restore(other, one.state_dict())
        assert other.param_groups[0]["fused"] is own is (other is not plain)
    assert float(again.state_dict()["state"][0].get("step", 2)) == 2


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("stay", "norm", "steps"), [(0.0, 1.0, 1), (1.0, 1.0, 0), (0.0, float("inf"), 0)])
def test_on_mps_the_host_decides_whether_a_step_is_taken(stay, norm, steps, scaled):
    taken = []
    step = object.__new__(TrainStep)
    step.world = World(0, 1, 1, MPS)
    step.scaler = LossScale(torch.device("cpu"), enabled=scaled)
    step.parameters = [torch.nn.Parameter(torch.ones(1))]
    step.parameters[0].grad = step.scaler.scale(torch.ones(1))
    step.optimizer = type("Optimizer", (), {"step": lambda self: taken.append(step.parameters[0].grad.item())})()
    step.weights, step.model = LossWeights(), SimpleNamespace(heads={})
    step._update({}, torch.tensor(norm), torch.tensor(stay))
    assert taken == [1.0] * steps


def test_a_mac_trains_in_float32_unless_told_otherwise():
    assert choose_precision("auto", MPS) == "fp32"
    assert choose_precision("bf16", MPS) == "bf16"
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"))


def test_a_device_is_named_and_its_memory_told(monkeypatch):
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3 * 2**30)
    assert memory_in_use(MPS) == 3.0
    assert memory_in_use(torch.device("cpu")) != 3.0
    assert distributed.describe(MPS) == "mps"
    assert distributed.describe(torch.device("cpu")).startswith("CPU")


def test_a_device_that_is_not_there_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("mps", "cuda", "cuda:1"):
        with pytest.raises(DensekitError, match=rf"^--device {name}: torch .* sees 0 such devices here; use .*cpu$"):
            distributed.join(name)


def test_a_mac_uses_its_gpu_where_it_is_asked_for_and_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.join("mps").device == MPS
    assert distributed.join().device == torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DensekitError, match="2 ranks were started, but gradients on mps are not averaged"):
        distributed.join("mps")


def test_one_process_trains_where_torch_has_no_ranks(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.delattr(torch.distributed, "is_initialized")
    assert distributed.join("cpu").size == 1
    assert distributed.gather(3) == [3]
    assert distributed.any_rank(True)
    distributed.leave()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DensekitError, match=r"this torch has no torch\.distributed; start one process"):
        distributed.join("cpu")
