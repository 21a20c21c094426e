"""Learned weights of the heads' losses: by the papers' own formulas under autograd, and what must leave them alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from densekit.engine.distributed import World
from densekit.engine.loss_weights import GradNormWeights, UncertaintyWeights
from densekit.engine.optim import AveragedModel
from densekit.engine.run_folder import RunFolder, RunState
from densekit.engine.step import TrainStep
from densekit.errors import DensekitError
from tests.engine.test_as_on_a_gpu import READING, operators
from tests.engine.test_several_heads import CPU, batch, step_of
from tests.tools import runs

HEADS, KINDS = ["labels", "masks"], ["uncertainty", "gradnorm"]


def uncertainty():
    return UncertaintyWeights(HEADS, lr=0.05, device=CPU)


def step_with(kind: str, **options) -> TrainStep:
    step = step_of(**options)
    step.weights = (
        uncertainty() if kind == "uncertainty" else GradNormWeights(step.model, alpha=1.5, lr=0.05, device=CPU)
    )
    return step


def weights_of(step: TrainStep) -> dict[str, float]:
    return {head: float(value) for head, value in step.weights.learned().items()}


def both_in_one():
    """One micro-batch from which both heads learn."""
    labels, masks = batch("labels"), batch("masks")
    targets = dataclasses.replace(labels.targets, masks=masks.targets.masks)
    return dataclasses.replace(labels, targets=targets, heads=None)


def sums(losses) -> list[torch.Tensor]:
    return [sum(v for k, v in losses.items() if k.startswith(f"{head}.")) for head in HEADS]


def uncertainty_by_the_paper(model, batches, s, optimizer):
    """Equation 10 of Kendall et al. as one loss, from which autograd has the gradients of model and s."""
    losses = {k: v for one in batches for k, v in model(one).items()}
    total = sum(torch.exp(-s[i]) * loss + s[i] / 2 for i, loss in enumerate(sums(losses)))
    model.zero_grad()
    optimizer.zero_grad()
    total.backward()
    optimizer.step()


def gradnorm_by_the_paper(model, batches, w, optimizer, first, alpha=1.5):
    """Algorithm 1 of Chen et al., with the gradient of the sum of |G - target| by autograd."""
    layer = model.backbone.stages[-1].weight
    losses = torch.stack(sums({k: v for one in batches for k, v in model(one).items()}))
    first = losses.detach() if first is None else first
    gradients = [torch.autograd.grad(w[i] * losses[i], layer, create_graph=True)[0].norm() for i in range(len(w))]
    norms = torch.stack(gradients)
    rates = (losses / first).detach()
    target = (norms.mean() * (rates / rates.mean()) ** alpha).detach()
    model.zero_grad()
    optimizer.zero_grad()
    (gradient,) = torch.autograd.grad((norms - target).abs().sum(), w, retain_graph=True)
    (w.detach() * losses).sum().backward()
    w.grad = gradient
    optimizer.step()
    with torch.no_grad():
        w.mul_(len(w) / w.sum())
    return first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [False, True], ids=["a set each", "one set for both"])
def test_weights_and_gradients_are_those_of_the_paper(kind, together):
    step, other = step_with(kind), step_of()
    batches = [both_in_one()] if together else [batch("labels"), batch("masks")]
    values = torch.nn.Parameter(torch.zeros(2) if kind == "uncertainty" else torch.ones(2))
    optimizer, first = torch.optim.Adam([values], lr=0.05), None
    for number in range(3):
        other.begin(number)
        before = values.detach().neg().exp() if kind == "uncertainty" else values.detach().clone()
        if kind == "uncertainty":
            uncertainty_by_the_paper(other.model, batches, values, optimizer)
        else:
            first = gradnorm_by_the_paper(other.model, batches, values, optimizer, first)
        result = step(batches, number)
        told = torch.stack([result.weights[head] for head in HEADS])
        torch.testing.assert_close(told, before, rtol=1e-4, atol=1e-5)
        for one, two in zip(step.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-5)
        other.model.load_state_dict(step.model.state_dict())
    assert abs(weights_of(step)["labels"] - 1) > 0.1


def test_the_weights_of_uncertainty_come_to_half_the_inverse_of_the_loss():
    weights = uncertainty()
    losses = {"labels": torch.tensor(4.0), "masks": torch.tensor(0.25)}
    for _ in range(200):
        weights.update(losses, torch.ones(()), torch.zeros(()))
    found = weights.learned()
    assert float(found["labels"]) == pytest.approx(1 / 8, rel=0.02)
    assert float(found["masks"]) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_weigh_as_one_batch(kind):
    halves, whole = step_with(kind), step_with(kind)
    labels, masks = batch("labels"), batch("masks")
    for number in range(2):
        halves([labels, labels, masks, masks], number)
        whole([labels, masks], number)
    assert weights_of(halves) == pytest.approx(weights_of(whole), rel=1e-5)
    assert weights_of(whole)["labels"] != 1


def state_of(step: TrainStep) -> list[torch.Tensor]:
    return [value.clone() for value in step.weights.state_dict().values()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [0, 1])
def test_a_step_that_is_skipped_leaves_the_weights_alone(kind, at):
    step = step_with(kind, skip_limit=1)
    batches = [batch("labels"), batch("masks")]
    for number in range(at):
        step(batches, number)
    before = state_of(step)
    bad = dataclasses.replace(batches[1], images=torch.full(batches[1].images.shape, torch.nan))
    assert float(step([batches[0], bad], at).bad) == 1
    assert all(torch.equal(a, b) or (a.isnan().all() and b.isnan().all()) for a, b in zip(before, state_of(step)))
    step(batches, at + 1)
    assert weights_of(step)["labels"] != 1


def test_a_head_without_a_turn_keeps_its_weight_by_uncertainty():
    step = step_with("uncertainty")
    step([batch("labels"), batch("masks")], 0)
    before = weights_of(step)
    for number in range(1, 4):
        step([batch("labels")], number)
    after = weights_of(step)
    assert after["masks"] == before["masks"]
    assert after["labels"] != before["labels"]
    lone = step_with("uncertainty").weights
    lone.load_state_dict(step.weights.state_dict())
    assert lone.state_dict()["adam_steps"].tolist() == [4, 1]


def test_gradnorm_rests_in_a_step_that_not_all_heads_learn_from_and_while_the_layer_rests():
    step = step_with("gradnorm")
    step([batch("labels"), batch("masks")], 0)
    before = state_of(step)
    step([batch("labels")], 1)
    step.model.backbone.requires_grad_(False)
    step([batch("labels"), batch("masks")], 2)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(step)))
    step.model.backbone.requires_grad_(True)
    step([batch("labels"), batch("masks")], 3)
    assert not torch.equal(before[0], state_of(step)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_fp16s_scale_is_taken_out_and_an_overflow_leaves_the_weights_alone(kind):
    plain, scaled = step_with(kind), step_with(kind)
    scaled.scaler.enabled = True
    batches = [batch("labels"), batch("masks")]
    for number in range(2):
        scaled.scaler.factor.fill_(1024.0)
        plain(batches, number)
        scaled(batches, number)
    assert weights_of(scaled) == pytest.approx(weights_of(plain), rel=1e-4)
    before = state_of(scaled)
    scaled.scaler.factor.fill_(3e38)
    assert float(scaled(batches, 2).bad) == 0
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(scaled)))


def test_a_frozen_head_is_not_weighed_and_one_head_has_nothing_to_be_weighed_against():
    model = step_of().model
    model.freeze(["masks"])
    with pytest.raises(
        DensekitError, match=r"gradnorm weighs heads against each other, and labels alone learns .*leave"
    ):
        GradNormWeights(model, alpha=1.5, lr=0.1, device=CPU)
    with pytest.raises(DensekitError, match="uncertainty weighs heads against each other"):
        UncertaintyWeights(["labels"], lr=0.1, device=CPU)


GROUPS = ("unet", {"decoder_channels": (16, 16, 8, 8, 8), "norm": "group"})
"""A segmenter whose predictions do not depend on what else is in the batch."""


def rows(whole, own: slice):
    """Some images of a batch."""
    targets = {k: v if v is None else v[own] for k, v in vars_of(whole.targets).items()}
    fields = {name: getattr(whole, name)[own] for name in ("images", "sizes", "original_sizes", "ids", "seeds")}
    return dataclasses.replace(whole, **fields, targets=dataclasses.replace(whole.targets, **targets), host=())


def vars_of(targets):
    return {field.name: getattr(targets, field.name) for field in dataclasses.fields(targets)}


def learn(kind: str, own: slice, world) -> dict[str, float]:
    step = step_with(kind, segmenter=GROUPS, world=world)
    batches = [rows(batch(one, 4), own) for one in ("labels", "masks")]
    for number in range(2):
        step([*batches, batches[1]], number)
    return weights_of(step)


def learn_on(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    found = {kind: learn(kind, slice(2 * rank, 2 * rank + 2), World(rank, 2, 2, CPU)) for kind in KINDS}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_ranks_learn_the_same_weights_and_those_of_one(tmp_path):
    if not dist.is_available():
        pytest.skip("this build of torch has no distributed package")
    processes = [runs._warm().Process(target=learn_on, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    assert runs.finish(processes) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for kind in KINDS:
        assert first[kind] == pytest.approx(learn(kind, slice(None), World(0, 1, 1, CPU)), rel=1e-4)
        assert first[kind]["labels"] != 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_learns_the_same_weights(tmp_path, kind):
    batches = [batch("labels"), batch("masks")]
    step, other = step_with(kind), step_with(kind)
    for number in range(2):
        step(batches, number)
    folder = {"path": tmp_path, "config": "{seed: 0}", "world": step.world}
    RunFolder(resume=False, **folder).save_last(step, RunState(step=2))
    RunFolder(resume=True, **folder).resume(other)
    for one in (step, other):
        one(batches, 2)
    assert all(torch.equal(a, b) for a, b in zip(state_of(step), state_of(other)))
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    content["training"]["loss_weights"].popitem()
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(DensekitError, match="of the loss weights is missing or does not fit"):
        RunFolder(resume=True, **folder).resume(other)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_from_the_device(kind):
    step = step_with(kind)
    parts = [torch.ones((), requires_grad=True) * step.model.backbone.stages[-1].weight.sum() for _ in HEADS]
    losses = dict(zip(HEADS, parts))

    def learn():
        step.weights.begin()
        step.weights.observe(losses, step.scaler.factor)
        step.weights.update({k: v.detach() for k, v in losses.items()}, step.scaler.factor, torch.zeros(()))
        step.weights.learned()

    assert not operators(learn) & READING


def test_averaged_weights_and_a_layer_that_a_head_does_not_see():
    step = step_with("gradnorm")
    step.average = AveragedModel(step.model, 0.9)
    assert not any(p._backward_hooks for p in step.average.model.parameters())
    head = step.model.heads["masks"]
    head.losses = lambda maps, batch: {"loss": maps[0].square().mean()}
    with pytest.raises(DensekitError, match="which masks does not look at; take uncertainty or fixed weights"):
        step([both_in_one()], 0)
    with pytest.raises(DensekitError, match="which masks does not look at"):
        step([batch("labels"), batch("masks")], 0)
