"""What ``--fix`` repairs before it removes: values come from the files, from pycocotools, Pillow and numpy."""

from __future__ import annotations

import json
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from densekit.data.formats.coco.file import open_coco
from densekit.doctor.examine import examine
from densekit.doctor.fixes.fix import write_fixed
from densekit.errors import DensekitError
from tests.doctor.conftest import bad

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def fixed(planted, **options):
    """The corrected content; it opens, and nothing worse than a note is left in it."""
    report = planted.examine()
    target = planted.json.with_name("fixed.json")
    write_fixed(report, target, **options)
    open_coco(target)
    assert bad(examine(target, planted.root / "images", processes=1, shown=False)) == {}
    return json.loads(target.read_text())


def original(clean):
    return json.loads((clean / "annotations" / "train.json").read_text())


@pytest.mark.parametrize("value", ["missing", None, 0, -1, "wide", 0.5, [64]])
def test_sizes_that_are_missing_or_none_come_from_the_files(planted, clean, value):
    for image in planted.images:
        for side in ("width", "height"):
            image[side] = value
            if value == "missing":
                del image[side]
    report = planted.examine()
    assert bad(report) == {"size_missing": 24}
    with pytest.raises(DensekitError, match="--fix"):
        open_coco(planted.json)
    content = fixed(planted)
    assert content == original(clean)
    for image in content["images"]:
        assert Image.open(planted.root / "images" / image["file_name"]).size == (image["width"], image["height"])


def test_a_size_that_is_missing_is_the_one_that_a_viewer_shows(planted):
    image = planted.images[4]
    exif = Image.Exif()
    exif[0x0112] = 6
    path = planted.image_file(4)
    with Image.open(path) as picture:
        pixels = np.asarray(picture)[:40].copy()
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    planted.annotations[:] = [a for a in planted.annotations if a["image_id"] != image["id"]]
    del image["width"]
    report = planted.examine()
    write_fixed(report, planted.json.with_name("fixed.json"))
    row = json.loads(planted.json.with_name("fixed.json").read_text())["images"][4]
    assert (row["width"], row["height"]) == (40, pixels.shape[1])


def text_references(p):
    for a in p.annotations:
        a["image_id"] = str(a["image_id"])


def text_images(p):
    for i in p.images:
        i["id"] = str(i["id"])


def some_text_images(p):
    for i in p.images[::3]:
        i["id"] = str(i["id"])


def text_categories(p):
    for a in p.annotations:
        a["category_id"] = f"{a['category_id']}.0"
    for c in p.categories:
        c["id"] = str(c["id"])


def text_everywhere(p):
    for i in p.images:
        i |= {"width": str(i["width"]), "height": str(i["height"])}
    for a in p.annotations:
        a |= {"bbox": [str(v) for v in a["bbox"]], "area": str(a["area"]), "iscrowd": str(a["iscrowd"])}


@pytest.mark.parametrize("change", [text_references, some_text_images, text_categories, text_everywhere])
def test_numbers_as_text_become_the_numbers(planted, clean, change):
    change(planted)
    report = planted.examine()
    assert set(bad(report)) == {"number_as_text"}
    assert fixed(planted) == original(clean)


def test_references_take_the_kind_of_the_images_ids(planted, clean):
    text_images(planted)
    content = fixed(planted)
    assert {a["image_id"] for a in content["annotations"]} <= {i["id"] for i in content["images"]}
    assert [a["image_id"] for a in content["annotations"]] == [
        str(a["image_id"]) for a in original(clean)["annotations"]
    ]


def test_the_log_tells_text_from_number(planted):
    first = planted.annotations[0]["image_id"]
    text_references(planted)
    report = planted.examine()
    (line, *_) = [d.message for d in report.defects if d.code == "number_as_text"]
    assert f"image_id is '{first}', read as {first}" in line


@pytest.mark.parametrize("value", [[], None, [1, 2, 3], "box", ["x", 1, 2, 3]])
def test_boxes_that_are_missing_or_none_are_drawn_around_their_segmentation(planted, value):
    expected = {}
    for a in planted.annotations:
        image = next(i for i in planted.images if i["id"] == a["image_id"])
        runs = masks.frPyObjects(a["segmentation"], image["height"], image["width"])
        expected[a["id"]] = masks.toBbox(masks.merge(runs) if isinstance(runs, list) else runs)
        a["bbox"] = value
    content = fixed(planted)
    assert len(content["annotations"]) == len(expected)
    for a in content["annotations"]:  # around points, not pixels, which the tip of a star does not fill
        assert a["bbox"] == pytest.approx(expected[a["id"]].tolist(), abs=2)


def backslashes(name):
    return name.replace("/", "\\")


def url(name):
    return name.replace("/", "%2F")


def no_ending(name):
    return name.removesuffix(".jpg")


def upper_case(name):
    return name.replace(".jpg", ".JPG")


def no_folder(name):
    return name.rpartition("/")[2]


def another_folder(name):
    return f"data/images/{name}"


def another_machine(name):
    return f"C:\\Users\\me\\images\\{name}"


def address(name):
    return f"http://127.0.0.1/data/{name}"


def climbing(name):
    return f"../images/{name}"


SPELLINGS = [backslashes, url, no_ending, upper_case, no_folder, another_folder]


@pytest.mark.parametrize("spell", [*SPELLINGS, another_machine, address, climbing])
def test_names_in_another_spelling_become_those_of_the_files(planted, clean, spell):
    for image in planted.images:
        image["file_name"] = spell(image["file_name"])
    report = planted.examine()
    assert set(bad(report)) == {"image_name_differs"}
    content = fixed(planted)
    assert [i["file_name"] for i in content["images"]] == [i["file_name"] for i in original(clean)["images"]]
    assert len(content["annotations"]) == len(planted.annotations)


def test_names_in_another_unicode_form_become_those_of_the_files(planted):
    for number, image in enumerate(planted.images):
        name = unicodedata.normalize("NFD", f"train/Gr\u00fcn {number}.jpg")
        planted.image_file(number).rename(planted.root / "images" / name)
        image["file_name"] = unicodedata.normalize("NFC", name)
    content = fixed(planted)
    assert all(unicodedata.is_normalized("NFD", image["file_name"]) for image in content["images"])
    assert len(content["images"]) == 24


def test_the_folder_is_found_by_names_in_another_spelling_too(planted):
    for image in planted.images:
        image["file_name"] = backslashes(image["file_name"])
    planted.json.write_text(json.dumps(planted.content))
    assert examine(planted.json, processes=1, shown=False).splits[0].rows.folder == planted.root / "images"


def resize(planted, factor):
    for index, image in enumerate(planted.images):
        with Image.open(planted.image_file(index)) as picture:
            small = picture.resize((round(image["width"] * factor), round(image["height"] * factor)))
        small.save(planted.image_file(index))


@pytest.mark.parametrize("factor", [0.5, 2])
def test_objects_follow_images_that_were_resized_after_they_were_annotated(planted, clean, factor):
    for a in planted.plain(1):  # one that shows which size is meant
        image = next(i for i in planted.images if i["id"] == a["image_id"])
        a |= {"bbox": [0, 0, image["width"], image["height"]], "area": image["width"] * image["height"]}
        a["segmentation"] = [[0, 0, image["width"], 0, image["width"], image["height"], 0, image["height"]]]
    resize(planted, factor)
    report, target = planted.examine(), planted.json.with_name("fixed.json")
    write_fixed(report, target)
    content, before = json.loads(target.read_text()), planted.content
    assert len(content["annotations"]) >= 0.9 * len(before["annotations"])
    for index, image in enumerate(content["images"]):
        assert Image.open(planted.image_file(index)).size == (image["width"], image["height"])
    boxes = {a["id"]: a["bbox"] for a in before["annotations"] if not a["iscrowd"]}
    for a in content["annotations"]:
        if a["id"] in boxes and min(boxes[a["id"]][2:]) > 8:
            assert a["bbox"] == pytest.approx((np.array(boxes[a["id"]]) * factor).tolist(), abs=1)
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    for a in crowds:
        size = next(i for i in content["images"] if i["id"] == a["image_id"])
        assert a["segmentation"]["size"] == [size["height"], size["width"]]


def test_a_size_that_is_wrong_in_the_json_alone_is_corrected_and_boxes_stay(planted, clean):
    for image in planted.images:
        image |= {"width": image["width"] // 2, "height": image["height"] // 2}
    planted.annotations[:] = [a for a in planted.annotations if not a["iscrowd"]]
    content = fixed(planted)
    assert content["images"] == original(clean)["images"]
    assert content["annotations"] == planted.annotations


def test_run_lengths_whose_size_is_turned_keep_their_mask(planted):
    for index, image in enumerate(planted.images):
        pixels = cv2.imread(str(planted.image_file(index)))[:48, :64]
        cv2.imwrite(str(planted.image_file(index)), pixels)
        image |= {"width": pixels.shape[1], "height": pixels.shape[0]}
    image = planted.images[0]
    mask = np.zeros((image["height"], image["width"]), np.uint8, "F")
    mask[5:20, 8:30] = 1
    runs = masks.encode(mask)
    row = {"id": 1, "image_id": image["id"], "category_id": planted.categories[0]["id"], "bbox": [8, 5, 22, 15]}
    row |= {"area": 330, "iscrowd": 0, "segmentation": {"size": runs["size"][::-1], "counts": runs["counts"].decode()}}
    planted.annotations[:] = [row]
    report, target = planted.examine(), planted.json.with_name("fixed.json")
    write_fixed(report, target)
    (found,) = json.loads(target.read_text())["annotations"]
    assert np.array_equal(masks.decode(found["segmentation"]), mask)


@pytest.mark.parametrize(
    "points",
    [[8, 5, 30, 5, 30, 20, 8, 20], [[8, 5], [30, 5], [30, 20], [8, 20]], [[[8, 5], [30, 5], [30, 20], [8, 20]]]],
)
def test_points_in_other_brackets_are_the_same_polygon(planted, points):
    row = {"id": 1, "image_id": planted.images[0]["id"], "category_id": planted.categories[0]["id"]}
    row |= {"bbox": [8, 5, 22, 15], "area": 330, "iscrowd": 0, "segmentation": points}
    planted.annotations[:] = [row]
    content = fixed(planted)
    assert content["annotations"][0]["segmentation"] == [[8, 5, 30, 5, 30, 20, 8, 20]]


@pytest.mark.parametrize("part", ["file_name", "name", "stem"])
def test_a_reference_by_file_name_finds_its_image(planted, clean, part):
    names = {i["id"]: i["file_name"] for i in planted.images}
    for a in planted.annotations:
        name = names[a["image_id"]]
        own = name.rpartition("/")[2]
        a["image_id"] = {"file_name": name, "name": own, "stem": f"x{own}"[1:].removesuffix(".jpg")}[part]
    if part == "stem":  # written numbers would be ids
        for i in planted.images:
            old = planted.root / "images" / i["file_name"]
            i["file_name"] = i["file_name"].replace("train/", "train/img")
            old.rename(planted.root / "images" / i["file_name"])
        for a in planted.annotations:
            a["image_id"] = f"img{a['image_id']}"
    content = fixed(planted)
    assert [a["image_id"] for a in content["annotations"]] == [a["image_id"] for a in original(clean)["annotations"]]


def test_a_category_by_its_name_or_the_only_one_is_told(planted, clean):
    names = {c["id"]: c["name"] for c in planted.categories}
    for a in planted.annotations:
        a["category_id"] = names[a["category_id"]]
    assert fixed(planted) == original(clean)
    planted.categories[1:] = []
    for a in planted.annotations:
        del a["category_id"]
    assert {a["category_id"] for a in fixed(planted)["annotations"]} == {planted.categories[0]["id"]}


def test_more_than_a_tenth_is_not_removed(planted):
    for a in planted.annotations[: len(planted.annotations) // 5]:
        a["image_id"] += 5000
    report, target = planted.examine(), planted.json.with_name("fixed.json")
    with pytest.raises(DensekitError, match="two different exports") as error:
        write_fixed(report, target)
    assert "\n" not in str(error.value)
    assert f"of {len(planted.annotations)} annotations would go" in str(error.value)
    assert not target.exists()
    write_fixed(report, target, may_remove=0.3)
    assert (
        len(json.loads(target.read_text())["annotations"]) == len(planted.annotations) - len(planted.annotations) // 5
    )
    with pytest.raises(DensekitError, match="from 0 to 1"):
        write_fixed(report, target, may_remove=2)


def test_a_tenth_at_most_is_removed(planted):
    for a in planted.annotations[: len(planted.annotations) // 10]:
        a["image_id"] += 5000
    target = planted.json.with_name("fixed.json")
    write_fixed(planted.examine(), target)
    assert (
        len(json.loads(target.read_text())["annotations"]) == len(planted.annotations) - len(planted.annotations) // 10
    )


def test_areas_that_are_the_same_again_are_written_and_told_once(planted):
    for k, a in enumerate(planted.annotations):  # triangles of one size, so that even the right areas are all alike
        box = [2, 2, 20, 20 + k % 9]
        a |= {"area": 400.0, "iscrowd": 0, "bbox": box, "segmentation": [[2, 2, 22, 2, 22, 22]]}
    target = planted.json.with_name("fixed.json")
    log = write_fixed(planted.examine(), target, may_remove=1)
    kept = json.loads(target.read_text())["annotations"]
    assert len({a["area"] for a in kept}) == 1
    assert 0 < sum("area_of_set: annotations" in line for line in log) <= len(planted.annotations)
