"""A step over micro-batches of several data sets: what each head learns from."""

from __future__ import annotations

import dataclasses

import torch

from densekit.engine.distributed import World
from densekit.engine.loss_weights import LossWeights
from densekit.engine.optim import make_optimizer, make_schedule, parameter_groups
from densekit.engine.step import TrainStep
from densekit.model import DenseModel
from densekit.registry import HEADS
from densekit.types import Classes
from tests.engine.parts import Stages, batch_on

CPU = torch.device("cpu")


def step_of(world=World(0, 1, 1, CPU), segmenter=("linknet", {}), **options):  # noqa: B008  # it never changes
    torch.manual_seed(0)
    trunk = Stages()
    heads = {
        "labels": HEADS.build("classifier", {}, trunk.levels, num_classes=3),
        "masks": HEADS.build(*segmenter, trunk.levels, num_classes=3),
    }
    model = DenseModel(trunk, heads, mean=(0.5,) * 3, std=(0.25,) * 3, classes=Classes(("a", "b", "c"), (0, 1, 2)))
    optimizer = make_optimizer("sgd", parameter_groups(model, lr=0.1, weight_decay=0.1), momentum=0.9)
    return TrainStep(model, optimizer, make_schedule("constant", 9), world=world, seed=0, **options)


def batch(kind, images=2):
    return dataclasses.replace(batch_on(CPU, kind, images), heads=(kind,))


def gradient_of(step, batches):
    step(batches, 0)
    return {name: None if p.grad is None else p.grad.clone() for name, p in step.model.named_parameters()}


def test_the_gradients_of_all_sets_are_summed_and_each_head_has_the_mean_of_its_own():
    labels, masks = batch("labels"), batch("masks")
    both = gradient_of(step_of(), [labels, labels, masks])
    one, other = gradient_of(step_of(), [labels]), gradient_of(step_of(), [masks])
    for name, gradient in both.items():
        parts = [own[name] for own in (one, other) if own[name] is not None]
        torch.testing.assert_close(gradient, sum(parts), atol=1e-6, rtol=1e-4)
        assert len(parts) == (2 if name.startswith("backbone.") else 1), name


def test_the_weight_of_a_head_multiplies_its_gradient_and_not_what_is_told():
    masks = batch("masks")
    plain, half = step_of(), step_of(weights=LossWeights({"masks": 0.5}))
    losses = [step([masks], 0).losses for step in (plain, half)]
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    for a, b in zip(plain.model.parameters(), half.model.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad / 2)


def test_a_head_without_a_turn_stays_to_the_bit_whatever_momentum_and_decay_it_has():
    step = step_of()
    step([batch("labels"), batch("masks")], 0)
    before = {k: v.clone() for k, v in step.model.state_dict().items()}
    step([batch("labels")], 1)
    after = step.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("heads.masks."))
    assert not torch.equal(before["heads.labels.fc.weight"], after["heads.labels.fc.weight"])
