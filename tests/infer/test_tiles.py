"""Detections over tiles and views, with a stand-in detector that finds bright rectangles to the pixel."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
import torch
import torchvision

from densekit import DensekitError
from densekit.data.transforms.pipeline import Pipeline
from densekit.infer.augmented_boxes import detect_augmented, padded
from densekit.infer.merging import Found, merge_views
from densekit.infer.tiles import TileDetector, corners
from densekit.types import Batch

RESIZED = Pipeline([{"name": "Resize", "long": 96}], training=False)
PLAIN = Pipeline((), training=False)


class Bright:
    """Finds each connected bright region; its class is 3 where it is pure red, else 8; ``jitter`` px off."""

    mean = torch.zeros(1)

    def __init__(self, jitter=0.0):
        self.calls, self.random, self.jitter = 0, np.random.default_rng(0), jitter

    def head(self, name=None):
        return self

    def predict(self, batch):
        self.calls += 1
        found = []
        for image, (height, width), original in zip(batch.images, batch.sizes.tolist(), batch.original_sizes.tolist()):
            pixels = np.ascontiguousarray(image[:, :height, :width].permute(1, 2, 0).float().numpy())
            bright = (pixels.max(2) > 127).astype(np.uint8)
            _, _, rows, centres = cv2.connectedComponentsWithStats(bright, connectivity=8)
            if self.jitter:  # slivers that would turn inside out are nothing that a detector finds
                seen = np.r_[True, rows[1:, 2:4].min(1) > 3 * self.jitter]
                rows, centres = rows[seen], centres[seen]
            scale = np.array([original[1] / width, original[0] / height] * 2)
            boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows[1:]]).reshape(-1, 4) * scale
            middles = [pixels[int(c[1]), int(c[0])] for c in centres[1:]]
            labels = [3 if m[1] < 127 else 8 for m in middles]
            scores = self.random.uniform(0.5, 1, len(boxes))
            boxes = boxes + self.random.uniform(-self.jitter, self.jitter, boxes.shape)
            found.append(Found(*(torch.tensor(np.array(v, t)) for v, t in zip(
                (boxes.clip(0), scores, labels), (np.float32, np.float32, np.int64)))))  # fmt: skip
        return padded(found)


def scene(boxes, height=200, width=260, reds=()):
    image = np.zeros((height, width, 3), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2] = (255, 0, 0) if number in reds else 255
    return image


def found_by(detector, image):
    found = detector(image)
    return sorted(found.boxes[found.valid].round(decimals=2).tolist())


def as_lists(boxes):
    return sorted([float(v) for v in box] for box in boxes)


def random_objects(seed, side, count=14, height=200, width=260, least=3):
    """Objects of sides from ``least`` to ``side``, apart from one another."""
    random, boxes = np.random.default_rng(seed), []
    while len(boxes) < count:
        w, h = random.integers(least, side + 1, 2)
        x, y = int(random.integers(0, width - w)), int(random.integers(0, height - h))
        box = (x, y, x + int(w), y + int(h))
        if all(box[2] + 2 < b[0] or b[2] + 2 < box[0] or box[3] + 2 < b[1] or b[3] + 2 < box[1] for b in boxes):
            boxes.append(box)
    return boxes


@pytest.mark.parametrize("seed", range(8))
def test_objects_that_fit_the_overlap_are_found_once_and_whole(seed):
    boxes = random_objects(seed, side=20)
    detector = TileDetector(Bright(), PLAIN, 96, 0.3)
    assert found_by(detector, scene(boxes)) == as_lists(boxes)
    assert detector.model.calls > 1


@pytest.mark.parametrize("seed", range(4))
def test_boxes_that_are_not_exact_are_still_found_once(seed):
    boxes = random_objects(seed, side=24, least=12)
    found = found_by(TileDetector(Bright(jitter=0.8), PLAIN, 96, 0.4), scene(boxes))
    assert len(found) == len(boxes)
    gaps = np.abs(np.array(found)[:, None] - np.array(boxes)).max(2)
    assert (gaps.min(0) < 2).all()
    assert len(set(gaps.argmin(0).tolist())) == len(boxes)


def test_an_object_larger_than_the_overlap_is_put_together():
    wide, tall, large = (20, 10, 200, 30), (230, 20, 250, 180), (30, 60, 210, 190)
    detector = TileDetector(Bright(), PLAIN, 96, 0.1)
    for box in (wide, tall, large):
        assert found_by(detector, scene([box])) == as_lists([box])


def test_neighbours_at_a_seam_and_other_classes_stay_apart():
    (_, _, seam, _), *_ = corners(200, 260, 96, 0.25)
    over, beside = (seam - 30, 20, seam + 30, 40), (seam - 12, 46, seam + 12, 60)
    image = scene([over, beside], reds={1})
    found = TileDetector(Bright(), PLAIN, 96, 0.25)(image)
    assert as_lists(found.boxes[0].tolist()) == as_lists([over, beside])
    assert sorted(zip(found.boxes[0, :, 1].tolist(), found.labels[0].tolist())) == [(20, 8), (46, 3)]


def test_tiles_cover_the_image_and_overlap_enough():
    for height, width, side, overlap in itertools.product((96, 97, 150, 401), (60, 96, 333), (96, 128), (0, 0.2, 0.5)):
        seen = np.zeros((height, width), bool)
        tiles = list(corners(height, width, side, overlap))
        for left, top, right, bottom in tiles:
            assert right - left == min(side, width)
            assert bottom - top == min(side, height)
            seen[top:bottom, left:right] = True
        assert seen.all()
        starts = sorted({t[0] for t in tiles})
        assert all(one + side - two >= int(overlap * side) for one, two in itertools.pairwise(starts))


def test_an_image_that_fits_a_tile_is_resized_and_predicted_once():
    box = (20, 10, 60, 50)
    detector = TileDetector(Bright(), RESIZED, 260, 0.2)
    (found,) = found_by(detector, scene([box]))
    assert detector.model.calls == 1
    np.testing.assert_allclose(found, box, atol=3)  # seen at 96 pixels instead of 260


def test_each_tile_is_resized_as_an_image_of_its_own():
    box = (101, 90, 112, 101)
    (found,) = found_by(TileDetector(Bright(), Pipeline([{"name": "Resize", "long": 192}], training=False), 96, 0.3),
                        scene([box]))  # fmt: skip
    np.testing.assert_allclose(found, box, atol=0.51)


def test_an_empty_scene_has_no_box():
    found = TileDetector(Bright(), PLAIN, 96, 0.3)(scene([]))
    assert found.boxes.shape == (1, 0, 4)


@pytest.mark.parametrize(("side", "overlap"), [(16, 0.2), (96, 1.0), (96, -0.1)])
def test_tiles_that_can_not_be_are_refused(side, overlap):
    with pytest.raises(DensekitError, match=r"too small|must lie between"):
        TileDetector(Bright(), PLAIN, side, overlap)


# Views.


def batch_of(*images):
    height, width = (max(i.shape[k] for i in images) for k in (0, 1))
    pixels = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for row, image in zip(pixels, images):
        row[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(image).permute(2, 0, 1)
    sizes = torch.tensor([i.shape[:2] for i in images])
    return Batch(pixels, sizes, sizes, list(range(len(images))), torch.zeros(len(images), dtype=torch.int64))


@pytest.mark.parametrize(
    "flips", [("horizontal",), ("vertical",), ("both",), ("none", "horizontal", "vertical", "both")]
)
def test_boxes_on_mirrored_images_come_back(flips):
    boxes, others = random_objects(1, 30), random_objects(2, 30, height=120, width=150)
    model = Bright()
    found = detect_augmented(model, batch_of(scene(boxes), scene(others, 120, 150)), flips=flips)
    for row, want in enumerate((boxes, others)):
        np.testing.assert_allclose(sorted(found.boxes[row][found.valid[row]].tolist()), as_lists(want), atol=1e-3)


def test_boxes_at_other_scales_come_back():
    boxes = random_objects(3, 40, count=6)
    found = detect_augmented(Bright(), batch_of(scene(boxes)), scales=(0.5, 1.0, 2.0))
    np.testing.assert_allclose(sorted(found.boxes[0][found.valid[0]].tolist()), as_lists(boxes), atol=1.5)


def test_a_score_is_the_mean_over_views_and_a_box_the_weighted_mean():
    one = Found(torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.tensor([0.9, 0.4]), torch.tensor([1, 1]))
    two = Found(torch.tensor([[2.0, 0, 12, 10], [0, 0, 10, 10]]), torch.tensor([0.3, 0.6]), torch.tensor([1, 2]))
    merged = merge_views([one, two], 0.5)
    assert merged.labels.tolist() == [1, 2, 1]
    np.testing.assert_allclose(merged.scores, [0.6, 0.3, 0.2], rtol=1e-6)
    np.testing.assert_allclose(merged.boxes[0], [0.5, 0, 10.5, 10], rtol=1e-6)


def test_views_that_agree_keep_what_torchvision_keeps():
    """Views with the same boxes and scores are one view."""
    random = np.random.default_rng(0)
    corner = torch.from_numpy(random.uniform(0, 80, (60, 2)).astype(np.float32))
    boxes = torch.cat([corner, corner + torch.from_numpy(random.uniform(5, 30, (60, 2)).astype(np.float32))], 1)
    scores, labels = (
        torch.from_numpy(random.permutation(60).astype(np.float32) / 60),
        torch.zeros(60, dtype=torch.int64),
    )
    kept = torchvision.ops.nms(boxes, scores, 0.5)
    view = Found(boxes[kept], scores[kept], labels[kept])
    merged = merge_views([view, view, view], 0.5)
    np.testing.assert_allclose(merged.scores, scores[kept], rtol=1e-6)
    np.testing.assert_allclose(merged.boxes, boxes[kept], rtol=1e-5)
