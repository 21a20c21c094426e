"""Mosaics and mix-ups: each pixel, mask and box lies where a whole-image canvas would have it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from densekit.data.transforms.mixing import Pool
from densekit.data.transforms.pipeline import Pipeline
from densekit.types import IGNORE, Sample
from tests.data.mixing import CLASSES, discs, extent, mixed, objects, whole

SIZES = ((20, 30), (30, 16), (12, 40), (26, 26))


def images(layers: int = 0) -> list[Sample]:
    """Four images of one value each, with objects and maps of their own labels."""
    samples = []
    for i, size in enumerate(SIZES):
        sample = objects(discs(3, size, i), i, first_label=10 * i)
        mask = np.full((layers, *size) if layers else size, i, np.uint8)
        if layers:
            mask = (np.random.default_rng(i).random(mask.shape) < 0.3).astype(np.uint8)
            mask[0, 0, 0] = IGNORE
        samples.append(dataclasses.replace(sample, image=np.full((*size, 3), 40 * (i + 1), np.uint8), mask=mask))
    return samples


@pytest.mark.parametrize("canvas", [(40, 60), (36, 30)])
def test_four_images_meet_at_a_point_with_their_masks_and_boxes(canvas):
    samples = images()
    spec = {"name": "Mosaic", "size": list(canvas), "fill": 7}
    for seed in range(8):
        out = mixed(spec, samples[0], *samples[1:], seed=seed)
        assert out.image.shape == (*canvas, 3)
        found = np.where(out.image[:, :, 0] == 7, IGNORE, out.image[:, :, 0] // 40 - 1).astype(np.uint8)
        np.testing.assert_array_equal(out.mask, found)
        # The point: where the first image ends. The others follow from it, by the labels that lie there.
        y, x = (int(np.flatnonzero((found == 0).any(axis))[-1]) + 1 for axis in (1, 0))
        assert canvas[0] / 4 <= y <= canvas[0] * 3 / 4
        assert canvas[1] / 4 <= x <= canvas[1] * 3 / 4
        corners = {(0, 0): 0, (0, 1): int(found[y - 1, x]), (1, 0): int(found[y, x - 1]), (1, 1): int(found[y, x])}
        truth = {}
        for (down, right), i in corners.items():
            height, width = SIZES[i]
            top, left = y - (0 if down else height), x - (0 if right else width)
            for label, mask in zip(samples[i].labels, discs(3, SIZES[i], i)):
                big = np.zeros((200, 200), bool)
                big[top + 80 : top + 80 + height, left + 80 : left + 80 + width] = mask
                box = np.array(extent(big)) - 80
                box = np.clip(box, 0, [canvas[1], canvas[0]] * 2)
                if (box[2:] - box[:2] >= 1).all():
                    truth.setdefault(label, []).append((box.tolist(), big[80:, 80:][: canvas[0], : canvas[1]]))
        assert sorted(out.labels) == sorted(k for k, several in truth.items() for _ in several)
        for label, box, one in zip(out.labels, out.boxes, out.instances):
            rest = truth[label]
            match = [i for i, (b, m) in enumerate(rest) if b == box.tolist() and (m == whole(one, canvas)).all()]
            assert match, "one of the copies of this object lies here"
            rest.pop(match[0])


def test_an_image_that_is_not_drawn_keeps_its_size_and_the_others_are_drawn():
    samples = images()
    spec = {"name": "Mosaic", "size": [40, 60], "p": 0.5}
    outs = [mixed(spec, samples[0], *samples[1:], seed=s) for s in range(30)]
    assert {o.image.shape[:2] for o in outs} == {(20, 30), (40, 60)}
    assert {int(k) for o in outs for k in np.unique(o.mask)} == {0, 1, 2, 3, IGNORE}


def test_layers_of_classes_lie_side_by_side_too():
    samples = images(layers=5)
    out = mixed({"name": "Mosaic", "size": [80, 90], "centre": [0.5, 0.5]}, samples[0], samples[1])
    np.testing.assert_array_equal(out.mask[:, 20:40, 15:45], samples[0].mask)
    np.testing.assert_array_equal(out.mask[:, 40:70, 45:61], samples[1].mask)
    assert (out.mask[:, :20] == IGNORE)[:, :10].all()


@pytest.mark.parametrize("alpha", [0.5, 8.0])
def test_mix_up_blends_pixels_and_joins_objects(alpha):
    sample, other = images()[0], images()[3]  # 20 x 30 and 26 x 26
    random = np.random.default_rng(0)
    sample.image, other.image = (random.integers(0, 255, s.image.shape, np.uint8) for s in (sample, other))
    shares = []
    for seed in range(12):
        out = mixed({"name": "MixUp", "alpha": alpha, "p": 1}, sample, other, seed=seed)
        a, b = sample.image[:, :26].astype(float), other.image[:20].astype(float)
        share = ((out.image[:, :26] - b) * (a - b)).sum() / ((a - b) ** 2).sum()  # least squares
        np.testing.assert_allclose(out.image[:, :26], share * a + (1 - share) * b, atol=0.6)
        np.testing.assert_array_equal(out.image[:, 26:], sample.image[:, 26:])
        np.testing.assert_array_equal(out.mask, sample.mask)
        shares.append(share)

        lower = discs(3, SIZES[3], 3)[:, :20]
        seen = [k for k in range(3) if lower[k].any()]
        assert out.labels.tolist() == [0, 1, 2, *(30 + k for k in seen)]
        for k, one in zip(seen, out.instances[3:]):
            np.testing.assert_array_equal(whole(one, (20, 30))[:, :26], lower[k])
        np.testing.assert_array_equal(out.boxes[3:, [0, 2]], np.stack([other.boxes[k, [0, 2]] for k in seen]))
        assert (out.boxes[3:, 3] <= 20).all()
    assert min(shares) >= 0.5 - 1e-3
    assert (np.mean(shares) > 0.7) == (alpha < 1), "a small alpha mixes little"


def test_mix_up_of_layers_gives_what_either_has_and_ignores_what_either_does():
    sample, other = images(layers=4)[0], images(layers=4)[2]  # 20 x 30 and 12 x 40
    out = mixed({"name": "MixUp", "p": 1}, sample, other)
    a, b = sample.mask[:, :12], other.mask[:, :, :30]
    expected = np.where((a == IGNORE) | (b == IGNORE), IGNORE, (a == 1) | (b == 1))
    np.testing.assert_array_equal(out.mask[:, :12], expected)
    np.testing.assert_array_equal(out.mask[:, 12:], sample.mask[:, 12:])


def test_images_drawn_behind_a_mosaic_are_mosaics_of_their_own():
    samples, read = images(), []
    pool = Pool(4, 0, CLASSES, lambda i: read.append(i) or samples[i])
    specs = [{"name": "Mosaic", "size": [40, 40]}, {"name": "MixUp", "p": 1}]
    out = Pipeline(specs)(samples[0], np.random.default_rng(0), pool)
    assert len(read) == 3 + 1 + 3, "three for the sample's mosaic; one and three for the other's"
    assert out.image.shape == (40, 40, 3)
