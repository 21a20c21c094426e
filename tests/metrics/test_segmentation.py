"""Segmentation numbers against plain definitions and the peers; conventions; ranks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from densekit.engine.plan import METRICS
from densekit.metrics.segmentation import SegmentationMetric
from densekit.show.report import undefined
from densekit.types import IGNORE, Batch, Classes, DensekitError, Segmentation

CLASSES = Classes(("sky", "road", "car", "bus"), (7, 3, 200, 1))


def make_batch(truth, ids=None):
    count = len(truth)
    sizes = torch.tensor([list(t.shape[-2:]) for t in truth])
    return Batch(
        images=torch.zeros(count, 3, 4, 4, dtype=torch.uint8),
        sizes=sizes,
        original_sizes=sizes,
        ids=ids or [f"{i}.png" for i in range(count)],
        seeds=torch.zeros(count, dtype=torch.int64),
        truth=truth,
    )


def blobs(seed, size=(40, 60), classes=4, ignored=True):
    """Smooth regions, so that boundaries mean something."""
    generator = np.random.default_rng(seed)
    noise = [cv2.GaussianBlur(generator.normal(size=size), (0, 0), 4) for _ in range(classes)]
    labels = np.argmax(noise, 0).astype(np.uint8)
    if ignored:
        labels[5:12, 8:30] = IGNORE
    return torch.from_numpy(labels)


def to_ids(labels, classes=CLASSES):
    return torch.tensor(classes.ids)[labels.long()]


def measure(found, truth, classes=CLASSES, **options):
    metric = SegmentationMetric(classes, **options)
    masks = [to_ids(f, classes) if f.dim() == 2 else f for f in found]
    metric.update(Segmentation([], masks), make_batch(truth))
    return metric


def test_numbers_equal_their_definitions_over_all_pixels_that_count():
    truth, found = [blobs(1), blobs(2, (30, 30))], [blobs(3, ignored=False), blobs(4, (30, 30), 3, ignored=False)]
    numbers = measure(found, truth).compute()
    t = np.concatenate([x.numpy().ravel() for x in truth])
    f = np.concatenate([x.numpy().ravel() for x in found])[t != IGNORE]
    t = t[t != IGNORE]
    for label, name in enumerate(CLASSES.names):
        hit, either = ((t == label) & (f == label)).sum(), ((t == label) | (f == label)).sum()
        row = numbers["per_class"][name]
        assert row["IoU"] == pytest.approx(hit / either)
        assert row["dice"] == pytest.approx(2 * hit / ((t == label).sum() + (f == label).sum()))
        assert row["accuracy"] == pytest.approx(hit / (t == label).sum())
        assert row["precision"] == pytest.approx(hit / (f == label).sum())
        assert row["pixels"] == (t == label).sum()
        assert numbers["confusion"][label] == [int(((t == label) & (f == k)).sum()) for k in range(4)]
    assert numbers["mIoU"] == pytest.approx(np.mean([r["IoU"] for r in numbers["per_class"].values()]))
    assert numbers["pixel_accuracy"] == pytest.approx((t == f).mean())
    assert numbers["images"] == 2


def test_iou_and_dice_equal_smps():
    truth, found = blobs(1), blobs(3, ignored=False)
    stats = smp.metrics.get_stats(found[None].long(), truth[None].long(), "multiclass", IGNORE, num_classes=4)
    numbers = measure([found], [truth]).compute()
    # smp means over classes with the images summed first, as here.
    assert numbers["mIoU"] == pytest.approx(float(smp.metrics.iou_score(*stats, reduction="macro")), abs=1e-6)
    assert numbers["dice"] == pytest.approx(float(smp.metrics.f1_score(*stats, reduction="macro")), abs=1e-6)


def test_classes_that_neither_occur_nor_are_predicted_do_not_count():
    truth = torch.zeros(8, 8, dtype=torch.uint8)
    found = truth.clone()
    found[0, 0] = 2
    numbers = measure([found], [truth]).compute()
    assert numbers["per_class"]["bus"]["IoU"] is None
    assert numbers["per_class"]["car"]["IoU"] == 0
    assert numbers["mIoU"] == pytest.approx((63 / 64 + 0) / 2)


def test_ignored_pixels_change_nothing():
    truth, found = blobs(1), blobs(3, ignored=False)
    other = found.clone()
    other[truth == IGNORE] = (other[truth == IGNORE] + 1) % 4
    assert measure([found], [truth]).compute() == measure([other], [truth]).compute()


def reference_boundary(mask):
    """The procedure of the paper's reference code: erode by a 3x3 square as often as the band is wide."""
    height, width = mask.shape
    steps = max(1, round(0.02 * np.sqrt(height**2 + width**2)))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return mask & ~cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps)[1:-1, 1:-1].astype(bool)


@pytest.mark.parametrize("size", [(40, 60), (150, 130), (3, 5), (1, 1)])
def test_boundary_iou_equals_the_papers_procedure(size):
    truth, found = blobs(1, size, ignored=False), blobs(2, size, ignored=False)
    numbers = measure([found], [truth]).compute()
    ious = []
    for label, name in enumerate(CLASSES.names):
        a, b = (reference_boundary(x.numpy() == label) for x in (truth, found))
        want = (a & b).sum() / (a | b).sum() if (a | b).any() else None
        assert numbers["per_class"][name]["boundary_IoU"] == pytest.approx(want), name
        ious += [] if want is None else [want]
    assert numbers["boundary_mIoU"] == pytest.approx(np.mean(ious))


def test_boundary_iou_of_layers_equals_the_papers_procedure():
    truth = torch.stack([blobs(s, classes=2, ignored=False) for s in range(4)])
    found = torch.stack([blobs(s + 9, classes=2, ignored=False) for s in range(4)])
    numbers = measure([found], [truth]).compute()
    for label, name in enumerate(CLASSES.names):
        a, b = (reference_boundary(x[label].numpy() == 1) for x in (truth, found))
        assert numbers["per_class"][name]["boundary_IoU"] == pytest.approx((a & b).sum() / (a | b).sum())


def test_a_perfect_prediction_is_one_everywhere():
    numbers = measure([blobs(1, ignored=False)], [blobs(1)]).compute()
    for name in ("mIoU", "dice", "mean_accuracy", "pixel_accuracy", "boundary_mIoU", "mIoU_per_image"):
        assert numbers[name] == 1.0, name


def test_multi_label_measures_each_layer_against_its_own_truth():
    truth = torch.stack([blobs(s, classes=2) for s in range(4)])
    found = torch.stack([blobs(s + 9, classes=2, ignored=False) for s in range(4)])
    numbers = measure([found], [truth]).compute()
    assert "confusion" not in numbers
    for label, name in enumerate(CLASSES.names):
        kept = truth[label] != IGNORE
        t, f = truth[label][kept] == 1, found[label][kept] == 1
        assert numbers["per_class"][name]["IoU"] == pytest.approx(float((t & f).sum() / (t | f).sum()))
    assert numbers["pixel_accuracy"] == pytest.approx(float((truth == found)[truth != IGNORE].float().mean()))


def test_numbers_of_an_image_are_those_of_a_set_of_that_image():
    truth, found = [blobs(1), blobs(2)], [blobs(3, ignored=False), blobs(4, ignored=False)]
    own = measure(found, truth).per_image()
    for index in range(2):
        alone = measure(found[index : index + 1], truth[index : index + 1]).compute()
        assert own[f"{index}.png"] == {k: alone[k] for k in own[f"{index}.png"]}
    mean = sum(row["mIoU"] for row in own.values()) / 2
    assert measure(found, truth).compute()["mIoU_per_image"] == pytest.approx(mean)


def test_ranks_together_give_the_numbers_of_one_and_each_image_counts_once():
    truth = [blobs(i) for i in range(5)]
    found = [blobs(i + 9, ignored=False) for i in range(5)]
    ids = list(range(5))
    whole = measure(found, truth)
    ranks = []
    for chosen in ([0, 2, 4], [1, 3, 0], []):
        rank = SegmentationMetric(CLASSES)
        batch = make_batch([truth[i] for i in chosen], [f"{ids[i]}.png" for i in chosen]) if chosen else None
        if batch is not None:
            rank.update(Segmentation([], [to_ids(found[i]) for i in chosen]), batch)
        ranks.append(rank)
    for rank in ranks:
        rank.merge([r.state() for r in ranks])
        assert rank.compute() == whole.compute()


def test_the_first_rank_that_saw_an_image_wins():
    first, second = measure([blobs(3, ignored=False)], [blobs(1)]), measure([blobs(5, ignored=False)], [blobs(1)])
    want = first.compute()
    second.merge([first.state(), second.state()])
    assert second.compute() == want


def test_an_image_that_is_wholly_ignored_has_no_numbers_and_changes_none():
    truth, found = blobs(1), blobs(3, ignored=False)
    metric = measure([found, found], [truth, torch.full_like(truth, IGNORE)])
    assert metric.per_image()["1.png"]["mIoU"] is None
    alone = measure([found], [truth]).compute()
    both = metric.compute()
    assert {k: v for k, v in both.items() if k != "images"} == {k: v for k, v in alone.items() if k != "images"}


def test_boundary_can_be_left_out():
    numbers = measure([blobs(3, ignored=False)], [blobs(1)], boundary=False).compute()
    assert "boundary_mIoU" not in numbers
    assert "boundary_IoU" not in numbers["per_class"]["sky"]


def test_nothing_to_evaluate_is_said_in_one_line():
    with pytest.raises(DensekitError, match="no image"):
        SegmentationMetric(CLASSES).compute()
    with pytest.raises(DensekitError, match="no masks"):
        SegmentationMetric(CLASSES).update(Segmentation([], []), without_truth())
    with pytest.raises(DensekitError, match=r"0\.png"):
        measure([blobs(1, (20, 20), ignored=False)], [blobs(1)])


def test_where_every_pixel_is_ignored_no_number_is_defined():
    nothing = torch.full((40, 60), IGNORE, dtype=torch.uint8)
    numbers = measure([blobs(1, ignored=False)], [nothing]).compute()
    assert numbers["images"] == 1
    assert {numbers[name] for name in METRICS["segmentation"]} == {None}
    assert undefined("segmentation", numbers) == "mIoU is not defined: the 1 images have no pixel that is not ignored"
    assert undefined("segmentation", measure([blobs(3, ignored=False)], [blobs(1)]).compute()) is None


def without_truth():
    batch = make_batch([blobs(1)])
    batch.truth = None
    return batch
