"""The generated data set: deterministic, whole or not at all, and boxes, polygons and masks that agree."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from densekit.data.formats.coco.file import open_coco
from densekit.data.formats.shapes import CLASSES, generate_shapes
from densekit.types import DensekitError
from tests.tools import runs

SMALL = {"train": 30, "val": 3, "test": 3, "size": 64}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "set"
    assert generate_shapes(out, **SMALL)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(shapes, tmp_path):
    generate_shapes(tmp_path / "a", **SMALL)
    assert files(tmp_path / "a") == files(shapes)
    generate_shapes(tmp_path / "b", **SMALL, seed=1)
    theirs = files(tmp_path / "b")
    assert theirs.keys() == files(shapes).keys()
    assert theirs["images/train/000000.jpg"] != (shapes / "images/train/000000.jpg").read_bytes()


def test_splits_hold_different_images(shapes):
    images = [(shapes / f"images/{split}/000000.jpg").read_bytes() for split in ("train", "val", "test")]
    assert len(set(images)) == 3


def test_there_are_several_sizes_empty_images_crowds_overlaps_and_all_classes(shapes):
    file = open_coco(shapes / "annotations/train.json")
    assert len({tuple(s) for s in file.sizes}) >= 3
    assert file.crowd.sum() >= 2
    assert np.diff(file.first).min() == 0
    assert set(file.labels) == {0, 1, 2, 3}
    assert file.classes.ids == (2, 5, 7, 11)
    assert file.classes.names == tuple(CLASSES)


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_are_the_annotations_painted_in_order(shapes, split):
    coco = COCO(shapes / f"annotations/{split}.json")
    values = {c: i for i, c in enumerate(CLASSES.values(), 1)}
    covered = 0
    for image in coco.dataset["images"]:
        painted = np.zeros((image["height"], image["width"]), np.uint8)
        for row in (a for a in coco.dataset["annotations"] if a["image_id"] == image["id"]):
            region = coco.annToMask(row).astype(bool)
            covered += (painted[region] > 0).sum()
            painted[region] = values[row["category_id"]]
        name = Path(image["file_name"]).with_suffix(".png")
        assert np.array_equal(cv2.imread(str(shapes / "masks" / name), cv2.IMREAD_UNCHANGED), painted)
        assert cv2.imread(str(shapes / "images" / image["file_name"])).shape == (*painted.shape, 3)
    assert covered > 0


def test_boxes_and_areas_fit_the_segmentations(shapes):
    coco = COCO(shapes / "annotations/train.json")
    for row in coco.dataset["annotations"]:
        code = coco.annToRLE(row)
        assert rle.area(code) == row["area"]
        x, y, w, h = rle.toBbox(code)
        assert np.abs(np.array([x, y, x + w, y + h]) - _corners(row["bbox"])).max() <= 1.5


def _corners(box: list[float]) -> np.ndarray:
    return np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]])


def test_a_folder_with_the_same_set_is_left_alone_and_any_other_is_refused(shapes, tmp_path):
    before = (shapes / "annotations/train.json").stat().st_mtime_ns
    assert not generate_shapes(shapes, **SMALL)
    assert (shapes / "annotations/train.json").stat().st_mtime_ns == before
    with pytest.raises(DensekitError, match="another generated data set"):
        generate_shapes(shapes, **SMALL, seed=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DensekitError, match="something else"):
        generate_shapes(tmp_path / "mine", **SMALL)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cv2, "imwrite", fail)
    with pytest.raises(DensekitError, match="No space left"):
        generate_shapes(tmp_path / "out", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"train": 0}, {"size": 8}, {"objects": 0}])
def test_numbers_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(DensekitError, match="must be at least"):
        generate_shapes(tmp_path / "out", **options)


def test_the_tool_makes_the_set_and_explains_itself(tmp_path):
    sizes = ["--train", "2", "--val", "1", "--test", "1", "--size", "48"]
    code, said = runs.call("generate_shapes", tmp_path / "s", *sizes)
    assert code == 0, said
    assert len(json.loads((tmp_path / "s/annotations/train.json").read_text())["images"]) == 2
    runs.refused("generate_shapes", tmp_path / "s", "--seed", "4")
