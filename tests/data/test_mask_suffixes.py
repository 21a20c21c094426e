"""Images and masks in one folder, or under other names, find one another."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from densekit.data.formats.masks.masks import masks
from densekit.data.formats.masks.suffixes import found_suffixes
from densekit.errors import DensekitError


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("img_{}.jpg", "img_{}_mask.png"),
        ("{}.png", "{}_mask.png"),
        ("{}_image.png", "{}_label.png"),
        ("{}.jpg", "{}.png"),
        ("scene-{}_rgb.tif", "scene-{}_seg.tif"),
        ("sub/{}.jpg", "sub/{}_gt.png"),
        ("{}.jpg", "{}_labels_v2.png"),
    ],
)
def test_the_ends_in_one_folder_are_found(tmp_path, image, mask):
    random = np.random.default_rng(0)
    (tmp_path / "sub").mkdir()
    for number in (1, 2, 10, 11, 100):
        cv2.imwrite(str(tmp_path / image.format(number)), random.integers(0, 255, (8, 9, 3), np.uint8))
        cv2.imwrite(str(tmp_path / mask.format(number)), random.integers(0, 2, (8, 9), np.uint8))
    data = masks(images=tmp_path, masks=tmp_path, classes=("a", "b"))
    assert {(p.image, p.mask) for p in data.source.pairs} == {
        (image.format(n), mask.format(n)) for n in (1, 2, 10, 11, 100)
    }


def test_the_ends_of_two_folders_are_found():
    images, truth = [f"ISIC_{i}.jpg" for i in range(9)], [f"ISIC_{i}_segmentation.png" for i in range(9)]
    assert found_suffixes(images, truth) == (".jpg", "_segmentation.png")


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "b.png", "a_mask.png"],  # b has no mask
        ["a_x.png", "a_y.png", "b_x.png", "b_y.png"],  # no word tells which are the masks
        ["a.png", "b.png"],
        [],
    ],
)
def test_ends_that_are_not_certain_are_not_taken(names):
    assert found_suffixes(names, names) is None


def test_a_folder_without_certain_pairs_is_refused_as_before(tmp_path):
    for name in ("a.png", "b.png", "a_mask.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 9), np.uint8))
    with pytest.raises(DensekitError, match="set image_suffix and mask_suffix"):
        masks(images=tmp_path, masks=tmp_path, classes=("a", "b"))
