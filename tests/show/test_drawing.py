"""Pictures of boxes: colours that any eye tells apart, words that can be read and bury nothing."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from densekit.show.drawing import as_rgb, colours, draw_boxes, text_colour, with_legend
from densekit.show.labels import place_labels

# What protanopes and deuteranopes see of linear RGB: Vi\u00e9not, Brettel and Mollon 1999, table 1 in RGB.
PROTANOPE = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
DEUTERANOPE = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])


def lab(rgb, seen=None):
    """CIE Lab by OpenCV of what an eye sees."""
    values = np.array(rgb, np.float32).reshape(1, -1, 3) / 255
    if seen is not None:
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) @ seen.T
        linear = linear.clip(0, 1)
        values = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)
    return cv2.cvtColor(values.astype(np.float32), cv2.COLOR_RGB2Lab)[0]


@pytest.mark.parametrize("seen", [None, PROTANOPE, DEUTERANOPE], ids=["all cones", "protanope", "deuteranope"])
def test_the_first_colours_differ_for_every_eye(seen):
    points = lab(colours(7), seen)
    gaps = [np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2)]
    assert min(gaps) > 10  # 2.3 is what is just noticed


def test_many_colours_are_different_ones():
    many = colours(35)
    assert len(set(many)) == 35
    assert colours(7) == many[:7]
    assert all(0 <= c <= 255 for colour in many for c in colour)


@pytest.mark.parametrize("colour", [*colours(35), (0, 0, 0), (255, 255, 255), (119, 119, 119)])
def test_words_have_the_contrast_that_black_or_white_can_give(colour):
    def contrast(one, other):
        light, dark = sorted((luminance(one), luminance(other)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    def luminance(rgb):
        values = np.array(rgb) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    best = max(contrast(colour, (0, 0, 0)), contrast(colour, (255, 255, 255)))
    assert contrast(colour, text_colour(colour)) == pytest.approx(best)
    assert best >= 4.5  # WCAG AA


def overlap(one, other):
    wide, tall = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(0, wide) * max(0, tall)


def test_labels_of_neighbours_do_not_cover_one_another_and_stay_inside():
    boxes = [(x, y, x + 40, y + 30) for y in (5, 60, 115) for x in (0, 45, 90, 135)]
    places = place_labels(boxes, [(60, 12)] * len(boxes), (160, 200))
    assert all(overlap(a, b) == 0 for a, b in itertools.combinations(places, 2))
    for place, box in zip(places, boxes):
        assert place[0] >= 0
        assert place[1] >= 0
        assert place[2] <= 200
        assert place[3] <= 160
        grown = (box[0] - 61, box[1] - 13, box[2] + 61, box[3] + 13)
        assert overlap(place, grown) == 60 * 12


def test_a_label_does_not_bury_a_small_box_above():
    large, small = (20, 40, 100, 90), (22, 24, 40, 38)
    (first, *_) = place_labels([large, small], [(60, 14), (60, 14)], (120, 160))
    assert overlap(first, small) == 0
    (usual,) = place_labels([large], [(60, 14)], (120, 160))
    assert usual == (20, 26, 80, 40)


def test_an_edge_moves_a_label_into_the_picture():
    places = place_labels([(150, 0, 160, 8)], [(60, 14)], (120, 160))
    (place,) = places
    assert place[2] <= 160
    assert place[1] >= 0


def test_boxes_and_words_are_drawn_in_their_colour():
    image = np.full((120, 160, 1), 90, np.uint8)
    picture = draw_boxes(image, np.array([[30.0, 40, 100, 90]], np.float32), ["cat 0.93"], [2])
    assert picture.shape == (120, 160, 3)
    assert tuple(picture[65, 30]) == colours(3)[2]
    assert (picture[65, 60] == 90).all()
    assert (picture == as_rgb(image)).all(2).mean() > 0.8
    assert draw_boxes(image, np.zeros((0, 4), np.float32), [], []).tobytes() == as_rgb(image).tobytes()


def test_a_legend_stands_below():
    image = np.zeros((50, 100, 3), np.uint8)
    picture = with_legend(image, [("cat: 3", (230, 159, 0)), ("a long name: 2", (0, 158, 115))])
    assert (picture[:50] == 0).all()
    for colour in ((230, 159, 0), (0, 158, 115)):
        assert (picture[50:] == colour).all(2).sum() >= 100
    assert with_legend(image, []) is image
