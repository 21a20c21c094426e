"""A training step asks its device nothing: shown without a GPU, on torch's device without values.

There every reading of a value, and every shape that follows from values, is an error of torch's, as it is under
``torch.cuda.set_sync_debug_mode("error")`` on a GPU; what else would wait is a copy between devices, which is recorded.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from densekit.engine.distributed import World
from densekit.engine.optim import AveragedModel
from densekit.engine.step import TrainStep
from densekit.model import DenseModel
from densekit.registry import BACKBONES, HEADS
from densekit.types import Batch, BoxTargets, Classes, Targets

META = torch.device("meta")
SIDE, IMAGES, OBJECTS = 64, 2, 5
HEADS_AND_TARGETS = [
    ("faster_rcnn", {}, "boxes"),
    ("faster_rcnn", {"neck": "c5"}, "boxes"),
    ("unet", {}, "masks"),
    ("deeplab_v3_plus", {}, "masks"),
    ("classifier", {}, "labels"),
]


class Copies(TorchDispatchMode):
    """Records operators whose tensors are on several devices."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        if len({t.device for t in tensors}) > 1:
            self.found.append(f"{func}: {[(t.device.type, tuple(t.shape)) for t in tensors]}")
        return out


class Plain(torch.optim.SGD):
    """Torch's fused kernels know no device without values."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad * (1 - self.found_inf), alpha=-group["lr"])


@pytest.fixture
def no_values(monkeypatch):
    """What torch itself lacks on its device without values: autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def batch_on(device, kind):
    boxes = torch.tensor([4.0, 8.0, 40.0, 50.0]).repeat(IMAGES, OBJECTS, 1)
    none = torch.zeros(IMAGES, OBJECTS, dtype=torch.bool)
    targets = {
        "boxes": BoxTargets(boxes, torch.zeros(IMAGES, OBJECTS, dtype=torch.int64), none, ~none),
        "masks": torch.zeros(IMAGES, SIDE, SIDE, dtype=torch.int64),
        "labels": torch.zeros(IMAGES, dtype=torch.int64),
    }
    images = torch.randint(
        0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    sizes = torch.full((IMAGES, 2), SIDE)
    batch = Batch(images, sizes, sizes, [0, 1], torch.arange(IMAGES), Targets(**{kind: targets[kind]}))
    return batch.to(device, non_blocking=False)


def model_on(device, head, options):
    backbone = BACKBONES.build("resnet18", {})
    built = HEADS.build(head, options, backbone.levels, num_classes=3)
    classes = Classes(("a", "b", "c"), (0, 1, 2))
    return DenseModel(backbone, {"head": built}, mean=(0.5,) * 3, std=(0.25,) * 3, classes=classes).to(device)


@pytest.mark.parametrize(("head", "options", "kind"), HEADS_AND_TARGETS)
def test_a_training_step_reads_no_value_and_copies_nothing_between_devices(no_values, head, options, kind):
    model = model_on(META, head, options)
    optimizer = Plain(model.parameters(), lr=0.1)
    for group in optimizer.param_groups:
        group["base_lr"] = 0.1
    step = TrainStep(
        model, optimizer, lambda _: 1.0, world=World(0, 1, 1, META), seed=0, clip=1.0, average=AveragedModel(model, 0.9)
    )
    batches = [batch_on(META, kind)] * 2
    with Copies() as copies:
        for number in range(2):
            result = step(batches, number)
    assert all(loss.device == META for loss in result.losses.values())
    assert result.bad.device == META
    assert copies.found == []


@pytest.mark.parametrize(("head", "options", "kind"), [case for case in HEADS_AND_TARGETS if case[2] != "masks"])
def test_predictions_are_made_without_a_value_read_until_they_leave_the_device(no_values, head, options, kind):
    model, batch = model_on(META, head, options).eval(), batch_on(META, kind)
    with torch.no_grad(), Copies() as copies:
        found = model.predict(batch)
    assert all(t.device == META for t in tree_leaves(found) if isinstance(t, torch.Tensor))
    assert copies.found == []


@pytest.mark.parametrize(("head", "options", "kind"), HEADS_AND_TARGETS)
def test_losses_and_their_gradients_compile_without_a_graph_break(head, options, kind):
    torch._dynamo.reset()
    cpu, gradients = torch.device("cpu"), []
    model, batch = model_on(cpu, head, options), batch_on(cpu, kind)
    for run in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        torch.manual_seed(0)  # dropout draws the same
        model.zero_grad(set_to_none=True)
        sum(run(batch).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_the_proof_notices_values_that_are_read_and_copies(no_values):
    values = torch.ones(3, device=META)
    for reading in (lambda: values.sum().item(), lambda: bool(values[0] > 0), lambda: values[values > 0]):
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            reading()
    with Copies() as copies:
        nn.functional.relu(torch.ones(3).to(META))
    assert len(copies.found) == 1
