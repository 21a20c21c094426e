"""What the tool prints and writes, its exit codes, configs with their anchors, and the quick check of a run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from densekit.config import load
from densekit.data.formats.coco.coco import coco
from densekit.doctor.boxes.anchors import Anchors, anchors_of, fitting_anchors
from densekit.doctor.boxes.boxes import SAME, alike, overlaps
from densekit.doctor.boxes.seen import seen_boxes
from densekit.doctor.coco.rows import read_rows
from densekit.doctor.examine import examine
from densekit.doctor.fixes.corrections import CORRECTIONS
from densekit.doctor.kinds import KINDS
from densekit.doctor.quick import near_duplicates, quick_check
from densekit.doctor.telling.page import page
from densekit.doctor.telling.report import as_json
from densekit.errors import DensekitError
from tests.doctor import test_annotations as plants
from tests.doctor.conftest import bad, found
from tests.tools import runs

ROOT = Path(__file__).resolve().parents[2]


def tool(*arguments):
    """Exit code of the tool, run in this process."""
    spec = importlib.util.spec_from_file_location("doctor_tool", ROOT / "tools" / "doctor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(list(map(str, arguments)))


def test_the_tool_writes_all_that_it_is_asked_for(planted, tmp_path, capsys):
    annotations = planted.plain(3)
    plants.zero(planted, annotations[0])
    plants.duplicate(planted, annotations[1])
    planted.json.write_text(json.dumps(planted.content))
    files = {name: tmp_path / f"out.{name}" for name in ("json", "html", "fixed.json")}
    options = ["--json", files["json"], "--html", files["html"], "--fix", files["fixed.json"]]
    assert tool(planted.json, "--images", planted.root / "images", *options) == 4
    assert "box_without_area" in capsys.readouterr().out
    report = json.loads(files["json"].read_text())
    kept = [d for d in report["defects"] if d["severity"] != "note"]
    assert [d["code"] for d in kept] == ["box_without_area", "near_duplicate"]
    assert [d["annotation_id"] for d in kept] == [annotations[0]["id"], 7000]
    assert all(d["file"] and d["message"] and d["remedy"] for d in report["defects"])
    assert report["counts"]["error"] == report["counts"]["warning"] == 1
    assert files["html"].read_text().count("data:image/jpeg;base64,") >= 2
    assert tool(files["fixed.json"], "--images", planted.root / "images") == 0


def test_the_exit_code_says_how_bad(planted):
    annotation = planted.plain(1)[0]
    for plant, code in ((None, 0), (plants.duplicate, 3), (plants.zero, 4)):
        if plant is not None:
            plant(planted, annotation)
        planted.json.write_text(json.dumps(planted.content))
        assert tool(planted.json) == code


def test_a_mistake_in_the_command_is_one_line(planted):
    assert "train.json" in runs.refused("doctor", planted.json.with_name("trian.json"))


def test_what_is_examined_is_not_written_over(planted):
    before = planted.json.read_bytes()
    for option in ("--json", "--html", "--fix"):
        with pytest.raises(DensekitError, match="examined file"):
            tool(planted.json, option, planted.json)
    with pytest.raises(DensekitError, match="written twice"):
        tool(planted.json, "--json", planted.root / "a", "--html", planted.root / "a")
    assert planted.json.read_bytes() == before


def test_the_page_needs_no_other_file_and_escapes_what_the_data_say(planted):
    planted.images[0]["file_name"] = "<script>alert(1)</script>.jpg"
    plants.outside(planted, planted.plain(2)[1])
    text = page(planted.examine())
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert text.count("<figure>") >= 1


def test_what_is_not_finite_is_valid_json(planted):
    plants.nan(planted, planted.plain(1)[0])
    json.dumps(as_json(planted.examine()), allow_nan=False)


def test_every_code_is_explained_and_each_correction_has_one():
    assert set(CORRECTIONS) <= set(KINDS)
    for code, kind in KINDS.items():
        assert re.fullmatch(r"[a-z0-9_]+", code)
        assert kind.why
        assert kind.training
        assert kind.remedy
        assert ("--fix" in kind.remedy) <= (code in CORRECTIONS), code


CONFIG = """
model:
  backbone: {{name: resnet18}}
  heads: {{boxes: {{name: faster_rcnn, neck: fpn, channels: 32, anchor_sizes: {sizes}}}}}
data:
  train: {{name: coco, images: "{root}/images", annotations: "{root}/annotations/train.json"}}
  val: {{name: coco, images: "{root}/images", annotations: "{root}/annotations/{val}.json"}}
  train_transforms: [{{name: Resize, long: 128}}]
  eval_transforms: [{{name: Resize, long: 128}}]
train: {{steps: 1, optimizer: {{lr: 1.0e-3}}}}
"""


def config(tmp_path, root, val="val", sizes="[[16], [24], [32], [48], [64]]"):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(root=root, val=val, sizes=sizes))
    return path


def test_a_config_is_examined_with_all_its_splits(clean, tmp_path):
    report = examine(config(tmp_path, clean), processes=1, shown=False)
    assert bad(report) == {}
    assert [s.name for s in report.splits] == ["train", "val"]
    assert report.images == 30


def test_the_same_images_in_two_splits_are_leakage(clean, tmp_path):
    report = examine(config(tmp_path, clean, val="train"), processes=1, shown=False)
    assert bad(report) == {"leak_identical": 24}


def test_splits_of_other_classes_are_told(planted, tmp_path):
    planted.categories[0]["name"] = "tringle"
    planted.json.write_text(json.dumps(planted.content))
    report = examine(config(tmp_path, planted.root), processes=1, shown=False)
    assert bad(report) == {"classes_differ": 1}
    assert "'tringle'" in found(report, "classes_differ")[0].message


def test_a_split_that_is_not_there_is_told(clean, tmp_path):
    report = examine(config(tmp_path, clean, val="vla"), processes=1, shown=False)
    assert bad(report) == {"file_unreadable": 1}


def test_anchors_that_do_not_fit_are_told_with_better_ones(clean, tmp_path):
    path = config(tmp_path, clean, sizes="[[200], [300], [400], [500], [600]]")
    report = examine(path, processes=1, shown=False)
    assert bad(report) == {"anchors_misfit": 1}
    suggested = re.search(r"anchor_sizes: (\[\[.*?\]\])", found(report, "anchors_misfit")[0].message)
    again = examine(config(tmp_path, clean, sizes=suggested[1]), processes=1, shown=False)
    assert bad(again) == {}


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_anchors_are_those_of_the_model(clean, tmp_path, head):
    path = config(tmp_path, clean)
    path.write_text(path.read_text().replace("faster_rcnn", head))
    anchors = anchors_of(load(path).model)
    assert anchors.strides == (4, 8, 16, 32, 64)
    assert anchors.sizes == ((16,), (24,), (32,), (48,), (64,))
    assert anchors.ratios == (0.5, 1, 2)


def test_an_object_like_an_anchor_overlaps_it_wholly():
    anchors = Anchors((8,), ((16.0,),), (1.0,))
    boxes = np.array([[32, 32, 48, 48], [0, 0, 32, 32], [36, 32, 52, 48]], np.float64)
    assert anchors.best_overlap(boxes) == pytest.approx([1, 0.25, 0.6], abs=0.01)
    assert fitting_anchors(boxes[:1], anchors).sizes == ((16.0,),)


def test_the_quick_check_counts_what_the_examination_finds(planted):
    for annotation in planted.plain(4)[1:]:
        plants.duplicate(planted, annotation)
        planted.annotations[-1]["id"] += annotation["id"]
    planted.categories.append({"id": 30, "name": "hexagon"})
    expected = len(found(planted.examine(), "near_duplicate"))
    data = coco(images=planted.root / "images", annotations=planted.json)
    assert near_duplicates(data.file) == expected == 3
    notes = quick_check(data)
    assert any("3 boxes" in line for line in notes)
    assert any("'hexagon'" in line for line in notes)
    assert any("no annotation" in line for line in notes)


def test_pairs_of_boxes_are_those_that_a_double_loop_finds():
    random = np.random.default_rng(0)
    boxes = np.concatenate([random.uniform(0, 12, (200, 2)), random.uniform(20, 24, (200, 2))], 1)
    groups = random.integers(0, 2, 200)
    expected = {
        (i, j)
        for j in range(200)
        for i in range(j)
        if groups[i] == groups[j] and overlaps(boxes[i : i + 1], boxes[j : j + 1])[0] >= SAME
    }
    assert len(expected) > 30
    assert {(i, j) for i, j, _ in alike(groups, boxes)} == expected


@pytest.mark.parametrize(("name", "zero", "twice"), [("train_raw", 1, 5), ("all_raw", 2, 8)])
def test_on_bccd_as_published_it_finds_what_is_wrong_and_nothing_false(real_data, tmp_path, name, zero, twice):
    report = examine(real_data / "bccd" / "annotations" / f"{name}.json", processes=1, shown=False)
    assert bad(report) == {"box_without_area": zero, "near_duplicate": twice}
    files = {Path(d.file).name for d in found(report, "box_without_area")}
    assert files <= {"BloodImage_00338.jpg", "BloodImage_00343.jpg"}


def test_the_nuclei_are_clean(real_data):
    assert bad(examine(real_data / "nuclei" / "annotations" / "val.json", processes=1, shown=False)) == {}
    assert (
        bad(examine(real_data / "nuclei" / "masks" / "val", real_data / "nuclei" / "images" / "val", shown=False)) == {}
    )


def test_anchors_fit_what_the_transforms_of_training_leave(clean, tmp_path):
    plain = config(tmp_path, clean)
    plain.write_text(
        plain.read_text().replace(
            "train_transforms: [{name: Resize, long: 128}]",
            "train_transforms: [{name: Mosaic, size: [100, 100]}, {name: ColorJitter}, "
            "{name: ScaleJitter, size: [400, 400], scale: [2.0, 2.0]}, {name: HorizontalFlip}, {name: CopyPaste}]",
        )
    )
    loaded, rows = load(plain), read_rows(clean / "annotations/train.json")
    boxes = seen_boxes(rows, loaded.data.train_transforms)
    # A square of 50 of the mosaic's 100 pixels becomes 400: eight times the annotated sides, where nothing is cut.
    sides = {round(float(s), 1) for a in rows.annotations if not a.crowd for s in a.box[2:]}
    whole = boxes[((boxes > 1) & (boxes < 399)).all(1)]
    assert len(whole) > 5
    for side in (whole[:, 2:] - whole[:, :2]).ravel():
        assert min(abs(side / 8 - s) for s in sides) < 0.06

    message = found(examine(plain, processes=1, shown=False), "anchors_misfit")[0].message
    pasted = yaml.safe_load("{" + message.partition("model.heads.boxes, to be pasted: ")[2] + "}")
    fitting = fitting_anchors(boxes, anchors_of(loaded.model))
    assert pasted == {"anchor_sizes": [list(s) for s in fitting.sizes], "anchor_ratios": list(fitting.ratios)}
