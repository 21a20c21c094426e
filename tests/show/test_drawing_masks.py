"""Masks as files and pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from densekit.show.drawing_masks import draw_confusion, overlay, write_mask
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


def legend(picture, image):
    """The strip below the picture."""
    return picture[image.shape[0] :]


@pytest.mark.parametrize("name", ["sky", "road", "0", "other", "backgrounded", "Gras"])
def test_the_first_class_is_drawn_and_named_unless_it_is_a_background(name):
    image = np.full((40, 50, 3), 100, np.uint8)
    picture = overlay(image, np.zeros((40, 50), np.int64), Classes((name, "car"), (0, 1)))
    assert (picture[:40] != 100).any(2).all()
    assert (legend(picture, image) != 255).any()


@pytest.mark.parametrize("name", ["background", "Background", "_background_", "__BG__", "rest", "void", "unlabeled"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_class_that_says_that_nothing_is_there_stays_without_colour_wherever_it_stands(name, place):
    image = np.full((40, 50, 3), 100, np.uint8)
    names = (name, "car") if place == 0 else ("car", name)
    picture = overlay(image, np.full((40, 50), place, np.int64), Classes(names, (0, 1)))
    assert (picture == 100).all()
    assert picture.shape == image.shape


def test_the_legend_names_what_is_drawn_in_its_colour_and_whole():
    image = np.zeros((40, 400, 3), np.uint8)
    names = ("construction--barrier--curb", "construction--barrier--fence")
    mask = np.zeros((40, 400), np.int64)
    both = mask.copy()
    both[:, 200:] = 1
    one, two = (legend(overlay(image, m, Classes(names, (0, 1)), opacity=1.0), image) for m in (mask, both))
    ink = [(strip != 255).any(2).any(0).sum() for strip in (one, two)]
    assert ink[1] > 1.8 * ink[0], "the second name is missing"
    assert (two == overlay(image, both, Classes(names, (0, 1)), opacity=1.0)[0, 0]).all(2).any()
    assert (two == overlay(image, both, Classes(names, (0, 1)), opacity=1.0)[0, 399]).all(2).any()


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
