"""What other programs write in place of COCO's own spelling is read as what it stands for: pycocotools is the judge."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as masks
from pycocotools.coco import COCO

import densekit.data.formats.coco.parse as coco_parse
from densekit.data.formats.coco.file import open_coco
from densekit.types import DensekitError
from tests.data.test_coco_file import assert_same_as_pycocotools, content, write


def floats(data):
    for image in data["images"]:
        image |= {key: float(image[key]) for key in ("id", "width", "height")}
    for row in data["annotations"]:
        row |= {key: float(row[key]) for key in ("id", "image_id", "category_id", "iscrowd")}
    for category in data["categories"]:
        category["id"] = float(category["id"])


def flags(data):
    for row in data["annotations"]:
        row["iscrowd"] = bool(row["iscrowd"])


def without_names(data):
    for category in data["categories"]:
        del category["name"]


def mixed_annotation_ids(data):
    for row in data["annotations"][::2]:
        row["id"] = f"a{row['id']}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", [floats, flags])
@pytest.mark.parametrize("piece", [200, 2**18])
def test_what_pycocotools_reads_is_read_without_a_word(tmp_path, monkeypatch, change, piece):
    monkeypatch.setattr(coco_parse, "PIECE", piece)
    data = content(images=20, annotations=60)
    change(data)
    path = write(tmp_path / "a.json", data)
    file = open_coco(path)
    assert_same_as_pycocotools(file, path)
    assert file.notes == ()
    assert all(isinstance(file.image_id(i), int) for i in range(len(file)))


def test_one_odd_row_among_many_is_read_by_several_processes_too(tmp_path, monkeypatch):
    data = content(images=20, annotations=200)
    data["annotations"][150]["category_id"] = float(data["annotations"][150]["category_id"])
    path = write(tmp_path / "a.json", data)
    monkeypatch.setattr(coco_parse, "PIECE", 500)
    monkeypatch.setattr(coco_parse, "PARALLEL_FROM", 1)
    assert_same_as_pycocotools(open_coco(path), path)


@pytest.mark.parametrize("empty", [False, True])
def test_categories_without_a_name_are_called_by_their_id(tmp_path, empty):
    data = content()
    without_names(data)
    for category in data["categories"] if empty else ():
        category["name"] = ""
    file = open_coco(write(tmp_path / "a.json", data))
    assert file.classes.names == ("3", "7", "90")
    assert len(file.notes) == 1


def test_annotation_ids_may_be_numbers_and_texts(tmp_path):
    data = content()
    mixed_annotation_ids(data)
    path = write(tmp_path / "a.json", data)
    file, coco = open_coco(path), COCO(path)
    assert len(file.boxes) == len(coco.anns)
    assert sorted(file.annotation_ids) == sorted(map(str, coco.anns))


def texts(data):
    for image in data["images"]:
        image |= {"width": str(image["width"]), "height": f"{image['height']}.0"}
    for row in data["annotations"]:
        row |= {key: str(row[key]) for key in ("category_id", "iscrowd", "area")}
        row["bbox"] = [str(v) for v in row["bbox"]]
    for category in data["categories"]:
        category["id"] = str(category["id"])


def references_as_text(data):
    for row in data["annotations"]:
        row["image_id"] = str(row["image_id"])


def references_as_number(data):
    for image in data["images"]:
        image["id"] = str(image["id"])


def one_image_id_as_text(data):
    data["images"][1]["id"] = str(data["images"][1]["id"])


@pytest.mark.parametrize("change", [texts, references_as_text, one_image_id_as_text])
def test_numbers_as_text_are_the_same_numbers_and_are_told(tmp_path, change):
    plain = content()
    odd = copy.deepcopy(plain)
    change(odd)
    write(tmp_path / "plain.json", plain)
    file = open_coco(write(tmp_path / "a.json", odd))
    assert len(file.notes) == 1
    assert str(tmp_path / "a.json") in file.notes[0]
    assert_same_as_pycocotools(file, tmp_path / "plain.json")


def test_ids_of_images_that_are_all_text_stay_text(tmp_path):
    data = content()
    references_as_number(data)
    file = open_coco(write(tmp_path / "a.json", data))
    assert [file.image_id(i) for i in range(len(file))] == [i["id"] for i in data["images"]]
    coco = COCO(write(tmp_path / "plain.json", content()))
    assert np.diff(file.first).tolist() == [len(coco.imgToAnns[int(i["id"])]) for i in data["images"]]


def test_a_text_that_two_images_may_mean_finds_neither(tmp_path):
    data = content()
    for name, image in zip(("1", "01", "2", "3"), data["images"]):
        for row in data["annotations"]:
            if row["image_id"] == image["id"]:
                row["image_id"] = 1
        image["id"] = name
    with pytest.raises(DensekitError, match="image_id 1 is not among the images"):
        open_coco(write(tmp_path / "a.json", data))


@pytest.mark.parametrize("empty", ["missing", None, []])
def test_a_missing_box_is_the_one_that_pycocotools_draws_around_the_segmentation(tmp_path, empty):
    polygons = [[5, 6, 25, 6, 25, 16, 5, 16], [30, 10, 40, 10, 40, 30, 30, 30]]
    runs = {"size": [40, 50], "counts": [5, 3, 30, 7, 1955]}
    compressed = masks.frPyObjects(runs, 40, 50)
    squeezed = {"size": [40, 50], "counts": compressed["counts"].decode()}
    data = content(annotations=3)
    for row, value in zip(data["annotations"], (polygons, runs, squeezed)):
        row |= {"segmentation": value, "iscrowd": 0, "bbox": empty}
        if empty == "missing":
            del row["bbox"]
    file = open_coco(write(tmp_path / "a.json", data))
    drawn = masks.merge(masks.frPyObjects(polygons, 40, 50))
    expected = {1000: masks.toBbox(drawn), 987: masks.toBbox(compressed), 974: masks.toBbox(compressed)}
    assert {file.annotation_id(i): file.boxes[i].tolist() for i in range(3)} == {
        key: box.tolist() for key, box in expected.items()
    }
    assert file.notes[0].endswith("3 annotations without a box have the one around their segmentation")


def test_run_lengths_may_be_whole_floats(tmp_path):
    data = content(annotations=4)
    data["annotations"][3]["segmentation"]["counts"] = [5.0, 3.0, 1992.0]
    from densekit.data.formats.coco.rle import segmentation_mask

    file = open_coco(write(tmp_path / "a.json", data))
    row = next(i for i in range(4) if file.crowd[i])
    coco = COCO(write(tmp_path / "plain.json", content(annotations=4)))
    assert np.array_equal(segmentation_mask(file.segmentation(row), 40, 50), coco.annToMask(coco.anns[961]))


def test_images_of_lvis_are_named_by_their_url(tmp_path):
    data = content()
    for number, image in enumerate(data["images"]):
        del image["file_name"]
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{number:012d}.jpg"
    file = open_coco(write(tmp_path / "a.json", data))
    assert list(file.file_names) == [f"val2017/{n:012d}.jpg" for n in range(4)]


def test_a_file_of_images_alone_opens_where_no_labels_are_needed(tmp_path):
    data = {"images": content()["images"]}
    path = write(tmp_path / "a.json", data)
    with pytest.raises(DensekitError, match="the key 'annotations' is missing"):
        open_coco(path)
    file, coco = open_coco(path, labelled=False), COCO(path)
    assert [file.image_id(i) for i in range(len(file))] == coco.getImgIds()
    assert (len(file.classes), file.max_objects) == (0, 0)


def test_notes_are_kept_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("densekit.data.formats.coco.file.CACHE_FROM", 0)
    data = content()
    references_as_text(data)
    path = write(tmp_path / "a.json", data)
    first = open_coco(path)
    monkeypatch.setattr("densekit.data.formats.coco.file.parse_coco", None)
    assert open_coco(path).notes == first.notes != ()


def test_a_file_that_is_odd_throughout_reads_as_json_does(tmp_path):
    """Positions of segmentations stay right on the slower way too."""
    data = content(annotations=40)
    floats(data)
    path = write(tmp_path / "a.json", data)
    file, rows = open_coco(path), json.loads(path.read_text())["annotations"]
    by_id = {int(r["id"]): r for r in rows}
    assert all(file.segmentation(i) == by_id[file.annotation_id(i)]["segmentation"] for i in range(40))
