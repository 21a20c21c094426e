"""Sets that teach nothing, or something false: told as a whole, named, and never cut into false boxes."""

from __future__ import annotations

import numpy as np
import pytest

from densekit.doctor.boxes.layouts import judge_layout
from densekit.doctor.fixes.fix import corrected
from tests.doctor.conftest import bad, found


def drawn(seed, count, size=(480, 640), sides=(10, 120)):
    """[n, 4] x, y, width, height inside images of [n, 2] (height, width)."""
    random = np.random.default_rng(seed)
    wh = random.uniform(*sides, (count, 2))
    sizes = np.tile(np.array(size, float), (count, 1))
    return np.concatenate((random.random((count, 2)) * (sizes[:, ::-1] - wh), wh), 1), sizes


def corners(boxes):
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)


def centres(boxes):
    return np.concatenate((boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]), 1)


def turned(boxes):
    return boxes[:, [1, 0, 3, 2]]


def parts(boxes, sizes, whole=1):
    return whole * boxes / np.tile(sizes[:, ::-1], 2)


WAYS = {
    "x1, y1, x2, y2 (corners) in pixels": lambda b, s: corners(b),
    "x, y of the centre, width, height in pixels": lambda b, s: centres(b),
    "y, x, height, width in pixels": lambda b, s: turned(b),
    "y1, x1, y2, x2 in pixels": lambda b, s: turned(corners(b)),
    "x, y, width, height in parts of the image (0..1)": parts,
    "x1, y1, x2, y2 (corners) in parts of the image (0..1)": lambda b, s: parts(corners(b), s),
    "x, y of the centre, width, height in parts of the image (0..1)": lambda b, s: parts(centres(b), s),
    "x, y, width, height in thousandths of the image": lambda b, s: parts(b, s, 1000),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("words", WAYS)
def test_a_set_that_is_written_in_another_way_is_recognised_and_read(words, seed):
    boxes, sizes = drawn(seed, 300)
    verdict = judge_layout(WAYS[words](boxes, sizes), sizes)
    assert [layout.words for layout in verdict.layouts] == [words]
    np.testing.assert_allclose(verdict.layouts[0].as_coco(WAYS[words](boxes, sizes), sizes), boxes)


@pytest.mark.parametrize(
    ("count", "sides"), [(1, (10, 120)), (5, (10, 120)), (300, (10, 120)), (300, (300, 470)), (3000, (2, 9))]
)
def test_a_set_that_is_written_as_coco_does_is_not_suspected(count, sides):
    for seed in range(5):
        boxes, sizes = drawn(seed, count, sides=sides)
        assert judge_layout(boxes, sizes) is None
        boxes[: count // 50, 0] = 635  # a few reach out of their images
        assert judge_layout(boxes, sizes) is None
        unclipped = boxes - np.array([8, 8, 0, 0])
        assert judge_layout(unclipped, sizes) is None


def test_boxes_of_larger_images_are_no_way_of_writing():
    boxes, sizes = drawn(0, 100)
    verdict = judge_layout(2 * boxes, sizes)
    assert verdict.layouts == ()
    assert verdict.reach == pytest.approx((2, 2), abs=0.1)


def test_boxes_in_the_corner_of_large_images_may_be_percents():
    boxes, sizes = drawn(1, 100)
    verdict = judge_layout(parts(boxes, sizes, 100), sizes)
    assert not verdict.sure
    assert verdict.layouts[0].words == "x, y, width, height in percent of the image"


def test_masks_show_the_way_where_boxes_alone_do_not():
    boxes, sizes = drawn(0, 20, size=(500, 500), sides=(10, 14))
    middle = np.clip(boxes, 100, 300)
    middle[:, 2:] = boxes[:, 2:]
    assert judge_layout(centres(middle), sizes) is None
    assert [layout.words for layout in judge_layout(centres(middle), sizes, middle).layouts] == [
        "x, y of the centre, width, height in pixels"
    ]
    assert judge_layout(corners(boxes), sizes) is not None
    assert judge_layout(corners(boxes), sizes, corners(boxes)) is None, "the masks lie where the boxes say"


def rewrite(planted, way):
    """Write all boxes in another way; without masks, which would lie right."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in planted.images}
    for a in planted.annotations:
        a.pop("segmentation")
        a["iscrowd"] = 0
        box, size = np.array([a["bbox"]], float), np.array([sizes[a["image_id"]]], float)
        a["bbox"] = way(box, size)[0].tolist()


@pytest.mark.parametrize("words", [w for w in WAYS if w.startswith("x") and "thousandths" not in w])
def test_a_json_in_another_way_is_one_error_and_fix_reads_it(planted, words):
    before = {a["id"]: a["bbox"] for a in planted.annotations}
    rewrite(planted, WAYS[words])
    report = planted.examine()
    assert bad(report)["box_layout"] == 1
    assert not {"box_partly_outside", "box_outside", "box_tiny", "area_against_mask"} & {d.code for d in report.defects}
    assert words in found(report, "box_layout")[0].message
    content, _ = corrected(report.splits[0], report.defects)
    after = {a["id"]: a["bbox"] for a in content["annotations"]}
    assert after.keys() <= before.keys()
    assert len(after) > 0.9 * len(before)  # but for boxes that are told as twice around one object
    for annotation, box in after.items():
        np.testing.assert_allclose(box, before[annotation], atol=1e-4)


def test_boxes_that_fix_cannot_read_stay_as_they_are(planted):
    rewrite(planted, lambda b, s: 2 * b)
    before = {a["id"]: a["bbox"] for a in planted.annotations}
    report = planted.examine()
    assert bad(report) == {"boxes_of_other_images": 1}
    content, log = corrected(report.splits[0], report.defects)
    assert {a["id"]: a["bbox"] for a in content["annotations"]} == before
    assert any("boxes_of_other_images" in line for line in log)


def test_boxes_without_area_are_one_error_and_are_not_removed(planted):
    rewrite(planted, lambda b, s: b * [1, 1, 0, 0])
    report = planted.examine()
    assert bad(report) == {"boxes_without_area": 1}
    content, _ = corrected(report.splits[0], report.defects)
    assert len(content["annotations"]) == len(planted.annotations)


def test_crowds_alone_are_an_error_and_a_class_of_crowds_a_warning(planted):
    rewrite(planted, lambda b, s: b)
    first = planted.categories[0]
    for a in planted.annotations:
        a["iscrowd"] = int(a["category_id"] == first["id"])
    report = planted.examine()
    assert bad(report)["class_of_crowds"] == 1
    assert repr(first["name"]) in found(report, "class_of_crowds")[0].message
    for a in planted.annotations:
        a["iscrowd"] = 1
    report = planted.examine()
    assert bad(report)["crowds_alone"] == 1
    assert "class_of_crowds" not in bad(report)
    planted.annotations[0]["iscrowd"] = 0
    assert bad(planted.examine())["crowds_mostly"] == 1


@pytest.mark.parametrize(
    ("area", "words"),
    [
        (lambda a, size: 1.0, "is 1,"),
        (lambda a, size: 0, "is 0,"),
        (lambda a, size: a["bbox"][2] * a["bbox"][3] / 4, "0.25 times"),
        (lambda a, size: a["bbox"][2] * a["bbox"][3] / size, "parts of their image"),
    ],
)
def test_areas_that_a_converter_filled_in_are_one_warning_that_fix_corrects(planted, area, words):
    rewrite(planted, lambda b, s: b)
    sizes = {i["id"]: i["height"] * i["width"] for i in planted.images}
    for a in planted.annotations:
        a["area"] = area(a, sizes[a["image_id"]])
    report = planted.examine()
    assert bad(report)["area_of_set"] == 1
    assert words in found(report, "area_of_set")[0].message
    content, _ = corrected(report.splits[0], report.defects)
    for a in content["annotations"]:
        assert a["area"] == pytest.approx(a["bbox"][2] * a["bbox"][3])


def test_one_area_for_all_is_told_beside_masks_too(planted):
    for a in planted.annotations:
        a["area"] = 1.0
    assert bad(planted.examine()) == {"area_of_set": 1}


def test_a_file_without_annotations_is_one_warning(planted):
    planted.annotations.clear()
    report = planted.examine()
    assert [d.code for d in report.defects if d.code not in ("category_id_gaps", "category_id_zero")] == ["no_objects"]


def test_polygons_in_parts_of_the_image_are_one_error_that_fix_corrects(planted):
    sizes = {i["id"]: (i["width"], i["height"]) for i in planted.images}
    planted.annotations[:] = [a for a in planted.annotations if isinstance(a["segmentation"], list)]
    before = {a["id"]: a["segmentation"] for a in planted.annotations}
    for a in planted.annotations:
        width, height = sizes[a["image_id"]]
        a["segmentation"] = [[v / (height if i % 2 else width) for i, v in enumerate(p)] for p in a["segmentation"]]
    report = planted.examine()
    assert bad(report) == {"segmentations_in_parts": 1}
    content, _ = corrected(report.splits[0], report.defects)
    for a in content["annotations"]:
        for polygon, was in zip(a["segmentation"], before[a["id"]], strict=True):
            np.testing.assert_allclose(polygon, was, atol=1e-4)
