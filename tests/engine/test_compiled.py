"""Compiled steps: when a run takes them, that they learn the same, how often they compile, and the way back."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from densekit import config as configs
from densekit.data.loading.batching import collate
from densekit.engine.compiled import LEAST_STEPS, Compiled, compiles
from densekit.engine.distributed import World
from densekit.engine.optim import make_optimizer, parameter_groups
from densekit.engine.step import TrainStep
from densekit.training import compiling
from densekit.types import DensekitError, Sample
from tests.engine.parts import batch_on, model_on

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SLOWER = ("aot_eager", "inductor")
LONG = {"steps": LEAST_STEPS, "shapes": 1, "micro_batches": 1, "tasks": ["detection"], "same_bits": False}


def test_a_long_run_of_a_detector_on_a_gpu_is_compiled_by_itself():
    assert compiles("auto", GPU, **LONG) == (True, "compiled (auto: 2,500 steps or more)")


def test_each_of_a_few_shapes_must_earn_its_first_step():
    few = LONG | {"shapes": 3, "steps": 3 * LEAST_STEPS}
    assert compiles("auto", GPU, **few) == (True, "compiled (auto: 7,500 steps or more)")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"steps": LEAST_STEPS - 1}, "under 2,500 steps"),
        ({"shapes": 0}, "batches of several shapes, see data.fixed_size"),
        ({"shapes": 2}, "under 5,000 steps"),
        ({"shapes": 5, "steps": 50_000}, "5 shapes of batches, over 4"),
        ({"tasks": ["segmentation"]}, "measured for detectors alone"),
        ({"tasks": ["detection", "segmentation"]}, "measured for detectors alone"),
        ({"same_bits": True}, "train.deterministic"),
    ],
)
def test_other_runs_are_not_and_say_why(changed, why):
    assert compiles("auto", GPU, **LONG | changed) == (False, f"not compiled (auto: {why})")
    assert compiles(True, GPU, **LONG | changed) == (True, "compiled")


def test_what_is_asked_for_is_done_and_a_cpu_does_not_compile_by_itself():
    assert compiles(False, GPU, **LONG) == (False, "not compiled")
    assert compiles(True, CPU, **LONG) == (True, "compiled")
    assert compiles("auto", CPU, **LONG) == (False, "not compiled")


def step_of(backend, backbone=None):
    model = model_on(CPU, "classifier", {}, backbone)
    compiled = Compiled(model, backend=backend) if backend else None
    optimizer = make_optimizer("sgd", parameter_groups(model, lr=0.01, weight_decay=0.1))
    return TrainStep(model, optimizer, lambda _: 1.0, world=World(0, 1, 1, CPU), seed=0, compiled=compiled)


def losses_of(backend, steps):
    run, batch = step_of(backend), batch_on(CPU, "labels")
    return [run([batch], number).losses["cross_entropy"] for number in range(steps)]


@pytest.mark.parametrize("backend", ["eager", *(pytest.param(b, marks=pytest.mark.long) for b in SLOWER)])
def test_compiled_steps_learn_what_plain_ones_do(backend):
    compiled, plain = losses_of(backend, 50), losses_of(None, 50)
    assert plain[-1] < 0.9 * plain[0]
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


class Sums(nn.Module):
    """Looks at what a detector looks at."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        boxes = batch.targets.boxes
        of_boxes = torch.where(boxes.valid & ~boxes.crowd, boxes.boxes.sum(-1) + boxes.labels, 0.0).sum(1)
        return {"sum": (self.weight * of_boxes * batch.images.float().mean((1, 2, 3))).sum()}


def with_objects(count, side=8):
    batch = batch_on(CPU, "boxes")
    boxes = batch.targets.boxes
    parts = [getattr(boxes, name)[:, :count].clone() for name in ("boxes", "labels", "crowd", "valid")]
    pixels = batch.images[..., :side, :side].contiguous()
    targets = dataclasses.replace(batch.targets, boxes=type(boxes)(*parts))
    return dataclasses.replace(batch, images=pixels, targets=targets, ids=[count, -count])


def test_a_shape_is_compiled_once_whatever_the_number_of_objects():
    compiled_graphs = []
    model = Sums()
    compiled = Compiled(model, backend=lambda graph, _: compiled_graphs.append(graph) or graph.forward)
    for side, graphs in ((8, 1), (16, 2)):
        for count in (4, 2, 5, 3):
            batch = with_objects(count, side)
            torch.testing.assert_close(compiled(batch), model(batch))
        assert len(compiled_graphs) == graphs


def test_each_of_a_few_sizes_is_compiled_once():
    sizes, seen = [(32, 64), (64, 32)], []

    def backend(graph, inputs):
        (images,) = [one for one in inputs if isinstance(one, torch.Tensor) and one.dtype == torch.uint8]
        seen.append(tuple(images.shape[2:]))
        return graph.forward

    def batch(*shapes):
        none = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0), "crowd": np.zeros(0)}
        samples = [Sample(np.zeros((*size, 3), np.uint8), 0, size, seed=1, **none) for size in shapes]
        return collate(samples, fixed_sizes=sizes)

    compiled = Compiled(Sums(), few_sizes=True, backend=backend)
    wide, high, mixed, known = [(9, 60), (32, 33)], [(64, 8)] * 2, [(8, 64), (64, 8)], [(30, 64), (8, 8)]
    for number, shapes in enumerate([wide, high, mixed, known, [(33, 9)] * 2]):
        compiled(batch(*shapes))
        assert seen == [(32, 64), (64, 32), (64, 64)][: number + 1]


def test_what_cannot_be_compiled_runs_plain_and_is_said_once(recwarn):
    def no_compiler(graph, inputs):
        raise OSError("no compiler on this machine")

    model = Sums()
    compiled = Compiled(model, backend=no_compiler)
    for count in (4, 2):
        batch = with_objects(count)
        torch.testing.assert_close(compiled(batch), model(batch))
    told = [str(w.message) for w in recwarn if "train.compile" in str(w.message)]
    assert len(told) == 1
    assert told[0].startswith("train.compile: the step runs without compilation: ")
    assert "no compiler on this machine" in told[0]


@pytest.mark.parametrize(
    ("device", "changed", "why"),
    [
        (CPU, {}, "a CUDA GPU replays its steps, and this run is on cpu; set it to auto"),
        (GPU, {"shapes": 0}, "a step is recorded for each size of the images; set data.fixed_size"),
        (GPU, {"shapes": 5}, "5 sizes of images are over 4; give fewer"),
        (GPU, {"micro_batches": 2}, "2 micro-batches a step are over 1; set train.accumulate=1"),
    ],
)
def test_steps_that_cannot_be_replayed_are_refused(device, changed, why):
    with pytest.raises(DensekitError, match=rf"^train.compile=captured: {re.escape(why)}"):
        compiles("captured", device, **LONG | changed)
    assert compiles("captured", GPU, **LONG | {"shapes": 4, "steps": 1}) == (True, "compiled and captured")


def test_shapes_and_micro_batches_of_all_data_sets_count():
    def told(*changes, one="[[8, 16], [16, 8]]", other="[8, 16]"):
        tree = f"""
            model: {{backbone: {{name: resnet8}}, heads: {{a: {{name: fcos}}, b: {{name: fcos}}}}}}
            data:
              x: {{heads: [a], train: {{name: coco}}, fixed_size: {one}}}
              y: {{heads: [b], train: {{name: coco}}, fixed_size: {other}}}
            train: {{steps: 9, compile: captured, optimizer: {{lr: 1.0}}, {", ".join(changes)}}}
        """
        config = configs.parse(yaml.safe_load(tree), "two sets")
        return compiling(config, SimpleNamespace(heads={}), SimpleNamespace(steps=9), GPU)[1]

    assert told("mixing: turn") == "compiled and captured"  # 3 shapes of one set, 1 of the other
    for arguments, sizes, why in (
        (["accumulate: 2"], {}, "4 micro-batches a step"),
        (["mixing: turn"], {"other": "[[8, 16], [9, 9]]"}, "6 sizes of images are over 4"),
        (["mixing: turn"], {"other": "null"}, "a step is recorded for each size"),
    ):
        with pytest.raises(DensekitError, match=f"^train.compile=captured: {why}"):
            told(*arguments, **sizes)


@pytest.fixture
def begun(monkeypatch):
    """Steps that torch was told of."""
    steps = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(len(steps)))
    return steps


def test_losses_of_a_captured_step_outlive_the_next_one(begun):
    """The backend writes where it wrote in the step before, as a CUDA graph does."""
    places = []

    def backend(graph, inputs, mode):
        assert mode == "reduce-overhead"

        def replayed(*inputs):
            found = graph(*inputs)
            places.extend(torch.zeros_like(one) for one in found[len(places) :])
            return [place.copy_(one) for place, one in zip(places, found)]

        return replayed

    model = Sums()
    compiled, batches = Compiled(model, captured=True, backend=backend), [with_objects(4), with_objects(4)]
    batches[1].images = 255 - batches[1].images
    with torch.no_grad():
        found, expected = [compiled(batch)["sum"] for batch in batches], [model(batch)["sum"] for batch in batches]
    assert expected[0] != expected[1]
    torch.testing.assert_close(found, expected)
    assert begun == [0, 1]
    batches[0].targets.boxes.masks = batch_on(CPU, "boxes").targets.boxes.masks
    with pytest.raises(DensekitError, match=r"^train.compile=captured: instance masks have another number of"):
        compiled(batches[0])


def test_a_recording_that_fails_is_made_anew_plainly_and_the_models_own_faults_come_up_there(begun):
    run, batch = step_of("inductor", "resnet8"), batch_on(CPU, "labels")
    run._alone.captured = True

    def breaks(batch):
        raise RuntimeError("operation not permitted when stream is capturing")

    run._alone._compiled = breaks
    with pytest.warns(RuntimeWarning, match=r"train.compile: the step runs without compilation: operation not perm"):
        found = run([batch], 0)
    torch.testing.assert_close(found.losses, step_of(None, "resnet8")([batch], 0).losses)
    failing = Compiled(model_on(CPU, "classifier", {}), captured=True, backend="eager")
    failing.model.features = failing._compiled = breaks
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match=r"^operation not permitted"):
        failing(batch)


class FailsLater(torch.autograd.Function):
    """A compiler that meets the backward pass only when it is asked for."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch._dynamo.exc.InternalTorchDynamoError("no kernel for the backward")


def test_a_step_whose_backward_cannot_be_compiled_is_made_anew_and_plain():
    run, plain, batch = step_of("inductor", "resnet8"), step_of(None, "resnet8"), batch_on(CPU, "labels")
    model, learned = run.model, run._alone
    learned._compiled = lambda batch: {name: FailsLater.apply(loss) for name, loss in model(batch).items()}
    with pytest.warns(RuntimeWarning, match="train.compile: .* no kernel for the backward"):
        found = run([batch], 0)
    expected = plain([batch], 0)
    torch.testing.assert_close(found.losses, expected.losses)
    for name, value in plain.model.state_dict().items():
        if value.is_floating_point():  # batches are counted each time that they are seen
            torch.testing.assert_close(run.model.state_dict()[name], value)
    run([batch], 1)


def test_other_faults_of_a_compiled_step_are_told_as_they_are():
    run, batch = step_of("inductor"), batch_on(CPU, "labels")

    def breaks(batch):
        raise RuntimeError("a fault of the model")

    run._alone._compiled = breaks
    with pytest.raises(RuntimeError, match=r"^a fault of the model$"):
        run([batch], 0)
