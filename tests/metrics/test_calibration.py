"""Temperatures against data made with known ones, errors against the definition, cuts against a search by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densekit.calibration import Calibration, of_labels, tempered, tempered_chances
from densekit.errors import DensekitError
from densekit.metrics.calibration import (
    ChanceMetric,
    Chances,
    Judged,
    calibration_error,
    choose_cut,
    fit_boxes,
    fit_chances,
    reliability,
    temperature_of,
)
from densekit.types import IGNORE, Classification, Segmentation
from tests.metrics import test_accuracy as classified
from tests.metrics.test_segmentation import make_batch


def overconfident(count, temperature, seed=0):
    """Scores whose logits are so many times those of the chance to be right."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, count)
    right = random.random(count) < 1 / (1 + np.exp(-logits))
    order = np.argsort(-logits, kind="stable")
    scores = 1 / (1 + np.exp(-temperature * logits))
    return Judged(scores[order], right[order], random.integers(0, 50, count))


def chances_of(count, temperature, layers=False):
    random = np.random.default_rng(1)
    logits = random.normal(0, 1.5, (count, 4))
    images = random.integers(0, 50, count)
    if layers:
        labels = (random.random((count, 4)) < 1 / (1 + np.exp(-logits))).astype(np.int64)
        return Chances(1 / (1 + np.exp(-temperature * logits)), labels, images)
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (honest.cumsum(1) < random.random((count, 1))).sum(1)
    sharp = np.exp(temperature * logits)
    return Chances(sharp / sharp.sum(1, keepdims=True), labels, images)


def error_by_definition(scores, right):
    bins = np.minimum((scores * 10).astype(int), 9)
    gaps = [abs(scores[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    return sum(gaps)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_known_temperature_is_found_and_the_error_falls(temperature):
    judged = overconfident(20_000, temperature)
    assert temperature_of(judged) == pytest.approx(temperature, rel=0.05)
    fitted = fit_boxes([judged, overconfident(20_000, 1.0, seed=1)])
    assert fitted.temperatures == pytest.approx([temperature, 1.0], rel=0.05)
    before, after = calibration_error(fitted.before), calibration_error(fitted.after)
    assert before == pytest.approx(error_by_definition(fitted.before.scores, fitted.before.right))
    assert after < 0.02 < before


@pytest.mark.parametrize("layers", [False, True])
def test_a_known_temperature_of_classes_and_of_layers_is_found(layers):
    fitted = fit_chances(chances_of(10_000, 2.0, layers))
    assert fitted.temperatures == pytest.approx([2.0], rel=0.05)
    assert calibration_error(fitted.after) < 0.02 < calibration_error(fitted.before)


def test_bins_of_the_diagram_hold_all_scores():
    judged = overconfident(500, 2.0)
    rows = reliability(judged)
    assert sum(row["count"] for row in rows) == 500
    last = judged.scores >= 0.9
    assert rows[-1]["avg_confidence"] == pytest.approx(judged.scores[last].mean())
    assert rows[-1]["avg_accuracy"] == pytest.approx(judged.right[last].mean())


def test_with_hardly_any_mistake_the_temperature_stays_one():
    judged = overconfident(500, 2.0)
    assert temperature_of(judged._replace(right=np.ones(500, np.bool_))) == 1.0
    assert fit_boxes([Judged(np.zeros(0), np.zeros(0, np.bool_), np.zeros(0, np.int64))]).temperatures == [1.0]


def test_temperatures_keep_the_order_of_scores_and_the_best_class():
    scores = np.array([0.999999, 0.5, 0.2, 0.0, 1.0], np.float32)
    read = tempered(scores, 3.0)
    assert read.dtype == np.float32
    assert np.isfinite(read).all()
    assert (np.argsort(read) == np.argsort(scores)).all()
    assert read[1] == 0.5
    p = torch.softmax(torch.randn(5, 7) * 4, 0)
    expected = torch.softmax(p.log() / 2.5, 0)
    np.testing.assert_allclose(tempered_chances(p.numpy(), 2.5), expected, rtol=1e-5)


def test_cuts_are_the_best_of_all_that_there_are():
    judged, objects = overconfident(300, 1.5), 200
    scores = sorted(set(judged.scores), reverse=True)

    def at(score):
        kept = judged.scores >= score
        return judged.right[kept].mean(), judged.right[kept].sum() / objects

    points = [(*at(score), score) for score in scores]
    cut = choose_cut(judged, objects)
    f1 = [2 * p * r / max(p + r, 1e-12) for p, r, _ in points]
    assert (cut.precision, cut.recall) == pytest.approx(points[int(np.argmax(f1))][:2])
    assert at(cut.score) == pytest.approx((cut.precision, cut.recall))
    cut = choose_cut(judged, objects, precision=0.8)
    assert cut.recall == max(r for p, r, _ in points if p >= 0.8)
    assert at(cut.score)[0] == cut.precision >= 0.8
    cut = choose_cut(judged, objects, recall=0.5)
    assert cut.score > 0
    assert at(cut.score)[1] == cut.recall == min(r for _, r, _ in points if r >= 0.5)


def test_what_cant_be_reached_is_said_and_the_nearest_is_taken():
    judged = Judged(np.array([0.9, 0.8, 0.8, 0.1]), np.array([False, True, True, False]), np.arange(4))
    cut = choose_cut(judged, 5, precision=0.95)
    assert (cut.precision, cut.reached) == (pytest.approx(2 / 3), False)
    assert 0.1 < cut.score < 0.8
    cut = choose_cut(judged, 5, recall=0.9)
    assert (cut.recall, cut.reached) == (pytest.approx(0.4), False)
    assert cut.score < 0.1
    assert choose_cut(judged.of(judged.scores > 1), 5) == (0.5, 0, 0, False)
    assert choose_cut(judged, 0).reached is False


def test_pixels_are_drawn_from_those_that_are_not_ignored_and_are_the_same_each_time():
    truth = torch.zeros(8, 10, dtype=torch.uint8)
    truth[:2], truth[4:] = IGNORE, 1
    p = torch.rand(2, 8, 10)
    found = Segmentation([p], [truth.long()])
    metrics = [ChanceMetric(30), ChanceMetric(30)]
    for metric in metrics:
        metric.update(found, make_batch([truth]))
        metric.update(found, make_batch([truth]))  # once is enough
    first, second = (metric.chances() for metric in metrics)
    assert len(first.labels) == 30
    assert set(first.labels) <= {0, 1}
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    known = {tuple(row) for row in p.reshape(2, -1).T.double().numpy()}
    assert all(tuple(row) in known for row in first.chances)


def test_probabilities_of_images_are_kept_with_their_labels():
    metric = ChanceMetric(5)
    p = torch.softmax(torch.randn(3, 7), 1)
    metric.update(Classification(p, p.argmax(1)), classified.batch([4, 0, 6]))
    assert metric.chances().labels.tolist() == [4, 0, 6]
    np.testing.assert_array_equal(metric.chances().chances, p.double().numpy())


def test_a_calibration_survives_its_checkpoint_and_a_damaged_one_is_one_line():
    made = Calibration((1.5, 0.5), (0.2, 0.4), "best F1", "val", 0.2, 0.1)
    assert Calibration.held_in({"calibration": made.content()}, 2, "x.pt") == made
    assert Calibration.held_in({}, 2, "x.pt") is None
    assert of_labels(made.temperatures, [1, 0, 1]).tolist() == [0.5, 1.5, 0.5]
    for wrong in ({"temperatures": [1.0]}, 3, {**made.content(), "temperatures": [0.0, 1.0]}):
        with pytest.raises(
            DensekitError, match=r"x.pt holds no valid calibration .*run tools/calibrate.py on it again"
        ):
            Calibration.held_in({"calibration": wrong}, 2, "x.pt")
    with pytest.raises(DensekitError, match="2 temperatures and 2 cuts of 3"):
        Calibration.held_in({"calibration": made.content()}, 3, "x.pt")
