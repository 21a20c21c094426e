"""Sample pictures: what is true beside what was predicted, and something to see where scores are low."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densekit.infer.results import result_of
from densekit.infer.samples import panels, seen, shown_boxes
from densekit.show import drawing
from densekit.types import IGNORE, Classes, Classification, Detections, Sample, Segmentation

CLASSES = Classes(("cat", "dog"), (7, 3))
GREY = np.full((240, 240, 3), 100, np.uint8)


def sample(**annotations):
    return Sample(GREY, id="a", original_size=(240, 240), seed=0, **annotations)


def panels_of(sample, predictions):
    return panels(sample, result_of(seen(sample), CLASSES, predictions, 0))


def coloured(picture):
    """[H, W] pixels that are not grey, below the caption."""
    return (picture != picture[..., :1]).any(2)


def detections(boxes, scores, labels):
    valid = torch.ones(1, len(boxes), dtype=torch.bool)
    return Detections(torch.tensor([boxes]).float(), torch.tensor([scores]), torch.tensor([labels]), valid)


def test_boxes_stand_where_they_are_true_and_where_they_were_predicted():
    true = sample(boxes=np.array([[20, 30, 80, 90]], np.float32), labels=np.array([1]), crowd=np.array([False]))
    (left, truth), (right, found) = panels_of(true, detections([[120.0, 130, 200, 220]], [0.9], [7]))
    assert left == "truth"
    assert right == "prediction: 1 with a score of at least 0.5"
    rows, columns = np.nonzero(coloured(truth))
    assert (columns.min(), rows.max()) == (20, 90)
    rows, columns = np.nonzero(coloured(found))
    assert (columns.min(), rows.max()) == (120, 220)


def test_the_best_few_are_drawn_where_no_score_is_high_enough():
    boxes = [[20.0 * i, 20 * i, 20 * i + 30, 20 * i + 30] for i in range(1, 6)]
    (_, found) = panels_of(sample(), detections(boxes, [0.4, 0.3, 0.2, 0.1, 0.05], [7] * 5))
    assert found[0] == "prediction: none reaches 0.5, the best 3 from 0.40 down"
    assert coloured(found[1])[:90, :90].any()
    assert not coloured(found[1])[106:].any()  # the words of the third may stand below it, the fourth would end at 110
    (_, empty) = panels_of(sample(), detections([[0.0, 0, 1, 1]], [0.4], [7]))
    assert "the best 1 from" in empty[0]
    assert shown_boxes(np.array([0.9, 0.5, 0.4], np.float32)).tolist() == [True, True, False]
    none = Detections(
        torch.zeros(1, 0, 4), torch.zeros(1, 0), torch.zeros(1, 0, dtype=torch.int64), torch.ones(1, 0) > 0
    )
    assert panels_of(sample(), none)[1][0] == "prediction: no box"


@pytest.mark.parametrize("layers", [False, True])
def test_masks_are_drawn_in_labels_and_in_the_data_sets_ids_alike(layers):
    mask = np.zeros((240, 240), np.uint8)
    mask[:100], mask[100:200] = 1, IGNORE
    ids = torch.tensor([7, 3])[torch.from_numpy(mask).clamp(max=1).long()]
    if layers:
        mask = np.stack([mask == 0, mask == 1]).astype(np.uint8)
        ids = torch.from_numpy(mask)
    (_, truth), (_, found) = panels_of(sample(mask=mask), Segmentation([], [ids]))
    assert (truth[:99] == found[:99]).all()
    assert coloured(truth)[:99].all()
    assert not coloured(truth)[102:198].any() or layers


def test_small_images_are_enlarged_without_moving_the_boxes():
    small = Sample(np.full((24, 24, 3), 100, np.uint8), id="a", original_size=(24, 24), seed=0)
    (_, (_, found)) = panels_of(small, detections([[12.0, 13, 20, 22]], [0.9], [7]))
    rows, columns = np.nonzero(coloured(found))
    assert found.shape == (240, 240, 3)
    assert (columns.min(), rows.max()) == (120, 220)


def test_classes_are_told_in_words():
    predictions = Classification(torch.tensor([[0.25, 0.75]]), torch.tensor([3]))
    assert panels_of(sample(target=0), predictions)[0][0] == "truth: cat; prediction: dog 0.75"


def test_panels_stand_side_by_side_under_their_captions_on_one_line():
    white = np.zeros((50, 100, 3), np.uint8)
    picture = drawing.side_by_side([("truth", white), ("a caption that is longer than its picture is wide", white)])
    assert picture.shape[1] == 208
    assert (picture[-50:, :100] == 0).all()
    assert (picture[-50:, 108:] == 0).all()
    assert (picture[:, 100:108] == 255).all()


def test_names_in_other_letters_stay_distinct_where_opencv_draws_ascii_alone(monkeypatch):
    names = ["Zellk\u00f6rper", "\u7ec6\u80de", "\u6807\u5fd7", "cat", "c\u00e4t", "cat"]
    monkeypatch.setattr(drawing, "DRAWS_ANY_LETTER", False)
    found = drawing.drawable(names)
    assert found[:2] == ["Zellkorper", "#1"]
    assert len(set(found)) == len(names)
    assert all(word.isascii() for word in found)
    monkeypatch.setattr(drawing, "DRAWS_ANY_LETTER", True)
    assert drawing.drawable(names) == names
