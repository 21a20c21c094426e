"""Top-1, top-5 and accuracies per class against numbers counted by hand."""

from __future__ import annotations

import pytest
import torch

from densekit.errors import DensekitError
from densekit.metrics.accuracy import AccuracyMetric
from densekit.types import Batch, Classes, Classification, Targets

CLASSES = Classes(tuple("abcdefg"), tuple(range(10, 17)))


def batch(labels: list[int], first: int = 0) -> Batch:
    count = len(labels)
    sizes = torch.ones(count, 2, dtype=torch.int64)
    ids = list(range(first, first + count))
    zeros = torch.zeros(count, dtype=torch.int64)
    return Batch(torch.zeros(count, 1, 1, 1), sizes, sizes, ids, zeros, Targets(labels=torch.tensor(labels)))


def predictions(ranked: list[list[int]]) -> Classification:
    """Probabilities that rank the labels in the orders given."""
    p = torch.zeros(len(ranked), len(CLASSES))
    for row, order in zip(p, ranked):
        row[order] = torch.arange(len(order), 0, -1).float()
    p = p / p.sum(1, keepdim=True)
    return Classification(p, torch.tensor(CLASSES.ids)[p.argmax(1)])


def test_numbers_counted_by_hand():
    metric = AccuracyMetric(CLASSES)
    metric.update(predictions([[0, 1, 2, 3, 4, 5, 6], [1, 0, 2, 3, 4, 5, 6]]), batch([0, 0]))
    metric.update(predictions([[0, 2, 3, 4, 5, 1, 6], [2, 3, 4, 5, 1, 0, 6]]), batch([1, 1], first=2))
    numbers = metric.compute()
    assert numbers["top1"] == 0.25
    assert numbers["top5"] == 0.75
    assert numbers["mean_accuracy"] == 0.25
    assert numbers["images"] == 4
    assert numbers["per_class"]["a"] == {"accuracy": 0.5, "images": 2}
    assert numbers["per_class"]["b"] == {"accuracy": 0.0, "images": 2}
    assert numbers["per_class"]["c"] == {"accuracy": None, "images": 0}
    assert numbers["confusion"][0][:3] == [1, 1, 0]
    assert numbers["confusion"][1][:3] == [1, 0, 1]


def test_equal_probabilities_are_ranked_by_label_as_argmax_does():
    metric = AccuracyMetric(CLASSES)
    metric.update(Classification(torch.full((7, 7), 1 / 7), torch.full((7,), 10)), batch(list(range(7))))
    assert metric.compute()["top1"] == pytest.approx(1 / 7)
    assert metric.compute()["top5"] == pytest.approx(5 / 7)


def test_values_that_are_not_finite_are_no_hit():
    metric = AccuracyMetric(CLASSES)
    metric.update(Classification(torch.full((1, 7), float("nan")), torch.tensor([10])), batch([6]))
    assert metric.compute()["top5"] == 0.0


def test_ranks_are_merged_and_each_image_counts_once():
    parts = [AccuracyMetric(CLASSES) for _ in range(2)]
    parts[0].update(predictions([[0], [1]]), batch([0, 0]))
    parts[1].update(predictions([[0], [2]]), batch([0, 2], first=1))
    merged = AccuracyMetric(CLASSES)
    merged.merge([part.state() for part in parts])
    numbers = merged.compute()
    assert numbers["images"] == 3
    # Image 1 was wrong on the first rank, which wins.
    assert numbers["top1"] == pytest.approx(2 / 3)


def test_an_image_that_comes_twice_counts_once():
    metric = AccuracyMetric(CLASSES)
    for _ in range(2):
        metric.update(predictions([[0]]), batch([0]))
    assert metric.compute()["images"] == 1


def test_nothing_to_evaluate_is_told():
    with pytest.raises(DensekitError, match="there is no image to evaluate"):
        AccuracyMetric(CLASSES).compute()
    plain = batch([0])
    plain.targets = None
    with pytest.raises(DensekitError, match="has no class labels"):
        AccuracyMetric(CLASSES).update(predictions([[0]]), plain)
