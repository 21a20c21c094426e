"""Several COCO jsons as one data set: as pycocotools reads one that was merged by hand."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from densekit.data.formats.coco.coco import coco
from densekit.data.formats.coco.coco_masks import coco_masks
from densekit.data.formats.coco.merge import open_annotations
from densekit.types import DensekitError
from tests.data.test_coco_file import assert_same_as_pycocotools, content, write


def parts(tmp_path):
    """One valid file cut in two by its images, and the whole."""
    whole = content(images=6, annotations=20)
    halves = []
    for images in (whole["images"][:2], whole["images"][2:]):
        ids = {i["id"] for i in images}
        rows = [a for a in whole["annotations"] if a["image_id"] in ids]
        halves.append({"info": "x" * 37, **whole, "images": images, "annotations": rows})
    return whole, halves


def paths(tmp_path, halves):
    return tuple(write(tmp_path / f"{name}.json", half) for name, half in zip("ab", halves))


def test_two_halves_read_as_the_whole(tmp_path):
    whole, halves = parts(tmp_path)
    file = open_annotations(paths(tmp_path, halves))
    assert_same_as_pycocotools(file, write(tmp_path / "whole.json", whole))
    assert file.notes == ()
    assert_same_as_pycocotools(pickle.loads(pickle.dumps(file)), tmp_path / "whole.json")


def test_jsons_of_the_same_images_are_joined_by_file_name(tmp_path):
    """One json a class, each with image ids of its own."""
    whole = content(images=5, annotations=30)
    files = []
    for k, category in enumerate(whole["categories"]):
        part = copy.deepcopy(whole)
        part["annotations"] = [a for a in part["annotations"] if a["category_id"] == category["id"]]
        part["categories"] = [category]
        for row in part["annotations"]:
            row["image_id"] += 100 * k
        for image in part["images"]:
            image["id"] += 100 * k
        part["images"] = part["images"][k:] + part["images"][:k]
        files.append(write(tmp_path / f"{k}.json", part))
    file, theirs = open_annotations(tuple(files)), COCO(write(tmp_path / "whole.json", whole))
    assert file.classes.ids == tuple(sorted(theirs.getCatIds()))
    for i in range(len(file)):
        span = file.annotations(i)
        own = {file.annotation_id(a): a for a in range(span.start, span.stop)}
        rows = theirs.imgToAnns[file.image_id(i)]
        assert set(own) == {r["id"] for r in rows}
        for row in rows:
            a = own[row["id"]]
            assert file.boxes[a].tolist() == row["bbox"]
            assert file.classes.ids[file.labels[a]] == row["category_id"]
            assert file.segmentation(a) == row["segmentation"]


def renumbered(half):
    """Image ids from 1 on and category ids in the order of the names, as each export has them."""
    half = copy.deepcopy(half)
    images = {image["id"]: i for i, image in enumerate(half["images"], 1)}
    names = sorted(c["name"] for c in half["categories"])
    categories = {c["id"]: names.index(c["name"]) + 1 for c in half["categories"]}
    for image in half["images"]:
        image["id"] = images[image["id"]]
    for category in half["categories"]:
        category["id"] = categories[category["id"]]
    for row in half["annotations"]:
        row |= {"image_id": images[row["image_id"]], "category_id": categories[row["category_id"]]}
    return half


def test_ids_that_clash_are_told_apart_and_categories_go_by_name(tmp_path):
    whole, halves = parts(tmp_path)
    file = open_annotations(paths(tmp_path, (halves[0], renumbered(halves[1]))))
    names = [i["file_name"] for i in whole["images"]]
    assert list(file.file_names) == names
    assert file.classes.ids == (3, 7, 90)
    alone = open_annotations(paths(tmp_path, [renumbered(half) for half in halves]))
    assert [alone.image_id(i) for i in range(6)] == ["a:1", "a:2", "b:1", "b:2", "b:3", "b:4"]
    theirs = COCO(write(tmp_path / "whole.json", whole))
    for merged in (file, alone):
        for i, image in enumerate(whole["images"]):
            classes = [merged.classes.names[k] for k in merged.labels[merged.annotations(i)]]
            assert classes == [theirs.cats[a["category_id"]]["name"] for a in theirs.imgToAnns[image["id"]]]
    assert "matched by name" in file.notes[0]
    assert "told apart" in alone.notes[0]


@pytest.mark.parametrize("build", [coco, coco_masks])
def test_data_sets_take_a_list_of_jsons_and_choose_classes(tmp_path, build):
    whole, halves = parts(tmp_path)
    for image in whole["images"]:
        path = tmp_path / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40)).save(path)
    write(tmp_path / "whole.json", whole)
    options = {"images": tmp_path / "images", "classes": ("cow", "dog")}
    one = build(annotations=tmp_path / "whole.json", **options)
    several = build(annotations=paths(tmp_path, halves), **options)
    assert several.classes == one.classes
    for i in range(6):
        first, second = one.sample(0, i), several.sample(0, i)
        for name in ("labels", "boxes", "crowd", "mask"):
            assert np.array_equal(getattr(first, name), getattr(second, name)) or getattr(first, name) is None


def test_what_cannot_be_one_data_set_is_refused(tmp_path):
    _, halves = parts(tmp_path)
    larger = copy.deepcopy(halves[0])
    larger["images"][0]["width"] = 51
    with pytest.raises(DensekitError, match=r"b.json: image .* is 51 x 40, in .*a.json it is 50 x 40"):
        open_annotations(paths(tmp_path, (halves[0], larger)))
    for several in ((), (tmp_path / "a.json", tmp_path / "." / "a.json")):
        with pytest.raises(DensekitError, match="several different ones"):
            open_annotations(several)
    halves[1]["annotations"][0]["bbox"] = [1, 2, 0, 4]
    with pytest.raises(DensekitError, match=r"b.json: annotation .*no area"):
        open_annotations(paths(tmp_path, halves))
    assert len(open_annotations(paths(tmp_path, halves), on_bad_box="drop").boxes) == 19
