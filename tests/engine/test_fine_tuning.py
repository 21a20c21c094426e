"""Rates that fall from stage to stage, a backbone that rests at first, and the mean of weights along the way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from densekit import config as configs
from densekit.backbones.describe import stages_of
from densekit.backbones.resnet import ResNet, Variant
from densekit.engine.distributed import World
from densekit.engine.freezing import Freezing
from densekit.engine.guard import write_bundle
from densekit.engine.optim import held, make_schedule
from densekit.engine.plan import Plan
from densekit.engine.replay import read_bundle, replay
from densekit.engine.run_folder import RunFolder, RunState
from densekit.engine.swa import EqualAverage, renew_statistics
from densekit.errors import DensekitError
from densekit.model import DenseModel
from densekit.registry import BACKBONES, HEADS
from densekit.training import train_step
from densekit.types import Classes
from tests.engine.parts import batch_on

CPU = torch.device("cpu")
WORLD = World(0, 1, 1, CPU)
STEPS, EPOCH = 8, 2
SMALL = Variant("small", "basic", (1, 1, 1, 1), (4, 4, 8, 8))
BATCHES = [batch_on(CPU, "labels", images=4) for _ in range(STEPS)]
for number, one in enumerate(BATCHES):
    one.images = one.images[:, :, :32, :32].roll(number, 3)
    one.sizes = torch.full((4, 2), 32)


def model_of(**options):
    torch.manual_seed(0)
    body = ResNet(SMALL, **options)
    head = HEADS.build("classifier", {"dropout": 0.2}, body.levels, num_classes=3)
    return DenseModel(body, {"kind": head}, mean=(0.5,), std=(0.25,), classes=Classes(("a", "b", "c"), (0, 1, 2)))


def config_of(*, optimizer=(), backbone="resnet18", **train):
    tree = {
        "model": {"backbone": {"name": backbone}, "heads": {"kind": {"name": "classifier"}}},
        "data": {"train": {"name": "image_folder", "images": "none"}},
        "train": {"steps": STEPS, "optimizer": {"name": "sgd", "lr": 0.1, **dict(optimizer)}, **train},
    }
    tree["train"].setdefault("schedule", {"name": "constant"})
    return configs.parse(tree, "it")


def step_of(model=None, **train):
    plan = Plan(STEPS, EPOCH, STEPS, "top1")
    return train_step(config_of(**train), model or model_of(), plan, WORLD, "fp32")


def run(step, first=0, last=STEPS):
    for number in range(first, last):
        step([BATCHES[number]], number)
    return step


def state_of(model, without=()):
    return {k: v.clone() for k, v in model.state_dict().items() if not k.startswith(tuple(without))}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


STAGES = {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4}


@pytest.mark.parametrize("neck", [None, "c4"])
def test_a_parameter_belongs_to_the_stage_that_makes_the_first_level_from_it(neck):
    body = ResNet(SMALL, activation_checkpointing=neck is None)
    if neck:
        body.leave_last_stage()
    assert stages_of(body) == {name: STAGES[name.split(".")[0]] for name, _ in body.named_parameters()}


def test_stages_of_a_network_of_timms_are_found_without_a_table():
    body = BACKBONES.build("timm/resnet10t", {"in_channels": 1})
    expected = {name: STAGES[name.split(".")[1]] for name, _ in body.named_parameters()}
    assert stages_of(body, channels=1) == expected


def test_rates_fall_by_the_same_factor_from_stage_to_stage():
    step = step_of(optimizer={"layer_decay": 0.5, "backbone_lr": 0.4, "lr": 1.0, "weight_decay": 0.1})
    names = {id(p): name for name, p in step.model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in step.optimizer.param_groups for p in group["params"]}
    expected = {
        "backbone.conv1": 0.4 / 32, "backbone.bn1": 0.4 / 32, "backbone.layer1": 0.4 / 16, "backbone.layer2": 0.4 / 8,
        "backbone.layer3": 0.4 / 4, "backbone.layer4": 0.4 / 2, "heads.kind": 1.0,
    }  # fmt: skip
    assert len(rates) == len(names)
    for name, rate in rates.items():
        assert rate == pytest.approx(expected[".".join(name.split(".")[:2])]), name
    decayed = {names[id(p)] for group in step.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {name for name, p in step.model.named_parameters() if p.dim() > 1}
    assert step.rate(3) == 1.0
    assert len(step_of().optimizer.param_groups) == 4


def moving(step):
    """The parts whose parameters or statistics change, at each step."""
    found = []
    for number in range(STEPS):
        before = state_of(step.model)
        step([BATCHES[number]], number)
        changed = {k.split(".")[1] for k, v in step.model.state_dict().items() if not torch.equal(v, before[k])}
        found.append(changed & {*STAGES, "kind"})
    return found


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_backbone_rests_until_its_moment_its_norms_too(name):
    step = step_of(freeze_until=0.5, optimizer={"name": name, "lr": 1e-2})
    everything = {*STAGES, "kind"}
    assert moving(step) == [{"kind"}] * 4 + [everything] * 4


@pytest.mark.parametrize(("until", "wakes"), [((1, 2, 3), (2, 4, 6)), ((0.25, 0.75), (2, 6)), (1.5, (3,))])
def test_stages_wake_one_after_the_other_from_the_last_on(until, wakes):
    found = moving(step_of(freeze_until=until))
    for number, parts in enumerate(found):
        awake = sum(number >= moment for moment in wakes)
        last = 5 if awake == len(wakes) else awake
        assert parts == {"kind", *(name for name, stage in STAGES.items() if stage >= 5 - last)}, number


def test_what_rests_has_no_gradient_and_what_never_learns_stays_so():
    step = step_of(model_of(frozen_stages=2), freeze_until=0.5)
    frozen = {name for name, p in step.model.named_parameters() if name.split(".")[1] in ("conv1", "bn1", "layer1")}
    for number, expected in ((0, {n for n, _ in step.model.named_parameters() if "backbone" in n}), (4, frozen)):
        step([BATCHES[number]], number)
        assert {name for name, p in step.model.named_parameters() if p.grad is None} == expected
    assert step.model.backbone.layer4.training
    assert not step.model.backbone.layer1.training


def test_moments_and_stages_that_make_no_sense_are_refused_in_one_line():
    for until, message in (
        (
            4,
            r"train.freeze_until 4 lies at step 8, and the run ends after 8 steps \(4.0 epochs\); give an epoch before",
        ),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "train.freeze_until has 6 moments, but 5 stages of the backbone learn"),
    ):
        with pytest.raises(DensekitError, match=message):
            step_of(freeze_until=until)
    with pytest.raises(DensekitError, match="nothing of the backbone learns, for all of it is frozen; leave"):
        step_of(freeze_until=0.5, optimizer={"backbone_lr": 0})
    for until in (0, -1, (0.5, 0.2), (0.5, 2), ()):
        with pytest.raises(
            DensekitError, match=r"train.freeze_until: .* or several that rise, all as fractions or all"
        ):
            config_of(freeze_until=until)
    with pytest.raises(DensekitError, match="ema and swa both average the weights that are evaluated; give one"):
        config_of(ema=0.9, swa={})
    with pytest.raises(DensekitError, match=r"train.swa.start 7 lies at step 14"):
        step_of(swa={"start": 7})


def test_the_mean_of_weights_and_its_statistics_are_those_of_torchs_own():
    step = step_of(swa={"start": 0.5, "every": 1.0})  # after 4, 6 and 8 of 8 updates
    peer = None
    for number in range(STEPS):
        step([BATCHES[number]], number)
        if number + 1 in (4, 6, 8):
            peer = peer or swa_utils.AveragedModel(step.model)
            peer.update_parameters(step.model)
        elif number < 3:
            assert_same(state_of(step.model_to_use), state_of(step.model))
    found = dict(step.model_to_use.named_parameters())
    assert step.model_to_use is not step.model
    for name, value in peer.module.named_parameters():
        torch.testing.assert_close(found[name], value)
    swa_utils.update_bn([[batch] for batch in BATCHES[:3]], peer)
    step.begin(STEPS - 1)
    settings = {"step": STEPS, "seed": 0, "precision": "fp32", "world": WORLD}
    renew_statistics(step.model_to_use, step.model, BATCHES[:3], **settings)
    theirs = peer.module.state_dict()
    statistics = {k: v for k, v in step.model_to_use.state_dict().items() if "running" in k or "tracked" in k}
    assert len(statistics) == 3 * len([m for m in step.model.modules() if isinstance(m, nn.BatchNorm2d)])
    for name, value in statistics.items():
        torch.testing.assert_close(value, theirs[name])


def test_a_rate_of_its_own_holds_from_the_first_weights_on():
    step = step_of(swa={"start": 0.5, "lr": 0.3}, schedule={"name": "cosine"})
    rates = [step.schedule(number) for number in range(STEPS)]
    assert rates[4:] == [0.3] * 4
    assert rates[:4] == [make_schedule("cosine", STEPS)(number) for number in range(4)]


def test_a_rate_goes_to_its_own_as_torchs_own_schedule_does():
    factor = held(make_schedule("constant", 100), 40, 0.3, anneal=10)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    peer = swa_utils.SWALR(optimizer, swa_lr=0.3, anneal_epochs=10, anneal_strategy="cos")
    for step in range(40, 55):
        assert factor(step) == pytest.approx(optimizer.param_groups[0]["lr"]), step
        optimizer.step()
        peer.step()
    assert [factor(39), factor(54)] == [1.0, 0.3]


def test_statistics_of_what_rests_are_left_alone_and_those_of_a_finite_mean_are_new():
    model = model_of(frozen_stages=3)
    average = EqualAverage(model, start=1, every=1)
    Freezing(model.backbone, stages_of(model.backbone), [4])  # says no word of what is frozen anyway
    before = state_of(average.model)
    renew_statistics(average.model, model.train(), BATCHES[:2], step=1, seed=0, precision="fp32", world=WORLD)
    changed = {k.split(".")[1] for k, v in average.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"layer3", "layer4"}


# While all of the backbone rests, while a part does, while weights are averaged.
@pytest.mark.parametrize(("name", "left"), [("sgd", (3,)), ("adamw", (1, 3, 7))])
def test_a_run_that_is_left_in_any_phase_goes_on_to_the_same_bits(name, left, tmp_path):
    train = {"freeze_until": [0.25, 0.5], "swa": {"start": 0.625, "every": 0.5, "lr": 0.5}}
    train["optimizer"] = {"name": name, "lr": 1e-2, "layer_decay": 0.7}
    alone = step_of(**train)
    for number in range(STEPS):
        alone([BATCHES[number]], number)
        if number + 1 in left:
            folder = RunFolder(tmp_path / f"{number + 1}", "seed: 0\n", resume=False, world=WORLD)
            folder.save_last(alone, RunState(step=number + 1))
    for killed in left:
        again = step_of(**train)
        state, _ = RunFolder(tmp_path / f"{killed}", "seed: 0\n", resume=True, world=WORLD).resume(again)
        assert state.step == killed
        run(again, killed)
        assert_same(state_of(again.model), state_of(alone.model))
        assert_same(state_of(again.model_to_use), state_of(alone.model_to_use))


def test_a_bad_step_of_the_frozen_phase_is_replayed_as_it_was(tmp_path):
    step = step_of(freeze_until=0.5)
    folder = RunFolder(tmp_path / "run", configs.dump(config_of(freeze_until=0.5)), resume=False, world=WORLD)
    folder.config["model"]["backbone"]["name"] = "resnet20"
    body = BACKBONES.build("resnet20", {})
    head = HEADS.build("classifier", {}, body.levels, num_classes=3)
    step = step_of(
        DenseModel(
            body, {"kind": head}, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=step.model.classes
        ),
        freeze_until=0.5,
    )
    before = copy.deepcopy(step.model.state_dict())
    result = step([BATCHES[0]], 0)
    step.model.load_state_dict(before)
    path = write_bundle(folder, step, result, [["a.jpg"]])
    bundle = read_bundle(path)
    assert "backbone" in bundle.resting
    (found,) = replay(bundle, CPU)
    assert found.losses["cross_entropy"] == pytest.approx(float(result.losses["cross_entropy"]), abs=1e-6)
    assert found.norm == pytest.approx(float(result.norm), rel=1e-4)
