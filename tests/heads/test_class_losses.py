"""The second stage's losses for many classes, against the papers' formulas by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import yaml

from densekit import build
from densekit.config import dump, parse
from densekit.engine.distributed import join
from densekit.heads.faster_rcnn.classes import Federated, RegionClasses, Seesaw
from densekit.ops.sampling import weighted_choice
from densekit.registry import HEADS
from densekit.types import BoxTargets, DensekitError
from tests.data.test_sampling import shapes  # noqa: F401  # a fixture
from tests.heads.test_faster_rcnn import LEVELS, SMALL, batch_of, maps_of


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def samples(classes: int, seed: int = 0):
    """Logits [2, 7, K + 1], labels with nothing, classes and padding."""
    random = np.random.default_rng(seed)
    logits = torch.tensor(random.normal(0, 2, (2, 7, classes + 1)), dtype=torch.float32)
    labels = torch.tensor(random.integers(0, classes + 1, (2, 7)))
    valid = torch.tensor(random.random((2, 7)) < 0.8)
    return logits, labels, valid


def test_the_federated_loss_is_the_cross_entropy_of_the_taught_sigmoids():
    logits, labels, valid = samples(6)
    taught = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 1]], dtype=torch.bool)
    expected = 0.0
    for b, s, k in itertools.product(range(2), range(7), range(6)):
        if valid[b, s] and taught[b, k]:
            p = sigmoid(float(logits[b, s, k + 1]))
            expected -= math.log(p if labels[b, s] == k + 1 else 1 - p)
    rule = RegionClasses("federated", num_classes=6)
    assert float(rule.loss(logits, labels, valid, taught)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(rule.probabilities(logits), logits.sigmoid(), rtol=1e-6)


@pytest.mark.parametrize(("p", "q"), [(0.8, 2.0), (0.0, 2.0), (0.5, 0.0)])
def test_the_seesaw_loss_is_that_of_the_paper_with_an_objectness_of_its_own(p, q):
    counts = [1000, 3, 40, 0, 40]
    logits, labels, valid = samples(5)
    expected = 0.0
    for b, s in itertools.product(range(2), range(7)):
        if not valid[b, s]:
            continue
        nothing, label = sigmoid(float(logits[b, s, 0])), int(labels[b, s]) - 1
        expected -= math.log(nothing if label < 0 else 1 - nothing)
        if label < 0:
            continue
        z = [float(v) for v in logits[b, s, 1:]]
        likely = [math.exp(v) / sum(map(math.exp, z)) for v in z]
        total = math.exp(z[label])
        for j in set(range(5)) - {label}:
            own, other = max(counts[label], 1), max(counts[j], 1)
            mitigation = (other / own) ** p if own > other else 1
            ratio = likely[j] / max(likely[label], 0.01)  # the reference code's floor
            compensation = ratio**q if ratio > 1 else 1
            total += mitigation * compensation * math.exp(z[j])
        expected -= math.log(math.exp(z[label]) / total)
    rule = RegionClasses("seesaw", counts, num_classes=5, seesaw=Seesaw(p, q))
    assert float(rule.loss(logits, labels, valid, None)) == pytest.approx(expected, rel=1e-5)
    scores = rule.probabilities(logits)
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(scores[..., 1:].sum(-1), 1 - logits[..., 0].sigmoid(), rtol=1e-5)


def test_things_are_drawn_one_after_another_by_their_weights():
    weights = torch.tensor([1.0, 4.0, 2.0, 0.0, 1.0])
    seeds = torch.arange(20000)
    always = torch.zeros(20000, 5, dtype=torch.bool)
    always[:, 4] = True
    chosen = weighted_choice(weights, always, seeds, count=3, stream=1)
    assert chosen[:, 4].all()
    assert not chosen[:, 3].any()
    assert (chosen.sum(1) == 3).all()
    w = {0: 1.0, 1: 4.0, 2: 2.0}  # two of these are drawn, without replacement
    total = sum(w.values())
    for k in w:
        chance = sum(w[a] / total * w[b] / (total - w[a]) for a, b in itertools.permutations(w, 2) if k in (a, b))
        assert float(chosen[:, k].float().mean()) == pytest.approx(chance, abs=4 * 0.5 / math.sqrt(20000))


def targets(labels: list[list[int]], valid: list[list[bool]]) -> BoxTargets:
    names, there = torch.tensor(labels), torch.tensor(valid)
    return BoxTargets(torch.zeros(*names.shape, 4), names, torch.zeros_like(there), there)


def test_an_image_teaches_its_own_classes_and_drawn_ones_whatever_its_neighbours():
    counts = [10.0] * 5 + [0.0]
    rule = RegionClasses("federated", counts, num_classes=6, federated=Federated(classes=3))
    both = targets([[1, 1, 5, 0], [0, 1, 2, 3]], [[True, True, True, False], [True] * 4])
    seeds = torch.tensor([5, 9])
    taught = rule.taught(both, seeds)
    assert taught[0, [1, 5]].all()
    assert taught[0].sum() == 3
    assert taught[1].tolist() == [True] * 4 + [False] * 2, "all that the image has, also more than three"
    alone = rule.taught(targets([[1, 5, 1]], [[True] * 3]), seeds[:1])
    assert alone[0].tolist() == taught[0].tolist()
    draws = {tuple(rule.taught(both, seeds + n)[0].tolist()) for n in range(20)}
    assert len(draws) == 4, "one of the four other classes that occur, each in some draw"


@pytest.mark.parametrize("kind", ["federated", "seesaw"])
@pytest.mark.parametrize("head", ["faster_rcnn", "cascade_rcnn"])
def test_heads_of_1203_classes_learn_and_predict(kind, head):
    torch.manual_seed(0)
    options = SMALL | {"class_loss": kind, "class_counts": tuple(range(1203)), "score_threshold": 1e-6}
    built, batch = HEADS.build(head, options, LEVELS, num_classes=1203), batch_of()
    losses = built.losses(maps_of(), batch)
    assert all(loss.isfinite() for loss in losses.values())
    if kind == "federated":  # sigmoids of 0.01 a class: 50 an image, and the share of the objects' own
        assert 0.3 < losses["class"].item() < 1.0
    losses["class"].backward()
    learned = built.roi.scores.weight.grad.abs().sum(1) > 0
    assert (50 <= int(learned.sum()) <= 100 and not learned[0]) if kind == "federated" else learned.all()
    with torch.no_grad():
        found = built.predict(maps_of(), batch)
    assert found.valid.any()
    assert found.labels.max() > 100
    assert set(built.state_dict()) == set(HEADS.build(head, SMALL, LEVELS, num_classes=1203).state_dict())


def config(shapes, kind: str, **data):  # noqa: F811
    files = {"name": "coco", "images": str(shapes / "images"), "annotations": str(shapes / "annotations/train.json")}
    model = {"backbone": {"name": "resnet18"}, "heads": {"boxes": {"name": "mask_rcnn", "class_loss": kind}}}
    run = {"epochs": 1, "optimizer": {"lr": 0.1}}
    return parse({"model": model, "data": {"train": files, **data}, "train": run}, "c.yaml")


def test_counts_come_from_the_training_set_and_stay_in_the_config(shapes):  # noqa: F811
    for kind, data in (
        ("federated", {"sampling": {"name": "repeat_factor", "threshold": 1.0}}),
        ("seesaw", {}),
        ("seesaw", {"sampling": {"name": "repeat_factor", "threshold": 1.0}}),
    ):
        given = config(shapes, kind, **data)
        train_set = build.dataset(given, "train", training=True)
        settled, lines = build.settle(given, join("cpu"), train_set, None)
        file = train_set.file
        rows = [(int(o), int(k)) for o, k, c in zip(file.owners, file.labels, file.crowd) if not c]
        repeats = build.repeats(given, train_set) if kind == "seesaw" and data else np.ones(len(train_set))
        pairs = set(rows) if kind == "federated" else rows
        expected = [round(sum(repeats[o] for o, own in pairs if own == k)) for k in range(4)]
        counts = settled.model.heads["boxes"].options["class_counts"]
        assert counts == expected
        assert f"model.heads.boxes.class_counts: {'images' if kind == 'federated' else 'objects'}" in lines[-1]
        again = parse(yaml.safe_load(dump(settled)), "config.yaml")
        assert build.settle(again, join("cpu"), train_set, None)[0] == again, "a resumed run counts nothing anew"
    part = again.model.heads["boxes"]
    head = HEADS.build(part.name, part.options | SMALL, LEVELS, num_classes=4)
    assert head.roi.classes.counts.tolist() == expected
    plain = config(shapes, "focal")
    assert build.settle(plain, join("cpu"), train_set, None)[0].model == plain.model


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_counts": (1.0, 2.0)}, "class_counts has 2 numbers for 3 classes; give one a class"),
        ({"class_counts": (1.0, 2.0, -1.0)}, "0 or more"),
        ({"federated": {"classes": 0}}, r"federated.classes: .* not 0"),
        ({"seesaw": {"mitigaton": 1}}, r"seesaw.mitigaton: there is no such option; .*mitigation"),
        ({"class_loss": "seasaw"}, "class_loss: .*'seesaw'"),
    ],
)
def test_numbers_that_do_not_fit_are_named(options, words):
    with pytest.raises(DensekitError, match=words):
        HEADS.build("faster_rcnn", SMALL | options, LEVELS, num_classes=3)
