"""Defects of the json: each planted one is found once, with the file and the annotation that it is about."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from densekit.data.formats.coco.rle import extent
from densekit.doctor.examine import examine
from densekit.doctor.fixes.masks import run_lengths_of
from tests.doctor.conftest import bad, found


def box(annotation, *values):
    annotation["bbox"] = list(values)


def nan(p, a):
    box(a, 5, math.nan, 6, 7)


def infinite(p, a):
    box(a, 5, 5, math.inf, 7)


def zero(p, a):
    box(a, 5, 5, 0, 7)


def negative(p, a):
    x, y, w, h = a["bbox"]
    box(a, x + w, y + h, -w, -h)


def outside(p, a):
    box(a, 500, 500, 10, 10)


def partly(p, a):
    x, y, w, h = a["bbox"]
    box(a, -5, y, x + w + 5, h)
    a["segmentation"] = []
    a["area"] = (x + w + 5) * h


def off_by_one(p, a):
    x, y, w, h = a["bbox"]
    box(a, -1, y, x + w + 1, h)
    a["segmentation"] = []
    a["area"] = (x + w + 1) * h


def unknown_image(p, a):
    a["image_id"] = 99999


def unknown_category(p, a):
    a["category_id"] = 99


def same_id(p, a):
    a["id"] = p.annotations[-1]["id"]


def wrong_area(p, a):
    a["area"] = 3 * a["area"] + 100


def area_without_mask(p, a):
    a["segmentation"] = []
    a["area"] = 10 * a["bbox"][2] * a["bbox"][3]


def short_polygon(p, a):
    a["segmentation"] = [[5, 5, 20, 20]]


def odd_polygon(p, a):
    a["segmentation"] = [[5, 5, 20, 20, 5, 30, 9]]


def rle_of_another_size(p, a):
    a["segmentation"] = {"size": [10, 10], "counts": [0, 100]}


def rle_too_short(p, a):
    image = next(i for i in p.images if i["id"] == a["image_id"])
    a["segmentation"] = {"size": [image["height"], image["width"]], "counts": [3, 4]}


def crowd_polygon(p, a):
    a["iscrowd"] = 1


def crowd_flag(p, a):
    a["iscrowd"] = 7


def box_elsewhere(p, a):
    x, y = a["bbox"][:2]
    box(a, 1 if x > 30 else 45, 1 if y > 30 else 45, 10, 10)


def duplicate(p, a):
    x, y, w, h = a["bbox"]
    p.annotations.append({**a, "id": 7000, "bbox": [x + 0.3, y, w, h]})


def text_box(p, a):
    a["bbox"] = ["one", 2, 3, 4]


def no_category(p, a):
    del a["category_id"]


PLANTS = {
    nan: "box_not_finite",
    infinite: "box_not_finite",
    zero: "box_without_area",
    negative: "box_negative",
    outside: "box_outside",
    partly: "box_partly_outside",
    off_by_one: "box_off_by_one",
    unknown_image: "unknown_image",
    unknown_category: "unknown_category",
    wrong_area: "area_against_mask",
    area_without_mask: "area_against_mask",
    short_polygon: "polygon_too_short",
    odd_polygon: "segmentation_invalid",
    rle_of_another_size: "rle_size",
    rle_too_short: "segmentation_invalid",
    crowd_polygon: "crowd_without_rle",
    crowd_flag: "crowd_flag",
    box_elsewhere: "box_against_mask",
    text_box: "row_malformed",
    no_category: "row_malformed",
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda f: f.__name__)
def test_a_planted_defect_is_found_once_at_its_annotation(planted, plant):
    annotation = planted.plain(1)[0]
    plant(planted, annotation)
    report = planted.examine()
    assert bad(report) == {PLANTS[plant]: 1}
    (defect,) = found(report, PLANTS[plant])
    assert defect.annotation_id == annotation["id"]
    assert defect.kind.why
    assert defect.kind.remedy


def test_all_of_them_at_once_are_found_once_each(planted):
    plants = list(PLANTS)
    annotations = planted.plain(len(plants))
    assert len(annotations) == len(plants)
    for plant, annotation in zip(plants, annotations):
        plant(planted, annotation)
    report = planted.examine()
    where = {(d.code, d.annotation_id) for d in report.defects if d.severity != "note"}
    assert where == {(PLANTS[p], a["id"]) for p, a in zip(plants, annotations)}
    assert sum(bad(report).values()) == len(plants)
    assert report.exit_code == 4


@pytest.mark.parametrize(("plant", "code"), [(duplicate, "near_duplicate"), (same_id, "annotation_id_twice")])
def test_of_two_annotations_the_later_is_told(planted, plant, code):
    annotation = planted.plain(1)[0]
    plant(planted, annotation)
    report = planted.examine()
    assert bad(report) == {code: 1}
    assert found(report, code)[0].annotation_id == planted.annotations[-1]["id"]


def test_a_clean_set_has_nothing_but_notes(clean):
    for split in ("train", "val", "test"):
        report = examine(clean / "annotations" / f"{split}.json", processes=1, shown=False)
        assert bad(report) == {}
        assert report.exit_code == 0
    report = examine(clean, processes=1, shown=False)
    assert bad(report) == {}
    assert report.images == 36


def test_ids_of_images_and_categories_that_occur_twice(planted):
    planted.images[3]["id"] = planted.images[2]["id"]
    planted.annotations[:] = [a for a in planted.annotations if any(i["id"] == a["image_id"] for i in planted.images)]
    planted.annotations[:] = [a for a in planted.annotations if a["image_id"] != planted.images[2]["id"]]
    planted.categories.append({"id": 5, "name": "hexagon"})
    assert bad(planted.examine()) == {"image_id_twice": 1, "category_id_twice": 1}


def test_names_that_differ_by_case_or_blanks_are_told(planted):
    planted.categories.append({"id": 30, "name": " Cir cle"})
    planted.categories.append({"id": 31, "name": "star"})
    assert bad(planted.examine()) == {"category_name_similar": 1, "category_name_twice": 1}


def test_ids_of_another_kind_than_most_are_told(planted):
    planted.plain(1)[0]["id"] = "seven"  # of annotations COCO's own tools take both kinds
    for a in planted.own(2):
        a["image_id"] = "three"
    planted.annotations[:] = [a for a in planted.annotations if a["image_id"] != planted.images[2]["id"]]
    planted.images[2]["id"] = "three"
    assert bad(planted.examine()) == {"id_kind": 1}


def test_an_image_that_two_entries_name(planted):
    planted.images.append({**planted.images[0], "id": 555})
    assert bad(planted.examine()) == {"file_name_twice": 1}


def test_zero_as_an_id_gaps_and_empty_images_are_told_and_not_condemned(planted):
    planted.categories.append({"id": 0, "name": "hexagon"})
    gone = planted.images[1]["id"]
    planted.annotations[:] = [a for a in planted.annotations if a["image_id"] != gone]
    report = planted.examine()
    assert bad(report) == {}
    assert report.exit_code == 0
    assert len(found(report, "category_id_zero")) == len(found(report, "category_id_gaps")) == 1
    assert any(d.file.endswith(planted.images[1]["file_name"]) for d in found(report, "image_no_annotation"))
    assert found(report, "class_without_objects")[0].message.startswith("class 'hexagon'")


def test_imbalance_is_a_note(planted):
    first = planted.plain(1)[0]
    for number in range(400):
        planted.annotations.append({**first, "id": 9000 + number, "bbox": [number % 20 * 2, number // 20 * 2, 3, 3]})
        planted.annotations[-1] |= {"segmentation": [], "area": 9}
    notes = found(planted.examine(), "class_imbalance")
    assert len(notes) == 1
    assert notes[0].severity == "note"


def test_two_objects_that_fill_the_same_box_are_no_duplicates(planted):
    annotation = planted.plain(1)[0]
    x, y, w, h = annotation["bbox"] = [10, 10, 40, 40]
    annotation |= {"segmentation": [[x, y, x + w, y, x, y + h]], "area": 800}
    planted.annotations.append({**annotation, "id": 7000, "segmentation": [[x + w, y, x + w, y + h, x, y + h]]})
    assert bad(planted.examine()) == {}
    for a in (annotation, planted.annotations[-1]):
        a |= {"segmentation": [], "area": 1600}
    assert bad(planted.examine()) == {"near_duplicate": 1}


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"images": 3}', "[" * 5000, "NaN", '{"images": [1, null]}'])
def test_a_file_that_is_no_coco_json_is_survived_and_told(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    report = examine(path, processes=1, shown=False)
    assert report.exit_code == 4
    assert {"file_unreadable", "row_malformed"} >= set(bad(report))


def test_mutated_rows_are_survived(planted):
    random = np.random.default_rng(0)
    values = [
        None,
        "x",
        -1,
        1e400,
        2**70,
        [],
        {},
        True,
        math.nan,
        [[[]]],
        {"size": [1, 1], "counts": "~~"},
        "\0",
        "../x",
    ]
    original = json.dumps(planted.content)
    for _ in range(60):
        content = json.loads(original)
        for key in ("images", "annotations", "categories"):
            rows = content[key]
            row = rows[int(random.integers(len(rows)))]
            row[str(random.choice(list(row)))] = values[int(random.integers(len(values)))]
        content["images"] = content["images"][:3]  # files are not what is tried here
        planted.json.write_text(json.dumps(content))
        report = examine(planted.json, planted.root / "images", processes=1, shown=False)
        assert report.exit_code in (0, 3, 4)


def test_the_extent_of_runs_is_that_of_their_mask():
    random = np.random.default_rng(0)
    for _ in range(50):
        height, width = random.integers(1, 9, 2).tolist()
        mask = random.random((height, width)) < random.choice([0.05, 0.3, 0.9])
        around = extent(run_lengths_of(mask), height)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            size = (columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
            assert around == (columns[0], rows[0], *size)
        else:
            assert around is None


def test_what_only_training_refuses_is_told_too(planted):
    planted.content["info"]["score"] = float("nan")
    report = planted.examine()
    assert bad(report) == {"refused_by_training": 1}
    assert "not valid JSON" in report.defects[0].message
