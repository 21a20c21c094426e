"""Copy-paste: pixels, masks and boxes as whole-image masks would have them; what is covered shrinks or goes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from densekit.types import IGNORE, Sample
from tests.data.mixing import discs, extent, mixed, objects, whole

SPEC = {"name": "CopyPaste", "p": 1}


@pytest.mark.parametrize("size", [(32, 40), (24, 60), (50, 30)])
def test_objects_are_pasted_over_pixels_masks_and_boxes(size):
    masks, others = discs(5, (32, 40), 1), discs(6, size, 2)
    sample, other = objects(masks, 1, first_label=100), objects(others, 2)
    height, width = min(size[0], 32), min(size[1], 40)
    for seed in range(6):
        out = mixed(SPEC, sample, other, seed=seed)
        pasted = out.labels[out.labels < 100]
        covered = np.zeros((32, 40), bool)
        covered[:height, :width] = others[pasted].any(0)[:height, :width]
        expected = sample.image.copy()
        rows, columns = np.nonzero(covered)
        expected[rows, columns] = other.image[rows, columns]
        np.testing.assert_array_equal(out.image, expected)

        left = masks & ~covered
        kept = np.flatnonzero(left.any((1, 2)))
        assert out.labels.tolist() == [*(100 + kept), *pasted]
        for label, box, one in zip(out.labels, out.boxes, out.instances):
            if label >= 100:
                truth, tight = left[label - 100], extent(left[label - 100])
                assert one.mask.shape == (box[3] - box[1], box[2] - box[0]), "the mask stays cut to its object"
            else:
                truth = np.zeros((32, 40), bool)
                truth[:height, :width] = others[label, :height, :width]
                tight = np.minimum(extent(others[label]), [40, 32, 40, 32]).tolist()
            np.testing.assert_array_equal(whole(one, (32, 40)), truth)
            assert box.tolist() == tight
    assert sample.boxes.tolist() == [extent(m) for m in masks], "nothing is changed in place"


def test_the_number_of_pasted_objects_is_drawn_up_to_the_most():
    sample, other = objects(discs(2, (32, 40), 1), 1, first_label=100), objects(discs(6, (32, 40), 2), 2)
    counts = [int((mixed(SPEC | {"most": 4}, sample, other, seed=s).labels < 100).sum()) for s in range(40)]
    assert set(counts) == {1, 2, 3, 4}


def test_a_side_that_stays_in_view_keeps_the_annotated_box():
    mask, cover = np.zeros((1, 20, 20), bool), np.zeros((1, 20, 20), bool)
    mask[0, 5:15, 5:15], cover[0, 3:17, 10:18] = True, True
    sample = objects(mask, 1)
    sample.boxes[:] = [4.5, 4.25, 15.5, 15.75]  # drawn by hand, a little wide
    assert mixed(SPEC, sample, objects(cover, 2, 1)).boxes[0].tolist() == [4.5, 4.25, 10, 15.75]


@pytest.mark.parametrize(("least", "count"), [(0.0, 2), (0.3, 2), (0.31, 1)])
def test_an_object_of_which_too_little_stays_visible_is_dropped(least, count):
    mask, cover = np.zeros((1, 20, 20), bool), np.zeros((1, 20, 20), bool)
    mask[0, 5:15, 5:15], cover[0, 3:17, 8:18] = True, True  # three of ten columns stay
    assert len(mixed(SPEC | {"min_visible": least}, objects(mask, 1), objects(cover, 2)).boxes) == count


def test_crowds_and_objects_without_a_mask_are_not_pasted_but_may_be_covered():
    masks = np.zeros((3, 20, 20), bool)
    masks[0, 2:6, 2:6], masks[1, 4:18, 4:18], masks[2, 12:15, 12:15] = True, True, True
    other = objects(masks, 2)
    other.crowd[0], other.instances[2] = True, other.instances[2]._replace(mask=np.zeros((0, 0), np.uint8))
    for seed in range(8):
        out = mixed(SPEC, dataclasses.replace(other), other, seed=seed)
        # The big one alone is pasted; the box without a mask lies beneath it, the crowd keeps what sticks out.
        assert out.labels.tolist() == [0, 1]
        assert out.crowd.tolist() == [True, False]
        np.testing.assert_array_equal(whole(out.instances[0], (20, 20)), masks[0] & ~masks[1])
    alone = dataclasses.replace(other, crowd=np.ones(3, bool))
    np.testing.assert_array_equal(mixed(SPEC, other, alone).image, other.image)


def test_only_objects_of_the_named_classes_are_pasted():
    sample, other = objects(discs(2, (32, 40), 1), 1, first_label=100), objects(discs(6, (32, 40), 2), 2)
    pasted = {int(k) for s in range(20) for k in mixed(SPEC | {"classes": ["b", "e"]}, sample, other, seed=s).labels}
    assert {k for k in pasted if k < 100} == {1, 4}


def classes_map(seed: int, layers: bool, size: tuple[int, int] = (30, 30)) -> Sample:
    random = np.random.default_rng(seed)
    mask = random.integers(0, 4, size).astype(np.uint8)
    mask[:, :3] = IGNORE
    if layers:
        mask = np.stack([np.where(mask == IGNORE, IGNORE, mask == k) for k in range(6)]).astype(np.uint8)
    image = random.integers(0, 255, (*size, 3), np.uint8)
    return Sample(image, id=seed, original_size=size, seed=0, mask=mask)


@pytest.mark.parametrize("layers", [False, True])
def test_pixels_of_half_the_classes_are_pasted_with_their_labels(layers):
    sample, other = classes_map(1, layers), classes_map(2, layers, (20, 40))
    seen = set()
    for seed in range(12):
        out = mixed(SPEC, sample, other, seed=seed)
        plain = classes_map(2, False, (20, 40)).mask[:, :30]
        pairs = [(i, j) for i in range(4) for j in range(i)]
        fits = []
        for pair in pairs:
            covered = np.zeros((30, 30), bool)
            covered[:20] = np.isin(plain, pair)
            expected = sample.image.copy()
            expected[covered] = other.image[:, :30][covered[:20]]
            if np.array_equal(expected, out.image):
                mask = sample.mask.copy()
                mask[..., covered] = other.mask[..., :30][..., covered[:20]]
                np.testing.assert_array_equal(out.mask, mask)
                fits.append(pair)
        assert len(fits) == 1
        seen |= set(fits)
    assert len(seen) > 3, "the classes are drawn"


def test_named_classes_of_a_map_are_all_pasted():
    sample, other = classes_map(1, False), classes_map(2, False)
    out = mixed(SPEC | {"classes": ["b", "d", "f"]}, sample, other)
    np.testing.assert_array_equal(out.mask, np.where(np.isin(other.mask, (1, 3)), other.mask, sample.mask))


def test_deep_pixels_keep_their_values_over_bytes():
    sample, other = objects(discs(1, (20, 20), 1), 1, 100), objects(discs(1, (20, 20), 2), 2)
    other.image = np.full((20, 20, 3), 100.25, np.float32)
    out = mixed(SPEC, sample, other)
    covered = whole(other.instances[0], (20, 20))
    assert set(out.image[covered].ravel()) == {100.25}
    np.testing.assert_array_equal(out.image[~covered], sample.image[~covered])
