"""Masks of boxes that are merged over tiles and views, with a stand-in that sees each bright object to the pixel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from densekit.data.transforms.pipeline import Pipeline
from densekit.infer.augmented_boxes import detect_augmented, padded
from densekit.infer.merging import Found, merge_views, moved_cells
from densekit.infer.results import Seen, result_of
from densekit.infer.tiles import TileDetector
from densekit.types import Batch, Classes, Detections

CELLS = 28
CLASSES = Classes(("cell",), (3,))
PLAIN = Pipeline((), training=False)


class Outlines:
    """Finds each connected bright region with its box and its shape in cells."""

    mean = torch.zeros(1)
    learns_masks = True

    def head(self, name=None):
        return self

    def predict(self, batch):
        found = []
        for image, (height, width), original in zip(batch.images, batch.sizes.tolist(), batch.original_sizes.tolist()):
            bright = (image[0, :height, :width].float().numpy() > 127).astype(np.uint8)
            count, labels, rows, _ = cv2.connectedComponentsWithStats(bright, connectivity=4)
            scale = np.array([original[1] / width, original[0] / height] * 2)
            boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows[1:]]).reshape(-1, 4)
            cells = [shape(labels[y1:y2, x1:x2] == k) for k, (x1, y1, x2, y2) in enumerate(boxes.tolist(), 1)]
            found.append(Found(torch.from_numpy((boxes * scale).astype(np.float32)), torch.ones(count - 1),
                               torch.full((count - 1,), 3), torch.from_numpy(np.array(cells, np.float32).reshape(
                                   -1, CELLS, CELLS))))  # fmt: skip
        return padded(found)


def shape(mask):
    return cv2.resize(mask.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_LINEAR)


def scene(polygons, height=160, width=220):
    image = np.zeros((height, width, 3), np.uint8)
    masks = []
    for polygon in polygons:
        masks.append(np.zeros((height, width), np.uint8))
        cv2.fillPoly(masks[-1], [np.array(polygon)], 1)
        image[masks[-1] == 1] = 255
    return image, masks


# No symmetry, so that no flip goes unseen.
SMALL = [
    [(20, 20), (52, 24), (24, 50)],
    [(120, 30), (150, 60), (130, 66), (118, 50)],
    [(60, 100), (90, 120), (70, 140)],
]
LARGE = [[(10, 20), (200, 40), (190, 130), (60, 70)]]


def assert_the_same_objects(found: Detections, image, masks, least):
    result = result_of(Seen(1, None, image.shape[:2], lambda: image), CLASSES, found, 0)
    assert len(result) == len(masks)
    shares = [[(a & (b == 1)).sum() / (a | (b == 1)).sum() for a in result.masks] for b in masks]
    assert np.max(shares, 1).min() > least
    assert len(set(np.argmax(shares, 1).tolist())) == len(masks)


def batch_of(image):
    size = torch.tensor([image.shape[:2]])
    return Batch(torch.from_numpy(image).permute(2, 0, 1)[None], size, size, [0], torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("polygons", [SMALL, LARGE], ids=["whole", "put together"])
def test_masks_over_tiles_are_those_of_the_objects(polygons):
    image, masks = scene(polygons)
    found = TileDetector(Outlines(), PLAIN, 96, 0.4)(image)
    assert_the_same_objects(found, image, masks, least=0.85)


@pytest.mark.parametrize(
    "flips", [("horizontal",), ("vertical",), ("both",), ("none", "horizontal", "vertical", "both")]
)
def test_masks_on_mirrored_images_come_back(flips):
    image, masks = scene(SMALL)
    assert_the_same_objects(detect_augmented(Outlines(), batch_of(image), flips=flips), image, masks, least=0.85)


def test_masks_at_other_scales_come_back():
    image, masks = scene(SMALL)
    found = detect_augmented(Outlines(), batch_of(image), scales=(0.5, 1.0, 2.0), flips=("none", "both"))
    assert_the_same_objects(found, image, masks, least=0.8)


def test_a_mask_is_the_mean_over_views_weighted_by_their_scores():
    box, cells = torch.tensor([[4.0, 4, 12, 20]]), torch.rand(2, 1, 7, 7)
    views = [Found(box, torch.tensor([s]), torch.tensor([1]), c) for s, c in zip((0.9, 0.3), cells)]
    merged = merge_views(views, 0.5)
    torch.testing.assert_close(merged.cells, 0.75 * cells[0] + 0.25 * cells[1])


def test_cells_of_a_box_seen_from_another_are_the_same_pixels():
    cells = torch.rand(1, 6, 6)
    box = torch.tensor([[0.0, 0, 12, 12]])
    torch.testing.assert_close(moved_cells(cells, box, box[0]), cells)
    half = moved_cells(cells, box, torch.tensor([6.0, 0, 18, 12]))[0]
    assert not half[:, 3:].any()
    torch.testing.assert_close(half[:, :3], cells[0][:, 3:])


def test_an_empty_scene_keeps_the_shape_of_masks():
    image, _ = scene([])
    assert TileDetector(Outlines(), PLAIN, 96, 0.3)(image).masks.shape == (1, 0, CELLS, CELLS)
    assert detect_augmented(Outlines(), batch_of(image), flips=("both",)).masks.shape == (1, 0, CELLS, CELLS)
