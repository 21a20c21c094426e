"""Tables of boxes, in the spellings of TensorFlow's tools, Roboflow, Open Images and keras-retinanet."""

from __future__ import annotations

import pytest

from densekit.data.formats.csv import recognise
from densekit.errors import DensekitError
from densekit.registry import DATASETS
from tests.data.formats import folders


def build(boxes, **options):
    return DATASETS.build("csv", {"boxes": str(boxes), **options})


@pytest.fixture
def images(tmp_path):
    for name in ("a", "b", "c"):
        folders.image(tmp_path / f"images/{name}.jpg")
    return tmp_path


WANTED = [("a.jpg", "cat", 1, 2, 10, 20.5, 0), ("a.jpg", "dog", 0, 0, 4, 4, 0), ("b.jpg", "cat", 3, 3, 6, 6, 0)]

TABLES = {
    "tensorflow": (
        "filename,width,height,class,xmin,ymin,xmax,ymax\n"
        "a.jpg,40,30,cat,1,2,11,22.5\na.jpg,40,30,dog,0,0,4,4\nb.jpg,40,30,cat,3,3,9,9\n"
    ),
    "retinanet": "images/a.jpg,1,2,11,22.5,cat\nimages/a.jpg,0,0,4,4,dog\nimages/b.jpg,3,3,9,9,cat\n",
    "semicolons": "Image Path;X1;Y1;X2;Y2;Label\na.jpg;1;2;11;22.5;cat\na.jpg;0;0;4;4;dog\nb.jpg;3;3;9;9;cat\n",
    "sizes": "image_id,x,y,w,h,category\na,1,2,10,20.5,cat\na,0,0,4,4,dog\nb,3,3,6,6,cat\n",
    "open images": (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
        "a,x,cat,1,0.025,0.275,0.0666666667,0.75,0\na,x,dog,1,0,0.1,0,0.1333333333,0\nb,x,cat,1,0.075,0.225,0.1,0.3,0\n"
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_usual_spellings_are_the_same_boxes(images, name):
    data = build(folders.text(images / "boxes.csv", TABLES[name]))
    found = [(row[0].removeprefix("images/"), *row[1:]) for row in folders.objects(data)]
    assert folders.close(found, WANTED)
    assert data.classes.names == ("cat", "dog")
    assert any("1 images are not in the table and are left aside" in note for note in data.notes)


def test_a_row_without_a_box_is_an_image_without_objects_and_groups_are_crowds(images):
    table = "file,x1,y1,x2,y2,class,iscrowd\nc.jpg,,,,,,\na.jpg,1,1,5,5,cat,1\n"
    data = build(folders.text(images / "boxes.csv", table))
    assert list(data.file.file_names) == ["c.jpg", "a.jpg"]
    assert folders.objects(data) == [("a.jpg", "cat", 1, 1, 4, 4, True)]


def test_a_list_chooses_images(images):
    path = folders.text(images / "boxes.csv", TABLES["tensorflow"])
    names = folders.text(images / "val.txt", "b\n")
    assert len(build(path, list=str(names))) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a.jpg,1,2,x,4,cat", "boxes.csv:3: right is 'x', which is no finite number"),
        ("a.jpg,1,2,,4,cat", "boxes.csv:3: right is ''"),
        ("a.jpg,9,2,3,4,cat", "boxes.csv:3: the corners 9, 2 and 3, 4 of 'cat' are swapped"),
        ("a.jpg,1,2,3,4,", "boxes.csv:3: the box has no class"),
        (",1,2,3,4,cat", "boxes.csv:3: the row names no file"),
        ("a.jpg,1,2,1,4,cat", "boxes.csv:3"),
        ("z.jpg,1,2,3,4,cat", "there is no image 'z.jpg'"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(images, row, said):
    path = folders.text(images / "boxes.csv", f"filename,xmin,ymin,xmax,ymax,class\na.jpg,1,2,3,4,cat\n{row}\n")
    with pytest.raises(DensekitError) as error:
        build(path)
    assert said in str(error.value)


def test_a_table_without_a_column_names_it(images):
    path = folders.text(images / "boxes.csv", "filename,xmin,ymin,xmax,class\na.jpg,1,2,3,cat\n")
    with pytest.raises(DensekitError, match=r"no column is the bottom of a box \(ymax, y2, bottom\)"):
        build(path)


def test_a_table_in_another_encoding_is_refused(images):
    (images / "boxes.csv").write_text(TABLES["tensorflow"], encoding="utf-16")
    with pytest.raises(DensekitError, match=r"boxes\.csv: no text in UTF-8"):
        build(images / "boxes.csv")


def test_tables_of_splits_are_recognised(images):
    folders.text(images / "train_labels.csv", TABLES["tensorflow"])
    folders.text(images / "test_labels.csv", TABLES["tensorflow"])
    folders.text(images / "prices.csv", "what,price\nx,1\n")
    assert sorted(recognise(images).splits) == ["test", "train"]
    (images / "train_labels.csv").unlink()
    (images / "test_labels.csv").unlink()
    assert recognise(images) is None
