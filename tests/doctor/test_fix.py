"""The corrected file: it opens, pycocotools loads it, nothing of the original is touched, every change is logged."""

from __future__ import annotations

import json
import math

import pytest

from densekit.data.formats.coco.coco import CocoDataset
from densekit.data.formats.coco.file import open_coco
from densekit.doctor.examine import examine
from densekit.doctor.fixes.fix import LEFT, write_fixed
from densekit.errors import DensekitError
from tests.doctor import test_annotations as annotation_plants
from tests.doctor import test_files as file_plants
from tests.doctor.conftest import bad
from tests.tools import runs


def fixed(planted):
    """Write the defects and the corrected file; return the latter's path, and the log."""
    report = planted.examine()
    target = planted.json.with_name("fixed.json")
    return target, write_fixed(report, target)


def load(planted, target):
    """Read the file as training and pycocotools do, every image and mask included."""
    from pycocotools.coco import COCO

    file = open_coco(target)
    data = CocoDataset(planted.root / "images", file=file)
    for index in range(len(data)):
        data.sample(0, index)
    coco = COCO(str(target))
    for annotation in coco.anns.values():
        coco.annToMask(annotation)
    return file


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("plant", annotation_plants.PLANTS, ids=lambda f: f.__name__)
def test_each_defect_of_an_annotation_is_corrected(planted, plant):
    annotation = planted.plain(1)[0]
    plant(planted, annotation)
    target, log = fixed(planted)
    assert log
    assert all(str(annotation["id"]) in line or "annotations[" in line for line in log)
    load(planted, target)
    assert bad(examine(target, planted.root / "images", processes=1, shown=False)) == {}


@pytest.mark.parametrize("plant", file_plants.FILES, ids=lambda f: f.__name__)
def test_each_bad_image_file_leaves_a_file_that_trains(planted, plant):
    plant(planted, planted.image_file(4))
    target, log = fixed(planted)
    assert log
    load(planted, target)
    left = bad(examine(target, planted.root / "images", processes=1, shown=False))
    assert set(left) <= {"image_extension", "image_orientation"}  # files are never touched


def test_everything_at_once_is_corrected_and_logged(planted):
    plants = list(annotation_plants.PLANTS)
    for plant, annotation in zip(plants, planted.plain(len(plants))):
        plant(planted, annotation)
    annotation_plants.same_id(planted, planted.annotations[0])
    planted.annotations[1]["id"] = "text"
    for a in planted.own(9):
        a["image_id"] = "text"
    planted.images[9]["id"] = "text"
    planted.images.append({**planted.images[0], "id": 555})
    planted.images.append({**planted.images[1], "file_name": "train/other.jpg"})
    planted.categories.append({"id": 31, "name": "star"})
    planted.categories.append(dict(planted.categories[0]))
    planted.content["extra"] = {"kept": True, "number": math.nan}
    report, target = planted.examine(), planted.json.with_name("fixed.json")
    with pytest.raises(DensekitError, match=r"3 of 26 images would go, 2 for image_id_twice.*--may-remove"):
        write_fixed(report, target)
    assert not target.exists()
    log = write_fixed(report, target, may_remove=0.2)
    load(planted, target)
    assert len(log) >= len(plants) + 5
    assert json.loads(target.read_text())["extra"] == {"kept": True, "number": None}
    assert bad(examine(target, planted.root / "images", processes=1, shown=False)) == {}
    assert target.with_suffix(".log").read_text().splitlines()[1:] == log


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_training_refuses_trains_once_it_is_corrected(planted, tmp_path):
    for plant, annotation in zip(annotation_plants.PLANTS, planted.plain(len(annotation_plants.PLANTS))):
        plant(planted, annotation)
    target, _ = fixed(planted)
    config = runs.write_config(tmp_path / "run.yaml", runs.config_of("detection", planted.root, steps=2, accumulate=1))
    assert str(planted.json) in runs.refused("train", config, "--out", tmp_path / "raw", "data.val=null")
    options = ("data.val=null", f"data.train.annotations={target}")
    code, printed = runs.call("train", config, "--out", tmp_path / "fixed", *options)
    assert code == 0, printed
    steps = [json.loads(line) for line in (tmp_path / "fixed" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2
    assert all(math.isfinite(step["loss"]) for step in steps)


def test_the_original_is_never_touched(planted):
    annotation_plants.zero(planted, planted.plain(1)[0])
    report = planted.examine()
    before = planted.json.read_bytes()
    with pytest.raises(DensekitError, match="examined file"):
        write_fixed(report, planted.json.parent / ".." / "annotations" / "train.json")
    write_fixed(report, planted.json.with_name("fixed.json"))
    assert planted.json.read_bytes() == before


def test_a_box_without_area_is_drawn_anew_around_its_mask(planted):
    annotation = planted.plain(1)[0]
    x, y, w, h = annotation["bbox"]
    annotation["bbox"] = [x, y, 0, h]
    target, _ = fixed(planted)
    (row,) = [a for a in json.loads(target.read_text())["annotations"] if a["id"] == annotation["id"]]
    assert row["bbox"] == pytest.approx([x, y, w, h], abs=2)


def test_a_clean_file_is_copied_without_changes(planted):
    target, log = fixed(planted)
    assert log == []
    assert json.loads(target.read_text()) == planted.content


def test_what_is_no_json_cannot_be_corrected(clean, tmp_path):
    report = examine(clean / "images", processes=1, shown=False)
    with pytest.raises(DensekitError, match="no COCO json"):
        write_fixed(report, tmp_path / "fixed.json")


def test_what_is_for_people_to_decide_is_left_and_logged(planted):
    planted.categories.append({"id": 5, "name": "hexagon"})
    _, log = fixed(planted)
    (line,) = log
    assert "category_id_twice" in line
    assert line.endswith(LEFT)
