"""Batch norm statistics of each data set: torch's own norms, fed one set alone, are the oracle."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch.optim import swa_utils

from densekit import build
from densekit import config as configs
from densekit.added_head import add_head
from densekit.backbones.resnet import ResNet
from densekit.engine import checkpoint
from densekit.engine.distributed import World
from densekit.engine.optim import AveragedModel, make_optimizer, make_schedule, parameter_groups
from densekit.engine.replay import read_bundle
from densekit.engine.run_folder import RunFolder, RunState
from densekit.engine.step import TrainStep
from densekit.engine.swa import renew_statistics
from densekit.errors import DensekitError
from densekit.export.graph import Graph
from densekit.joined_heads import join
from densekit.layers import SyncBatchNorm2d
from densekit.model import DenseModel
from densekit.packed import packed
from densekit.registry import HEADS
from densekit.set_statistics import SetStatistics
from densekit.training import _check_each, _fixed_norms
from densekit.types import Classes
from tests.engine.parts import batch_on
from tests.engine.test_fine_tuning import SMALL
from tests.tools import joint, runs

CPU = torch.device("cpu")
WORLD = World(0, 1, 1, CPU)
HEAD_OF = {"cells": "kind", "tissue": "masks", "scans": "mood"}


def model_of(sets=("cells", "tissue")):
    torch.manual_seed(0)
    body = ResNet(SMALL)
    heads = {
        head: HEADS.build(part, options, body.levels, num_classes=3)
        for head, part, options in (
            ("kind", "classifier", {}),
            ("masks", "fpn", {"pyramid_channels": 16, "segmentation_channels": 32, "dropout": 0.0}),
            ("mood", "classifier", {}),
        )[: len(sets)]
    }
    model = DenseModel(body, heads, mean=(0.5,), std=(0.25,), classes=Classes(("a", "b", "c"), (0, 1, 2)))
    model.statistics = SetStatistics(body, {name: [HEAD_OF[name]] for name in sets})
    return model


def step_of(lr=0.0, **options):
    model = model_of()
    optimizer = make_optimizer("sgd", parameter_groups(model, lr=lr, weight_decay=0.0), momentum=0.9)
    options = {"average": AveragedModel(model, 0.9), **options}
    return TrainStep(model, optimizer, make_schedule("constant", 9), world=WORLD, seed=0, **options)


def batch(name, number):
    one = batch_on(CPU, "masks" if name == "tissue" else "labels")
    images = one.images.roll(number, 3) // (4 if name == "tissue" else 1)
    return dataclasses.replace(one, images=images, heads=(HEAD_OF[name],), data_set=name)


def steps(step, numbers=range(3), of_cells=0):
    for number in numbers:
        step([batch("cells", number + of_cells), batch("tissue", number)], number)
    return step


def buffers_of(backbone):
    return {name: value.clone() for name, value in backbone.named_buffers()}


def through(model, name):
    """The backbone's buffers while it has the statistics of a set."""
    with model.statistics.use(name):
        return buffers_of(model.backbone)


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_each_set_has_the_statistics_that_torchs_norms_learn_from_it_alone():
    step = steps(step_of())
    plain = {name: copy.deepcopy(model_of().backbone).train() for name in ("cells", "tissue")}
    for number in range(3):
        for name, backbone in plain.items():
            one = batch(name, number)
            backbone(step.model.normalize(one.images, one.sizes))
    for name, backbone in plain.items():
        assert_same(through(step.model, name), buffers_of(backbone))
    assert not torch.equal(plain["cells"].bn1.running_mean, plain["tissue"].bn1.running_mean)
    means = [through(step.average.model, name)["bn1.running_mean"] for name in plain]
    assert not torch.equal(*means)  # averaged a set too


def test_a_head_predicts_through_its_own_set_whatever_the_images_of_the_other():
    one, other = (steps(step_of(), of_cells=shift).model.eval() for shift in (0, 5))
    seen = batch("tissue", 7)
    with torch.no_grad():
        found, again = one.predict_all(seen), other.predict_all(seen)
        plain = copy.deepcopy(one)
        plain.backbone.load_state_dict({**one.backbone.state_dict(), **through(one, "tissue")})
        plain.statistics = None
        expected = plain.predict(seen, "masks")
    assert torch.equal(torch.stack(found["masks"].probabilities), torch.stack(expected.probabilities))
    assert torch.equal(torch.stack(found["masks"].probabilities), torch.stack(again["masks"].probabilities))
    assert not torch.equal(found["kind"].probabilities, again["kind"].probabilities)


def test_prediction_takes_a_pass_a_set_packed_too_and_one_for_a_head_that_is_kept_alone():
    model = steps(step_of()).model.eval()
    seen, passes = batch("tissue", 7), []
    ready = packed(model, torch.float32)
    for backbone in {model.backbone, ready.backbone, *ready.statistics.backbones.values()}:
        backbone.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        losses, found = model.losses_and_predictions(seen, ["masks"])
        assert len(passes) == 1
        both, fast = model.predict_all(seen), ready.predict_all(seen)
        assert len(passes) == 5
        model.keep(["masks"])
        alone_losses, alone = model.losses_and_predictions(seen)
        assert len(passes) == 6
    for other in (both, fast, alone):
        torch.testing.assert_close(other["masks"].probabilities, found["masks"].probabilities, atol=1e-5, rtol=1e-5)
    assert list(losses.values()) == list(alone_losses.values())
    assert not any(key.startswith("statistics") for key in model.state_dict())


def test_a_step_that_is_not_finite_leaves_the_statistics_of_all_sets():
    step = steps(step_of(skip_limit=1))
    before = {key: value.clone() for key, value in step.model.state_dict().items() if "running" in key}
    with torch.no_grad():
        step.model.heads["kind"].fc.bias.fill_(torch.nan)
    assert float(step([batch("cells", 8), batch("tissue", 8)], 3).bad) == 1
    assert any(key.startswith("statistics.") for key in before)
    assert all(torch.equal(value, step.model.state_dict()[key]) for key, value in before.items())


def test_a_run_that_is_left_goes_on_to_the_same_bits(tmp_path):
    alone = steps(step_of(lr=0.01), range(2))
    RunFolder(tmp_path, "seed: 0\n", resume=False, world=WORLD).save_last(alone, RunState(step=2))
    steps(alone, range(2, 4))
    again = step_of(lr=0.01)
    RunFolder(tmp_path, "seed: 0\n", resume=True, world=WORLD).resume(again)
    steps(again, range(2, 4))
    assert_same(again.model.state_dict(), alone.model.state_dict())
    assert_same(again.average.model.state_dict(), alone.average.model.state_dict())


def test_statistics_of_a_mean_of_weights_are_those_of_each_set_and_head():
    model = model_of()
    peers = {"cells": copy.deepcopy(model), "tissue": copy.deepcopy(model)}
    batches = [batch(name, number) for number in range(2) for name in peers]
    for name, peer in peers.items():
        peer.statistics = None
        swa_utils.update_bn([[one] for one in batches if one.data_set == name], peer)
    average = copy.deepcopy(model)
    renew_statistics(average, model.train(), batches, step=1, seed=0, precision="fp32", world=WORLD)
    for name, peer in peers.items():
        torch.testing.assert_close(through(average, name), buffers_of(peer.backbone))
        head = HEAD_OF[name]
        torch.testing.assert_close(average.heads[head].state_dict(), peer.heads[head].state_dict())


def test_a_set_that_no_batch_comes_from_keeps_its_statistics():
    model = model_of()
    average = copy.deepcopy(model)
    for module in average.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.fill_(0.5)
    batches = [batch("cells", 0), batch("cells", 1)]
    renew_statistics(average, model.train(), batches, step=1, seed=0, precision="fp32", world=WORLD)
    means = {key: value for key, value in average.state_dict().items() if key.endswith("running_mean")}
    assert {key for key, value in means.items() if (value == 0.5).all()} == {
        key for key in means if key.startswith(("statistics.", "heads.masks."))
    }


def test_a_norm_over_ranks_takes_the_plain_mean_where_it_has_no_momentum():
    norm = SyncBatchNorm2d(2)
    norm.momentum = None
    for value in (1.0, 4.0):
        norm._track(torch.full((2,), value), torch.full((2,), 2 * value))
    assert norm.running_mean.tolist() == [2.5, 2.5]
    assert norm.running_var.tolist() == [5.0, 5.0]


def test_what_keeps_heads_of_two_sets_of_three_still_predicts_through_both():
    model = model_of(("cells", "tissue", "scans")).eval()
    for name in ("tissue", "scans"):
        with model.statistics.use(name):
            model.backbone.bn1.running_mean.fill_(len(name) / 10)
    with torch.no_grad():
        before = model.predict_all(batch("scans", 0))
        model.keep(["masks", "mood"])
        after = model.predict_all(batch("scans", 0))
    assert torch.equal(before["mood"].probabilities, after["mood"].probabilities)
    assert not torch.equal(before["mood"].probabilities, before["kind"].probabilities)
    with pytest.raises(DensekitError, match=r"statistics of different data sets .* export one at a time by --head"):
        Graph(model)


def tree_of(folder, **train):
    return runs.config_of("joint", folder, norm_statistics="each", **train)


def test_first_weights_give_their_statistics_to_every_set_or_to_those_of_their_names(tmp_path):
    data = runs.make_data(tmp_path / "shapes")
    tree, shared = tree_of(data), runs.config_of("joint", data)
    plain, each, classes = tmp_path / "plain.pt", tmp_path / "each.pt", joint.classes_in(tree)
    joint.write_joint(plain, shared, classes)
    content = torch.load(plain, weights_only=True)
    content["model"]["backbone.bn1.running_mean"].fill_(0.25)
    checkpoint.save(plain, content)

    def built(tree, weights):
        tree = {**tree, "model": {**tree["model"], "weights": str(weights)}}
        return build.model(configs.parse(tree, "it"), classes)[0]

    model = built(tree, plain)
    assert through(model, "of_boxes")["bn1.running_mean"][0] == 0.25
    assert_same(through(model, "of_masks"), through(model, "of_boxes"))
    with model.statistics.use("of_masks"):
        model.backbone.bn1.running_mean.fill_(0.5)
    joint.save(each, model, configs.parse(tree, "it"), list(model.heads))
    bad_step = {"batches": [], "files": [], "step": 0, "seed": 0, "rank": 0, "precision": "fp32"}
    checkpoint.save(tmp_path / "bundle.pt", {**torch.load(each, weights_only=True), "bundle": bad_step})
    of_bundle = read_bundle(tmp_path / "bundle.pt").model
    for again in (built(tree, each), build.from_checkpoint(each)[0], of_bundle):
        assert_same(again.state_dict(), model.state_dict())
    with pytest.raises(DensekitError, match="batch norm statistics of each of its data sets of_boxes, of_masks; set"):
        built(shared, each)
    for add in (join, add_head):
        with pytest.raises(
            DensekitError, match="those of another head's data would be missing; train all heads in one"
        ):
            add(each, plain)


def test_what_can_not_have_statistics_of_each_set_is_refused(tmp_path):
    tree = tree_of(tmp_path)
    config, model = configs.parse(tree, "it"), model_of()
    norms = [module for module in model.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert _fixed_norms(config, model) == []
    both = copy.deepcopy(tree)
    both["data"]["of_masks"]["heads"] = ["boxes", "masks"]
    model.heads["boxes"] = model.heads.pop("kind")
    with pytest.raises(DensekitError, match="the head 'boxes' learns from of_boxes and of_masks, and in prediction it"):
        _check_each(configs.parse(both, "it"), model, norms)
    resting = ResNet(SMALL, frozen_stages=5)
    model.backbone = resting
    with pytest.raises(DensekitError, match="all batch norms of resnet8 rest, so no statistics are learned; lower"):
        _check_each(config, model, [m for m in resting.modules() if isinstance(m, torch.nn.BatchNorm2d)])
    model.heads["masks"].runs_last_stage = True
    with pytest.raises(DensekitError, match="the head 'masks' runs the last stage of the backbone itself"):
        _check_each(config, model, norms)
    model.statistics = None
    with pytest.raises(DensekitError, match="each is for several data sets, and there is one; leave it out"):
        _check_each(config, model, norms)
