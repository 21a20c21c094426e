"""Image files are found under other spellings of their names, where exactly one can be meant."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

import densekit.data.images.names as image_names
from densekit.data.formats.coco.coco import CocoDataset
from densekit.data.formats.coco.coco_masks import coco_masks
from densekit.data.formats.coco.file import open_coco
from densekit.data.images.names import other_spellings
from densekit.types import DensekitError

NFC, NFD = (unicodedata.normalize(form, "Gr\u00fcn_\u00e9.jpg") for form in ("NFC", "NFD"))


def folder(path, *names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    return path


@pytest.fixture(params=[1, 10**9], ids=["listed", "one by one"], autouse=True)
def looked_up(request, monkeypatch):
    monkeypatch.setattr(image_names, "_LISTED_FROM", request.param)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("train/0.jpg", "train\\0.jpg"),
        ("0.jpg", "images\\train\\0.jpg"),
        ("a b.jpg", "a%20b.jpg"),
        ("train/a b.jpg", "train%2Fa%20b.jpg"),
        (NFC, NFD),
        (NFD, NFC),
        ("0.JPG", "0.jpg"),
        ("Train/0.jpg", "train/0.JPEG"),
        ("0.jpg", "0"),
        ("0.5.jpg", "0.5"),
        ("0.jpg", "0.png"),
        ("0.jpg", "images/0.jpg"),
        ("train/0.jpg", "data/images/train/0.jpg"),
        ("train/0.jpg", "0.jpg"),
        ("2017/train/0.jpg", "train/0.jpg"),
        ("0.jpg", "./0.jpg "),
        ("100%.jpg", "100%25.jpg"),
    ],
)
def test_the_one_file_that_a_name_can_mean_is_found(tmp_path, file, name):
    folder(tmp_path, file, "other.jpg", ".0.jpg", ".git/0.jpg")
    assert other_spellings(tmp_path, [name, "other.jpg"]) == {0: file}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["0.jpg"], ["0.jpg"]),  # it is there
        (["a\\b.jpg", "a/b.jpg"], ["a\\b.jpg"]),  # there under this very name, as Linux allows
        (["train/0.jpg", "val/0.jpg"], ["0.jpg"]),  # two that it may be
        (["val/0.jpg"], ["train/0.jpg"]),  # another folder's
        (["0.jpg", "0.png"], ["0"]),
        (["A.jpg", "a.jpg"], ["A.JPG"]),
        (["0.jpg"], ["0.jpg", "train/0.jpg"]),  # that is another entry's
        (["0.jpg"], ["a/0.jpg", "b/0.jpg"]),  # both cannot be
        (["0.txt"], ["0"]),  # no image
        (["0.jpg"], ["1.jpg"]),
        (["passwd"], ["/etc/passwd"]),  # leads out of the folder
        (["0.jpg"], ["../0.jpg", "C:\\0.jpg", "", "\0", "a" * 5000]),
    ],
)
def test_what_is_there_what_is_doubtful_and_what_leads_out_is_left_alone(tmp_path, files, names):
    assert other_spellings(folder(tmp_path, *files), names) == {}


def test_of_two_folders_the_one_that_holds_all_names_is_meant(tmp_path):
    folder(tmp_path, *(f"train/{i}.jpg" for i in range(5)), *(f"val/{i}.jpg" for i in range(3)))
    names = [f"{i}.jpg" for i in range(5)]
    assert other_spellings(tmp_path, names) == {i: f"train/{name}" for i, name in enumerate(names)}
    assert other_spellings(tmp_path, names[:3]) == {}


@pytest.fixture
def windows(tmp_path):
    """Two images in a folder, which the json writes with backslashes; each is of one colour."""
    (tmp_path / "images" / "train").mkdir(parents=True)
    images, rows = [], []
    for i in range(2):
        Image.new("RGB", (12, 10), (100 * i, 7, 9)).save(tmp_path / "images" / "train" / f"{i}.png")
        images.append({"id": i, "file_name": f"train\\{i}.png", "width": 12, "height": 10})
        polygon = [[1, 1, 6, 1, 6, 6, 1, 6]]
        rows.append({"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": polygon})
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return tmp_path


def test_data_sets_read_the_files_and_say_so_once(windows):
    data = CocoDataset(windows / "images", file=open_coco(windows / "a.json"))
    masks = coco_masks(images=windows / "images", annotations=windows / "a.json")
    for built in (data, masks):
        (note,) = built.notes
        assert "2 of 2 file names" in note
        assert "'train\\\\0.png' is 'train/0.png'" in note
        assert [int(built.sample(0, i).image[0, 0, 0]) for i in range(2)] == [0, 100]
        assert built.path(1) == windows / "images" / "train" / "1.png"


def test_a_file_that_is_not_there_is_still_an_error_at_its_image(windows):
    (windows / "images" / "train" / "1.png").unlink()
    data = CocoDataset(windows / "images", file=open_coco(windows / "a.json"))
    assert np.array_equal(data.sample(0, 0).image[0, 0], [0, 7, 9])
    with pytest.raises(DensekitError, match="there is no such image"):
        data.sample(0, 1)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd"])
def test_a_name_that_leaves_the_folder_and_is_no_file_in_it_is_refused(windows, name):
    content = json.loads((windows / "a.json").read_text())
    content["images"][1]["file_name"] = name
    (windows / "a.json").write_text(json.dumps(content))
    with pytest.raises(DensekitError, match=f"file_name '{name}' leaves the image folder"):
        CocoDataset(windows / "images", file=open_coco(windows / "a.json"))
