"""Results of a head that finds masks: pixels, run lengths, label files and pictures, each read by another library."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from densekit.data.loading.batching import collate
from densekit.infer.label_files import labelme_text, yolo_text
from densekit.infer.results import Seen, result_of
from densekit.infer.samples import panels, seen
from densekit.ops.outlines import outlines
from densekit.show.batches import draw_batch
from densekit.show.drawing_masks import tinted
from densekit.types import Classes, Detections, Instance, Sample

CLASSES = Classes(("cat", "dog"), (7, 3))
SIZE = (40, 60)
BOXES = [[4.0, 6, 24, 26], [10.0, 10, 34, 30], [50.0, 2, 58, 12]]


def detections():
    """Three masks: a frame with a hole, its right half alone, and two parts; one box more is not valid."""
    cells = torch.zeros(1, 4, 8, 8)
    cells[0, 0] = 1
    cells[0, 0, 3:5, 3:5] = 0
    cells[0, 1, :, 4:] = 0.9
    cells[0, 2, :3] = cells[0, 2, 5:] = 1
    boxes = torch.tensor([[*BOXES, [0, 0, 9, 9]]])
    scores, labels = torch.tensor([[0.9, 0.8, 0.3, 0]]), torch.tensor([[7, 3, 7, 7]])
    return Detections(boxes, scores, labels, torch.tensor([[True, True, True, False]]), cells)


def result():
    image = Seen(5, Path("photo.png"), SIZE, lambda: np.full((*SIZE, 3), 100, np.uint8))
    return result_of(image, CLASSES, detections(), 0)


def rasterised(polygons, size=SIZE):
    return coco.decode(coco.merge(coco.frPyObjects(polygons, *size)))


def test_masks_run_lengths_and_coco_entries_are_the_same_pixels():
    found = result()
    masks = found.masks
    assert masks.shape == (3, *SIZE)
    assert masks.dtype == bool
    expected = np.zeros(SIZE, bool)
    expected[10:30, 22:34] = True
    expected[[10, 10, 29, 29], [22, 33, 22, 33]] = False  # two edges fade there
    np.testing.assert_array_equal(masks[1], expected)
    for mask, code, entry in zip(masks, found.rle, found.to_coco(), strict=True):
        np.testing.assert_array_equal(coco.decode(code), mask)
        assert entry["segmentation"] == code
        assert json.loads(json.dumps(entry)) == entry
    assert [entry["category_id"] for entry in found.to_coco()] == [7, 3, 7]


def test_masks_follow_their_boxes_where_some_are_chosen():
    found = result()
    np.testing.assert_array_equal(found.above(0.5).masks, found.masks[:2])
    assert found.at(np.zeros(3, bool)).masks.shape == (0, *SIZE)
    assert found.at(np.zeros(3, bool)).to_coco() == []


def test_a_head_that_finds_boxes_alone_gives_no_masks():
    plain = detections()
    plain.masks = None
    found = result_of(result().image, CLASSES, plain, 0)
    assert found.masks is None
    assert found.rle is None
    assert all("segmentation" not in entry for entry in found.to_coco())


def test_supervision_gets_the_masks(monkeypatch):
    kept = types.SimpleNamespace(Detections=lambda **given: given)
    monkeypatch.setitem(sys.modules, "supervision", kept)
    np.testing.assert_array_equal(result().to_supervision()["mask"], result().masks)


@pytest.mark.parametrize("seed", range(5))
def test_drawing_an_outline_gives_its_pixels_again(seed):
    random = np.random.default_rng(seed)
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    mask = np.zeros(SIZE, np.uint8)
    for _ in range(4):
        y, x, r = random.uniform(0, SIZE[0]), random.uniform(0, SIZE[1]), random.uniform(1, 9)
        mask |= (ys - y) ** 2 + (xs - x) ** 2 <= r * r
    mask[3, 50] = 1
    polygons = outlines(Instance(0, 0, mask))
    assert all(len(polygon) >= 6 for polygon in polygons)
    np.testing.assert_array_equal(rasterised(polygons), mask)
    moved = outlines(Instance(7, 2, mask[5:20, 3:30]))
    expected = np.zeros(SIZE, np.uint8)
    expected[2:17, 7:34] = mask[5:20, 3:30]
    np.testing.assert_array_equal(rasterised(moved) if moved else 0 * mask, expected)


def test_yolo_lines_are_the_outlines_a_line_a_part():
    found, filled = result(), result().masks.copy()
    filled[0, 8:24, 6:22] = True  # a polygon has no hole
    lines = [line.split() for line in yolo_text(found, Path("photo.txt")).splitlines()]
    assert [int(line[0]) for line in lines] == [0, 1, 0, 0]
    shapes = [(np.array(line[1:], float).reshape(-1, 2) * SIZE[::-1]).ravel().tolist() for line in lines]
    for mask, polygons in zip(filled, (shapes[:1], shapes[1:2], shapes[2:])):
        np.testing.assert_array_equal(rasterised(polygons), mask)


def test_labelme_polygons_are_the_outlines_and_parts_of_an_object_are_one_group(tmp_path):
    tree = json.loads(labelme_text(result(), tmp_path / "labelme/photo.json"))
    assert [s["label"] for s in tree["shapes"]] == ["cat", "dog", "cat", "cat"]
    assert {s["shape_type"] for s in tree["shapes"]} == {"polygon"}
    groups = [s["group_id"] for s in tree["shapes"]]
    assert groups[:2] == [None, None]
    assert groups[2] == groups[3] is not None
    dog = [v for point in tree["shapes"][1]["points"] for v in point]
    np.testing.assert_array_equal(rasterised([dog]), result().masks[1])


def test_an_object_of_which_no_pixel_is_left_is_a_rectangle_for_labelme_and_nothing_for_yolo(tmp_path):
    empty = detections()
    empty.masks[:] = 0
    found = result_of(result().image, CLASSES, empty, 0)
    shapes = json.loads(labelme_text(found, tmp_path / "a.json"))["shapes"]
    assert [s["shape_type"] for s in shapes] == ["rectangle"] * 3
    assert shapes[0]["points"] == [[4, 6], [24, 26]]
    assert yolo_text(found, Path("a.txt")) == ""
    assert [coco.area(code) for code in found.rle] == [0, 0, 0]
    found.draw(0)


# Pictures.


def test_objects_of_one_class_have_shades_of_their_own_inside_their_masks_alone():
    grey = np.full((*SIZE, 3), 100, np.uint8)
    one = np.ones((10, 12), np.uint8)
    picture = tinted(grey, [Instance(2, 3, one), Instance(20, 3, one), Instance(40, 20, one)], [0, 0, 1])
    changed = (picture != 100).any(2)
    expected = np.zeros(SIZE, bool)
    for x, y in ((2, 3), (20, 3), (40, 20)):
        expected[y : y + 10, x : x + 12] = True
    np.testing.assert_array_equal(changed, expected)
    assert len({tuple(picture[y + 5, x + 5]) for x, y in ((2, 3), (20, 3), (40, 20))}) == 3
    enlarged = tinted(grey.repeat(3, 0).repeat(3, 1), [Instance(2, 3, one)], [0], scale=3)
    np.testing.assert_array_equal((enlarged != 100).any(2)[9:39, 6:42], True)
    assert (enlarged != 100).any(2).sum() == 30 * 36


def test_results_samples_and_batches_are_drawn_with_their_masks(tmp_path):
    found = result()
    plain = result_of(found.image, CLASSES, Detections(*(getattr(detections(), n) for n in
                      ("boxes", "scores", "labels", "valid"))), 0)  # fmt: skip
    times = found.frame().shape[0] // SIZE[0]
    inside = found.masks[1].repeat(times, 0).repeat(times, 1)
    with_mask, without = (r.frame()[20 * times, 26 * times] for r in (found, plain))
    assert inside[20 * times, 26 * times]
    assert (with_mask != 100).any()
    assert (without == 100).all()
    image = np.full((*SIZE, 3), 100, np.uint8)
    sample = Sample(image, id="a", original_size=SIZE, seed=0, boxes=np.array(BOXES[1:2], np.float32),
                    labels=np.array([1]), crowd=np.array([False]),
                    instances=[Instance(22, 10, np.ones((20, 12), np.uint8))])  # fmt: skip
    (_, truth), _ = panels(sample, result_of(seen(sample), CLASSES, detections(), 0))
    scale = (truth.shape[1]) // SIZE[1]
    caption = truth.shape[0] - SIZE[0] * scale
    assert (truth[caption + 20 * scale :, 26 * scale][0] != 100).any()
    draw_batch(collate([sample]), {"detection": CLASSES}, tmp_path / "batch.png")
    dataless = collate([Sample(image, "a", SIZE, 0, sample.boxes, sample.labels, sample.crowd)])
    draw_batch(dataless, {"detection": CLASSES}, tmp_path / "plain.png")
    assert (tmp_path / "batch.png").read_bytes() != (tmp_path / "plain.png").read_bytes()
