"""Masks as files and pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from densekit.engine.drawing_masks import draw_confusion, overlay, write_mask
from densekit.types import Classes, DensekitError

CLASSES = Classes(("rest", "car", "bus"), (0, 5, 9))


def test_a_written_mask_reads_back_to_the_same_ids_in_every_library(tmp_path):
    mask = np.array([[0, 5], [9, 255]])
    write_mask(tmp_path / "m.png", mask)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "m.png")), mask)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "m.png"), cv2.IMREAD_UNCHANGED), mask)
    write_mask(tmp_path / "large.png", mask + 1000)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "large.png"), cv2.IMREAD_UNCHANGED), mask + 1000)


def test_masks_that_a_png_can_not_hold_are_refused(tmp_path):
    with pytest.raises(DensekitError, match="70000"):
        write_mask(tmp_path / "m.png", np.array([[70000]]))
    with pytest.raises(DensekitError, match=r"\.png"):
        write_mask(tmp_path / "m.jpg", np.array([[1]]))


def test_an_overlay_colours_objects_leaves_the_background_and_adds_a_legend():
    image = np.full((40, 50, 1), 100, np.uint8)
    mask = np.zeros((40, 50), np.int64)
    mask[5:20, 5:20] = 5
    picture = overlay(image, mask, CLASSES)
    assert picture.shape[0] > 40
    assert (picture[30:40, 30:50] == 100).all()
    assert (picture[10, 10] != 100).any()
    untouched = overlay(image, np.zeros((40, 50), np.int64), CLASSES)
    assert (untouched == 100).all()
    assert untouched.shape == (40, 50, 3)


def test_layers_are_drawn_with_every_class():
    layers = np.zeros((3, 20, 20), np.uint8)
    layers[0, :5], layers[2, 10:] = 1, 1
    picture = overlay(np.zeros((20, 20, 3), np.uint8), layers, CLASSES)
    assert picture[2, 2].any()
    assert picture[15, 15].any()
    assert not picture[7, 7].any()


def test_the_picture_of_a_confusion_matrix_is_darkest_where_most_pixels_are():
    picture = draw_confusion([[90, 10], [0, 50]], ["rest", "car"])
    assert picture[132, 132].sum() < picture[132, 188].sum() < picture[188, 132].sum()
    assert draw_confusion(np.zeros((30, 30), int).tolist(), [str(i) for i in range(30)]).ndim == 3
