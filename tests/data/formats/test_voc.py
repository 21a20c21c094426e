"""Pascal VOC's folders, and those of programs that write its xml, read by xml.etree in the test."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from densekit.data.formats.voc import recognise
from densekit.errors import DensekitError
from densekit.registry import DATASETS
from tests.data.formats import folders


def build(folder, **options):
    return DATASETS.build("voc", {"folder": str(folder), **options})


@pytest.fixture
def devkit(tmp_path):
    """Annotations, JPEGImages and ImageSets/Main; a difficult object, float corners, parts of an object, no object."""
    for name in ("a", "b", "c"):
        folders.image(tmp_path / f"JPEGImages/{name}.jpg")
    head = folders.xml_object("head", (3, 3, 5, 5)).replace("object>", "part>")
    person = folders.xml_object("person", (1, 1, 40, 30), 0).replace("</object>", f"{head}</object>")
    folders.xml(tmp_path / "Annotations/a.xml", "a.jpg", [person, folders.xml_object("dog", (2.5, 3, 10.25, 8), 1)])
    folders.xml(tmp_path / "Annotations/b.xml", "b.jpg", [folders.xml_object("cat", (5, 5, 5, 6))])
    folders.xml(tmp_path / "Annotations/c.xml", "c.jpg", [])
    folders.text(tmp_path / "ImageSets/Main/train.txt", "a\nc\n")
    folders.text(tmp_path / "ImageSets/Main/val.txt", "b\n")
    folders.text(tmp_path / "ImageSets/Main/dog_train.txt", "a  1\nc -1\n")
    return tmp_path


def read(folder):
    """The objects of all xml files, by an independent reader: inclusive corners counted from 1."""
    found = []
    for path in folder.rglob("*.xml"):
        tree = ElementTree.parse(path).getroot()
        for element in tree.findall("object"):
            sides = ("xmin", "ymin", "xmax", "ymax")
            left, top, right, bottom = (float(element.find("bndbox").find(side).text) for side in sides)
            difficult = element.find("difficult") is not None and element.find("difficult").text == "1"
            row = (f"{path.stem}.jpg", element.find("name").text, left - 1, top - 1, right - left + 1, bottom - top + 1)
            found.append((*row, difficult))
    return found


def test_boxes_span_the_pixels_from_the_first_to_the_last_and_difficult_ones_are_crowds(devkit):
    data = build(devkit)
    assert folders.close(folders.objects(data), read(devkit))
    assert ("a.jpg", "person", 0, 0, 40, 30, False) in folders.objects(data)
    assert [row[1] for row in folders.objects(data) if row[6]] == ["dog"]
    assert (data.classes.names, data.classes.ids) == (("cat", "dog", "person"), (1, 2, 3))
    assert len(data) == 3


def test_continuous_corners_are_taken_as_they_are(devkit):
    data = build(devkit, corners="continuous", on_bad_box="drop")
    assert ("a.jpg", "dog", 2.5, 3, 7.75, 5, True) in folders.objects(data)
    assert "has no area" in data.notes[0]  # the box of 5 to 5


def test_a_split_is_a_list_of_imagesets(devkit):
    assert {row[0] for row in folders.objects(build(devkit, split="val"))} == {"b.jpg"}
    assert len(build(devkit, split="train")) == 2
    with pytest.raises(DensekitError, match=r"there is no tran\.txt; did you mean 'train'"):
        build(devkit, split="tran")
    assert list(recognise(devkit).splits) == ["train", "val"]


def test_classes_may_be_all_there_are_and_others_are_told(devkit):
    data = build(devkit, classes=["person", "cat", "horse"])
    assert data.classes.ids == (1, 2, 3)
    assert {row[1] for row in folders.objects(data)} == {"person", "cat"}
    assert any("'dog' (1)" in note for note in data.notes)


def test_xml_files_beside_images_and_splits_as_folders_are_recognised(tmp_path):
    for role in ("train", "valid"):
        folders.image(tmp_path / role / "x.rf.1a.jpg")
        folders.xml(tmp_path / role / "x.rf.1a.xml", "x.rf.1a.jpg", [folders.xml_object("cell", (1, 1, 4, 4))])
    found = recognise(tmp_path)
    assert list(found.splits) == ["train", "val"]
    assert folders.objects(build(**found.splits["val"])) == [("x.rf.1a.jpg", "cell", 0, 0, 4, 4, False)]


def test_an_xml_whose_image_has_another_name_is_found_by_what_it_says(tmp_path):
    folders.image(tmp_path / "images/photo.png")
    folders.xml(tmp_path / "annotations/0001.xml", "C:\\me\\photo.png", [folders.xml_object("cell", (1, 1, 4, 4))])
    assert folders.objects(build(tmp_path))[0][0] == "photo.png"


def test_the_size_of_the_image_counts_where_the_xml_says_another_one(devkit):
    folders.image(devkit / "JPEGImages/b.jpg", 50, 30)
    data = build(devkit)
    assert data.annotated_size(1) == (30, 50)
    assert any("'b.jpg' is 50 x 30, its labels say 40 x 30" in note for note in data.notes)
    folders.xml(devkit / "Annotations/b.xml", "b.jpg", [], size=(0, 0))
    assert build(devkit).annotated_size(1) == (30, 50)


def test_boxes_beyond_an_image_of_another_size_are_refused(devkit):
    folders.image(devkit / "JPEGImages/a.jpg", 20, 15)
    with pytest.raises(DensekitError, match=r"for 40 x 30 pixels and reach beyond the image, which is 20 x 15"):
        build(devkit)


@pytest.mark.parametrize(
    ("object_", "said"),
    [
        ("<object><name>x</name></object>", "b.xml:5: object 1: 'x' has no bndbox"),
        (folders.xml_object("x", (9, 9, 3, 12)), "the last corner lies before the first; swap them"),
        (folders.xml_object("x", (1, "two", 3, 4)), "ymin is 'two', which is no finite number"),
        (folders.xml_object("", (1, 1, 3, 4)), "it has no name"),
        (folders.xml_object("x", (100, 100, 130, 140)), "b.xml#1"),
        ("<object>", "cannot be read as xml"),
    ],
)
def test_a_bad_object_is_named_with_file_and_line(devkit, object_, said):
    folders.xml(devkit / "Annotations/b.xml", "b.jpg", [object_])
    with pytest.raises(DensekitError) as error:
        build(devkit)
    assert said in str(error.value)
    assert "b.xml" in str(error.value)


def test_entities_are_refused(devkit):
    bomb = '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]><annotation><filename>&z;</filename></annotation>'
    folders.text(devkit / "Annotations/b.xml", bomb)
    with pytest.raises(DensekitError, match="declares entities"):
        build(devkit)


def test_missing_images_are_counted_and_named(devkit):
    (devkit / "JPEGImages/a.jpg").unlink()
    (devkit / "JPEGImages/b.jpg").unlink()
    with pytest.raises(DensekitError, match=r"2 problems: .*no image 'a.jpg' .*no image 'b.jpg'"):
        build(devkit)
