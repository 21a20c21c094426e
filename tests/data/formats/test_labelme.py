"""LabelMe's folders."""

from __future__ import annotations

import json

import numpy as np
import pytest

from densekit.data.formats.labelme import recognise
from densekit.errors import DensekitError
from densekit.registry import DATASETS
from tests.data.formats import folders

SHAPES = [
    ("cat", "rectangle", [[20, 12], [5.5, 4]]),
    ("dog", "polygon", [[1, 1], [9, 1], [5, 11]]),
    ("sun", "circle", [[20, 15], [23, 19]]),
    ("road", "line", [[0, 0], [40, 30]]),
    ("road", "point", [[3, 3]]),
]


def build(folder, **options):
    return DATASETS.build("labelme", {"folder": str(folder), **options})


@pytest.fixture
def folder(tmp_path):
    folders.image(tmp_path / "a.jpg")
    folders.labelme(tmp_path / "a.json", "a.jpg", SHAPES)
    return tmp_path


def test_rectangles_polygons_and_circles_are_boxes_and_the_rest_is_told(folder):
    data = build(folder)
    wanted = [("cat", 5.5, 4, 14.5, 8, 0), ("dog", 1, 1, 8, 10, 0), ("sun", 15, 10, 10, 10, 0)]
    assert folders.close(folders.objects(data), [("a.jpg", *row) for row in wanted])
    assert data.file.segmentation(0) is None
    assert np.allclose(data.file.segmentation(1), [[1, 1, 9, 1, 5, 11]])
    assert data.file.areas[2] == pytest.approx(np.pi * 25, rel=0.01)
    notes = " ".join(data.notes)
    assert "1 shapes of the kind 'line' are left aside" in notes
    assert "1 shapes of the kind 'point' are left aside" in notes


def test_shapes_of_a_group_are_one_object(folder):
    parts = [("cat", "rectangle", [[x, 2], [x + 4, 6]], {"group_id": 7}.items()) for x in (2, 20)]
    folders.labelme(folder / "a.json", "a.jpg", parts)
    data = build(folder)
    assert folders.close(folders.objects(data), [("a.jpg", "cat", 2, 2, 22, 4, 0)])
    assert len(data.file.segmentation(0)) == 2
    assert data.file.areas[0] == 32


def test_difficult_shapes_are_crowds(folder):
    folders.labelme(folder / "a.json", "a.jpg", [("cat", "rectangle", [[1, 1], [4, 4]], {"difficult": True}.items())])
    assert folders.objects(build(folder))[0][6]


def test_images_elsewhere_are_found_by_the_path_in_the_json(tmp_path):
    folders.image(tmp_path / "images/photo.jpg")
    folders.labelme(tmp_path / "json/0001.json", "..\\images\\photo.jpg", SHAPES[:1])
    assert folders.objects(build(tmp_path))[0][0] == "images/photo.jpg"


def test_an_image_without_a_json_is_told_and_one_without_shapes_is_background(folder):
    folders.image(folder / "b.jpg")
    folders.image(folder / "c.jpg")
    folders.labelme(folder / "c.json", "c.jpg", [])
    data = build(folder)
    assert list(data.file.file_names) == ["a.jpg", "c.jpg"]
    assert any("1 images have no json and are left aside: b.jpg" in note for note in data.notes)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (("cat", "polygon", [[1, 1], [2, 2]]), "shape 1: 'cat' is a polygon of 2 points; it needs 3"),
        (("cat", "rectangle", [[1, 1], [2, None]]), "has a point [2, None]"),
        (("", "rectangle", [[1, 1], [2, 2]]), "label is ''; every shape needs its class"),
        (("cat", "rectangle", [[1, 1], [1, 5]]), "a.json#1"),
    ],
)
def test_a_bad_shape_is_named_with_its_file(folder, shape, said):
    folders.labelme(folder / "a.json", "a.jpg", [shape])
    with pytest.raises(DensekitError) as error:
        build(folder)
    assert said in str(error.value)
    assert "a.json" in str(error.value)


def test_a_folder_is_recognised_and_jsons_of_coco_are_not_labelmes(folder):
    assert list(recognise(folder).splits) == [""]
    folders.text(folder / "a.json", json.dumps({"images": [], "annotations": [], "categories": []}))
    assert recognise(folder) is None
    with pytest.raises(DensekitError, match="there is no json of LabelMe"):
        build(folder)
