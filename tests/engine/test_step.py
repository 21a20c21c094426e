"""The training step: skipped updates, clipping, accumulation, averages, precision, memory."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

from densekit.engine import step as steps
from densekit.engine.distributed import World
from densekit.engine.guard import FiniteGuard
from densekit.engine.optim import AveragedModel, make_optimizer, make_schedule, parameter_groups
from densekit.engine.run_folder import RunFolder, RunState
from densekit.engine.step import TrainStep, seed_step
from densekit.memory import describe_batch
from densekit.types import Batch, BoxTargets, Classes, DensekitError, Targets

CPU = torch.device("cpu")
WORLD = World(0, 1, 1, CPU)


class Tiny(nn.Module):
    """A model with batch norm whose loss is not finite for images that hold 255."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 1)
        self.heads = {"head": self.head}
        self.classes_by_head = {"head": Classes(("a",), (1,))}

    def prefix(self, head):
        return ""

    def learning(self, batch):
        return ["head"]

    def using(self, batch):
        return contextlib.nullcontext()

    def forward(self, batch):
        images = batch.images.float()
        images = torch.where(images == 255, torch.nan, images / 255)
        return {"loss": self.head(self.backbone(images).mean((2, 3))).square().mean()}


def make_batch(seed, count=4, bad=False):
    images = torch.randint(0, 255, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    if bad:
        images[0, 0, 0, 0] = 255
    sizes = torch.full((count, 2), 8)
    return Batch(images, sizes, sizes, list(range(count)), torch.arange(count))


def make_step(name="adamw", momentum=0.9, model=None, lr=0.1, **options):
    if model is None:
        torch.manual_seed(0)
        model = Tiny()
    groups = parameter_groups(model, lr=lr, weight_decay=0.01)
    optimizer = make_optimizer(name, groups, momentum=momentum)
    return TrainStep(model, optimizer, make_schedule("constant", 100), world=WORLD, seed=0, **options)


def weights(step):
    return {k: v.clone() for k, v in step.model.state_dict().items() if not k.endswith("num_batches_tracked")}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(("name", "momentum"), [("adamw", 0.9), ("sgd", 0.9), ("sgd", 0.0)])
@pytest.mark.parametrize("bad_step", [0, 1, 2])
def test_a_bad_step_within_the_limit_is_as_if_it_had_not_been(name, momentum, bad_step):
    with_bad, without = (make_step(name, momentum, skip_limit=1) for _ in range(2))
    for number in range(4):
        if number == bad_step:
            before = weights(with_bad)
            result = with_bad([make_batch(99, bad=True)], 0)
            assert float(result.bad) == 1
            assert_equal(weights(with_bad), before)
        assert float(with_bad([make_batch(number)], 0).bad) == 0
        without([make_batch(number)], 0)
    assert_equal(weights(with_bad), weights(without))


def test_batch_norm_statistics_and_average_survive_a_bad_step():
    step = make_step(skip_limit=5)
    step.average = AveragedModel(step.model, 0.9)
    step([make_batch(0)], 0)
    before, average = weights(step), copy.deepcopy(step.average.model.state_dict())
    step([make_batch(1, bad=True)], 1)
    assert_equal(weights(step), before)
    assert_equal({k: v for k, v in step.average.model.state_dict().items() if v.is_floating_point()},
                 {k: v for k, v in average.items() if v.is_floating_point()})  # fmt: skip
    step([make_batch(2)], 2)
    for state in (step.model.state_dict(), step.average.model.state_dict()):
        assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


def test_behind_one_bad_step_too_many_no_update_is_applied():
    step = make_step(skip_limit=0)
    step([make_batch(0)], 0)
    before = weights(step)
    assert float(step([make_batch(1, bad=True)], 1).bad) == 1
    good = step([make_batch(2)], 2)
    assert float(good.bad) == 0, "the step itself was fine"
    assert_equal(weights(step), before)
    step.resume_skipped(0)
    step([make_batch(3)], 3)
    assert not torch.equal(weights(step)["head.weight"], before["head.weight"])


def test_a_gradient_that_is_not_finite_is_bad_although_the_loss_is_finite():
    class Root(Tiny):
        def forward(self, batch):
            return {"loss": (self.head.weight * 0).sum().sqrt() + super().forward(batch)["loss"]}

    torch.manual_seed(0)
    step = make_step(model=Root())
    result = step([make_batch(0)], 0)
    assert torch.isfinite(result.losses["loss"])
    assert float(result.bad) == 1


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run", "seed: 0\n", resume=False, world=WORLD)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("limit", [0, 2])
def test_the_guard_counts_each_bad_step_once_and_keeps_the_weights_before_the_last(folder, lag, limit):
    step, state = make_step(skip_limit=limit), RunState()
    guard = FiniteGuard(folder, step, lambda batch: [f"{i}.jpg" for i in batch.ids], lag=lag)
    bad_steps = [1, 3, 4][: limit + 1]
    before = {}

    def train():
        for number in range(8):
            if number == bad_steps[-1]:
                before.update(weights(step))
            guard.check(step([make_batch(number, bad=number in bad_steps)], number), state)

    with pytest.raises(DensekitError, match=f"step {bad_steps[-1]}: .*tools/replay.py") as error:
        train()
    assert "0.jpg" in str(error.value)
    assert state.skipped_steps == len(bad_steps)
    bundle = torch.load(next(folder.path.glob("bundle*.pt")), weights_only=True)
    assert_equal({k: v for k, v in bundle["model"].items() if k in before}, before)
    assert bundle["bundle"]["files"][0][1] == "1.jpg"


def test_the_guard_drained_before_a_checkpoint_has_seen_every_step(folder):
    step, state = make_step(skip_limit=3), RunState()
    guard = FiniteGuard(folder, step, lag=1)
    guard.check(step([make_batch(0, bad=True)], 0), state)
    assert state.skipped_steps == 0
    guard.drain(state)
    assert state.skipped_steps == 1


def test_accumulated_micro_batches_give_the_gradient_of_one_large_batch():
    class Plain(Tiny):  # batch norm would look at each micro-batch by itself
        def __init__(self):
            super().__init__()
            self.backbone[1] = nn.GroupNorm(2, 4)

    torch.manual_seed(0)
    one = make_step("sgd", model=Plain())
    two = make_step("sgd", model=copy.deepcopy(one.model))
    small = [make_batch(1), make_batch(2)]
    large = make_batch(1, 8)
    large.images = torch.cat([b.images for b in small])
    a, b = one([large], 0), two(small, 0)
    torch.testing.assert_close(a.losses, b.losses)
    torch.testing.assert_close(a.norm, b.norm)
    torch.testing.assert_close(weights(one), weights(two))


def test_clipping_limits_the_update_and_reports_the_norm_before():
    free, clipped = make_step("sgd", 0.0), make_step("sgd", 0.0, clip=0.01)
    start = weights(free)
    norms = [float(s([make_batch(0)], 0).norm) for s in (free, clipped)]
    assert norms[0] == norms[1] > 0.01
    for group in clipped.optimizer.param_groups:
        assert group["lr"] == 0.1
    names = [n for n, _ in clipped.model.named_parameters()]
    moved = [
        torch.cat([(start[n] * (1 - 0.001 * (start[n].dim() > 1)) - s.model.state_dict()[n]).flatten() for n in names])
        for s in (free, clipped)
    ]
    assert float(moved[1].norm()) == pytest.approx(0.1 * 0.01, rel=1e-2)
    torch.testing.assert_close(moved[1] / moved[1].norm(), moved[0] / moved[0].norm(), atol=1e-3, rtol=1e-3)


def test_random_draws_follow_from_step_micro_batch_and_rank_alone():
    def draw(*place):
        seed_step(*place)
        return torch.rand(3).tolist()

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = [draw(*p) for p in places]
    assert len({tuple(d) for d in drawn}) == len(places)
    torch.rand(100)
    assert [draw(*p) for p in places] == drawn


def test_out_of_memory_names_the_batch_and_other_errors_pass():
    step = make_step()

    def failing(error):
        def forward(batch):
            raise error

        return forward

    boxes = BoxTargets(torch.zeros(2, 16, 4), *(torch.zeros(2, 16) for _ in range(3)))
    batch = make_batch(0, 2)
    batch.targets = Targets(boxes)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory")):
        step.runner = failing(error)
        with pytest.raises(DensekitError, match=r"2 x 3 x 8 x 8 pixels, up to 16 boxes an image, images 0, 1"):
            step([batch], 0)
    step.runner = failing(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        step([batch], 0)
    assert describe_batch(make_batch(0, 2)) == "2 x 3 x 8 x 8 pixels, images 0, 1"


def test_the_average_moves_towards_the_model_and_is_exact_after_long_rest():
    step = make_step()
    average = AveragedModel(step.model, 0.9)
    start = average.model.head.weight.clone()
    with torch.no_grad():
        step.model.head.weight.add_(1.0)
    average.update(0)
    torch.testing.assert_close(average.model.head.weight, start + 0.9)  # decay 1/10 at the first step
    average.update(10**6)
    torch.testing.assert_close(average.model.head.weight, start + 0.9 + 0.1 * 0.1)
    average.update(10**6, skip=torch.tensor(1.0))
    torch.testing.assert_close(average.model.head.weight, start + 0.91)
    assert not any(p.requires_grad for p in average.model.parameters())


def test_statistics_of_frozen_and_other_norms_are_left_alone():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False))
    assert len(steps._running_statistics(model)) == 2
