"""COCO files: columns equal to pycocotools' view, every broken rule named, caches, hostile and mutated files."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

import densekit.data.formats.coco.file as coco_file
import densekit.data.formats.coco.parse as coco_parse
from densekit.data.formats.coco.file import open_coco
from densekit.data.formats.coco.parse import parse_coco
from densekit.data.formats.coco.rle import SegmentationError, segmentation_mask
from densekit.types import DensekitError


def content(images: int = 4, annotations: int = 9, seed: int = 0) -> dict:
    """A valid file: ids with gaps and in no order, crowds as RLE, polygons, odd keys."""
    random = np.random.default_rng(seed)
    ids = (random.permutation(images) * 7 + 3).tolist()
    rows = []
    for k in range(annotations):
        x, y, w, h = (round(float(v), 2) for v in (*random.uniform(0, 20, 2), *random.uniform(2, 15, 2)))
        crowd = int(k % 4 == 3)
        polygon = [[x, y, x + w, y, x + w, y + h]]
        rows.append(
            {
                "segmentation": {"size": [40, 50], "counts": [5, 3, 1992]} if crowd else polygon,
                "area": w * h / 2,
                "iscrowd": crowd,
                "image_id": ids[int(random.integers(images))],
                "bbox": [x, y, w, h],
                "category_id": [3, 90, 7][k % 3],
                "id": 1000 - 13 * k,
                "attributes": [{"a": 1}, {"b": "}, {"}],
            }
        )
    return {
        "info": {"note": 'braces "}, {" and ] in a string \\" \u00e9', "nested": [[1], {"images": [1]}]},
        "images": [{"id": i, "file_name": f"dir/{i}-\u00fc.jpg", "width": 50, "height": 40, "url": "]"} for i in ids],
        "licenses": [],
        "annotations": rows,
        "categories": [{"id": c, "name": n} for c, n in ((90, "cat"), (3, "dog"), (7, "cow"))],
    }


def write(path: Path, data: object, **options) -> Path:
    path.write_text(json.dumps(data, **options), encoding="utf-8")
    return path


def assert_same_as_pycocotools(file, path: Path) -> None:
    coco = COCO(path)
    assert [file.image_id(i) for i in range(len(file))] == [i["id"] for i in coco.dataset["images"]]
    assert list(file.file_names) == [i["file_name"] for i in coco.dataset["images"]]
    assert file.classes.ids == tuple(sorted(coco.getCatIds()))
    for i in range(len(file)):
        theirs = coco.imgToAnns[file.image_id(i)]
        span = file.annotations(i)
        assert [file.annotation_id(a) for a in range(span.start, span.stop)] == [a["id"] for a in theirs]
        assert np.array_equal(file.boxes[span], np.array([a["bbox"] for a in theirs]).reshape(-1, 4))
        assert np.array_equal(file.areas[span], [a["area"] for a in theirs])
        assert file.crowd[span].tolist() == [bool(a["iscrowd"]) for a in theirs]
        assert [file.classes.ids[c] for c in file.labels[span]] == [a["category_id"] for a in theirs]
        for a, theirs_a in zip(range(span.start, span.stop), theirs):
            assert file.segmentation(a) == theirs_a.get("segmentation")


@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_columns_equal_what_pycocotools_reads(tmp_path, layout):
    path = write(tmp_path / "a.json", content(), **layout)
    assert_same_as_pycocotools(open_coco(path), path)


@pytest.mark.parametrize("name", ["bccd/annotations/val", "nuclei/annotations/val", "coco_eval/instances_val2014_100"])
def test_real_files_equal_what_pycocotools_reads(real_data, name):
    path = real_data / f"{name}.json"
    assert_same_as_pycocotools(open_coco(path), path)


@pytest.mark.parametrize("order", [("annotations", "categories", "images"), ("categories", "images", "annotations")])
@pytest.mark.parametrize("piece", [1, 300, 2500])
def test_files_read_in_small_pieces_by_several_processes_are_the_same(tmp_path, monkeypatch, order, piece):
    data = content(images=20, annotations=60)
    path = write(tmp_path / "a.json", {k: data[k] for k in (*order, "info", "licenses")})
    monkeypatch.setattr(coco_parse, "PIECE", piece)
    assert_same_as_pycocotools(open_coco(path), path)
    monkeypatch.setattr(coco_parse, "PARALLEL_FROM", 1)
    alone, shared = parse_coco(path, processes=1), parse_coco(path, processes=3)
    for field in ("ids", "image_ids", "category_ids", "boxes", "areas", "crowd", "segmentations"):
        assert np.array_equal(getattr(alone.annotations, field), getattr(shared.annotations, field)), field


def test_categories_are_labelled_by_id_whatever_their_order_in_the_file(tmp_path):
    data = content()
    first = open_coco(write(tmp_path / "a.json", data))
    data["categories"].reverse()
    second = open_coco(write(tmp_path / "b.json", data))
    assert first.classes == second.classes
    assert first.classes.names == ("dog", "cow", "cat")
    assert np.array_equal(first.labels, second.labels)


def test_chosen_classes_are_kept_in_the_order_given(tmp_path):
    path = write(tmp_path / "a.json", content())
    file, whole = open_coco(path, classes=("cat", "dog")), open_coco(path)
    assert (file.classes.names, file.classes.ids) == (("cat", "dog"), (90, 3))
    kept = np.isin(whole.labels, [2, 0])
    assert np.array_equal(file.boxes, whole.boxes[kept])
    assert file.labels.tolist() == [{2: 0, 0: 1}[v] for v in whole.labels[kept]]
    assert np.array_equal(file.owners, whole.owners[kept])
    assert [file.segmentation(i) for i in range(len(file.boxes))] == [
        whole.segmentation(i) for i in np.flatnonzero(kept)
    ]
    with pytest.raises(DensekitError, match=r"no category 'cats'; did you mean 'cat'"):
        open_coco(path, classes=("cats",))


def test_string_ids_missing_options_and_no_annotations_are_fine(tmp_path):
    data = content()
    for image in data["images"]:
        image["id"] = f"i{image['id']}"
    for k, row in enumerate(data["annotations"]):
        row["image_id"], row["id"] = f"i{row['image_id']}", f"a{k}"
        for key in ("segmentation", "area", "iscrowd"):
            del row[key]
    file = open_coco(write(tmp_path / "a.json", data))
    assert file.image_id(0) == data["images"][0]["id"]
    assert {file.annotation_id(i) for i in range(9)} == {f"a{k}" for k in range(9)}
    assert file.segmentation(0) is None
    assert not file.crowd.any()
    assert np.allclose(file.areas, file.boxes[:, 2] * file.boxes[:, 3])
    empty = open_coco(write(tmp_path / "b.json", {**data, "annotations": []}))
    assert (len(empty), empty.boxes.shape, empty.max_objects) == (4, (0, 4), 0)


def broken(change) -> dict:
    data = content()
    change(data)
    return data


def _set(key: str, index: int, field: str, value: object):
    return lambda data: data[key][index].__setitem__(field, value)


RULES = [
    (_set("annotations", 2, "category_id", 5), r"annotation 974: category_id 5 is not among the categories"),
    (_set("annotations", 2, "image_id", 5), r"annotation 974: image_id 5 is not among the images"),
    (_set("annotations", 2, "image_id", "x"), r"annotation 974: image_id 'x' is not among the images"),
    (_set("annotations", 2, "bbox", [1, float("nan"), 2, 2]), r"annotation 974 .*\[1, nan, 2, 2\].* holds NaN"),
    (_set("annotations", 2, "bbox", [1, float("-inf"), 2, 2]), r"annotation 974 .*\[1, -inf, 2, 2\].* holds NaN"),
    (_set("annotations", 2, "bbox", [1, 2, 0, 2]), r"annotation 974 .* has no area"),
    (_set("annotations", 2, "bbox", [1, 2, 3, -2]), r"annotation 974 .* has no area"),
    (_set("annotations", 2, "bbox", [50, 2, 3, 2]), r"annotation 974 .* lies wholly outside"),
    (_set("annotations", 2, "bbox", [-5, 2, 3, 2]), r"annotation 974 .* lies wholly outside"),
    (_set("annotations", 2, "bbox", [1, 2, 3]), r"annotation 974: bbox, which is \[1, 2, 3\]: expected four numbers"),
    (
        _set("annotations", 2, "bbox", [1, 2, None, 4]),
        r"annotation 974: bbox, which is \[1, 2, None, 4\]: expected a number",
    ),
    (_set("annotations", 2, "id", 987), r"annotation id 987 occurs twice"),
    (_set("annotations", 2, "iscrowd", 2), r"annotation 974: iscrowd is 2, not 0 or 1"),
    (_set("annotations", 2, "category_id", "dog"), r"annotation 974: category_id, which is 'dog': expected an integer"),
    (_set("annotations", 2, "id", 2**70), r"too large for 64 bits|expected"),
    (_set("images", 1, "width", 0), r"width 0 and height 40 are no size"),
    (_set("images", 1, "width", "wide"), r"width, which is 'wide': expected an integer; .*--fix"),
    (_set("images", 1, "width", 50.5), r"width, which is 50.5: expected an integer; .*--fix"),
    (lambda d: d["images"][1].pop("width"), r"image \d+: width: it is missing; .*--fix"),
    (_set("categories", 1, "id", 90), r"category id 90 occurs twice"),
    (_set("categories", 1, "name", "cat"), r"class name 'cat' occurs twice"),
    (lambda d: d["images"].append(d["images"][0]), r"image id \d+ occurs twice"),
    (lambda d: [d["annotations"][2].pop(k) for k in ("bbox", "segmentation")], r"annotation 974: bbox: it is missing"),
    (lambda d: d["images"][0].pop("file_name"), r"image \d+: file_name: it is missing"),
    (lambda d: d["annotations"][2].pop("id"), r"entry 2 of 'annotations'|id: it is missing"),
    (lambda d: d.pop("annotations"), r"the key 'annotations' is missing; it has 'categories', 'images'"),
    (lambda d: d.__setitem__("images", {}), r"'images' is no list"),
    (lambda d: d.__setitem__("images", []), r"'images' is empty"),
    (lambda d: d.__setitem__("categories", []), r"'categories' is empty"),
    (lambda d: d["annotations"].__setitem__(2, 7), r"expected `object`, got `int`"),
    (lambda d: d.update(images=[*d["images"], {**d["images"][0], "id": "x"}]), r"are numbers \(\d+\) and texts mixed"),
]


@pytest.mark.parametrize(("change", "message"), RULES)
def test_each_broken_rule_is_named_with_file_id_and_remedy_in_one_line(tmp_path, change, message):
    path = write(tmp_path / "train.json", broken(change))
    with pytest.raises(DensekitError, match=message) as error:
        open_coco(path)
    assert str(error.value).startswith((str(path), "the number", "class name"))
    assert "\n" not in str(error.value)


def test_boxes_that_reach_beyond_the_image_are_fine(tmp_path):
    data = broken(_set("annotations", 2, "bbox", [-3, 30, 60, 30]))
    assert [-3, 30, 60, 30] in open_coco(write(tmp_path / "a.json", data)).boxes.tolist()


def test_bad_boxes_can_be_dropped_and_are_told(tmp_path):
    data = content()
    data["annotations"][2]["bbox"] = [1, 2, 0, 2]
    data["annotations"][3]["bbox"] = [1, float("nan"), 5, 2]
    path = write(tmp_path / "a.json", data)
    file = open_coco(path, on_bad_box="drop")
    ids = {file.annotation_id(i) for i in range(len(file.boxes))}
    assert ids == {r["id"] for r in data["annotations"]} - {974, 961}
    assert len(file.dropped) == 2
    assert any("974" in line for line in file.dropped)
    data["annotations"] = [r for r in data["annotations"] if r["id"] in ids]
    good = write(tmp_path / "b.json", data)
    clean = open_coco(good)
    assert np.array_equal(file.first, clean.first)
    assert [file.segmentation(i) for i in range(7)] == [clean.segmentation(i) for i in range(7)]


def test_the_raw_blood_cells_name_their_two_empty_boxes(real_data):
    path = real_data / "bccd/annotations/all_raw.json"
    with pytest.raises(DensekitError, match=r"BloodImage_00338.jpg.*\[504, 337, 0, 0\].*has no area.*one of 2"):
        open_coco(path)
    assert len(open_coco(path, on_bad_box="drop").boxes) == 4886


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("hello", "not even JSON"),
        ("[]", "it holds a list"),
        ("{}", "the key 'images' is missing"),
        ('{"images": [', "not valid JSON"),
        ('{"images": [] ', "not valid JSON"),
        ('{"images": [],}', "nothing follows the comma"),
        ('{"images": [] "annotations": []}', "no comma"),
        ('{"images": [], "images": []}', "stands twice"),
        ('{"info": {"a": ]}, "images": []}', "not valid JSON"),
        ('{"images": [], "annotations": [], "categories": []} trailing', "more text after the end"),
        ('{"images": [{"id": 1, "file_name": "a", "width": 1, "height": 1} {}]}', "not valid JSON"),
        ('{"images": ' + "[" * 5000, "entry 0 of 'images': expected `object`"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "not valid JSON"),
    ],
)
def test_what_is_not_coco_is_said_to_be_so(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DensekitError, match=message) as error:
        open_coco(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_the_nearest(tmp_path):
    write(tmp_path / "train.json", content())
    with pytest.raises(DensekitError, match=r"no such file; did you mean 'train.json'"):
        open_coco(tmp_path / "trian.json")
    with pytest.raises(DensekitError, match="nor any json"):
        open_coco(tmp_path / "nowhere" / "train.json")
    with pytest.raises(DensekitError, match="is a folder; give the json file in it"):
        open_coco(tmp_path)


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Path:
    """Cache every file, in a folder of its own."""
    monkeypatch.setenv("DENSEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(coco_file, "CACHE_FROM", 0)
    return tmp_path / "cache"


def test_a_cached_file_is_the_same_and_is_not_parsed_again(tmp_path, cached, monkeypatch):
    path = write(tmp_path / "a.json", content())
    first = open_coco(path)
    monkeypatch.setattr(coco_file, "parse_coco", None)
    again = open_coco(path)
    assert again.store == first.store
    assert_same_as_pycocotools(again, path)
    assert not again.boxes.flags.writeable


def test_a_changed_file_is_parsed_again_and_its_old_cache_goes(tmp_path, cached):
    path = write(tmp_path / "a.json", content(seed=0))
    old = open_coco(path).boxes.copy()
    write(path, content(seed=1))
    assert not np.array_equal(open_coco(path).boxes, old)
    assert len(list(cached.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("damage", [b"", b"\xff" * 50, b"\x10\0\0\0\0\0\0\0{}"])
def test_a_damaged_cache_is_replaced(tmp_path, cached, damage):
    path = write(tmp_path / "a.json", content())
    store = open_coco(path).store
    whole = store.read_bytes()
    for data in (damage, whole[:-1], whole[: len(whole) // 2]):
        store.write_bytes(data)
        assert_same_as_pycocotools(open_coco(path), path)
        assert store.read_bytes() == whole


def test_without_room_for_a_cache_the_file_opens_all_the_same(tmp_path, cached):
    cached.write_text("a file where the folder should be")
    path = write(tmp_path / "a.json", content())
    assert open_coco(path).store is None


def test_small_files_leave_no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEKIT_CACHE", str(tmp_path / "cache"))
    open_coco(write(tmp_path / "a.json", content()))
    assert not (tmp_path / "cache").exists()


def test_a_pickled_file_is_the_name_of_its_cache(tmp_path, cached):
    path = write(tmp_path / "a.json", content(images=200, annotations=2000))
    file = open_coco(path)
    data = pickle.dumps(file)
    assert len(data) < 1000
    assert_same_as_pycocotools(pickle.loads(data), path)
    os.environ["DENSEKIT_CACHE"] = "off"
    assert_same_as_pycocotools(pickle.loads(pickle.dumps(open_coco(path))), path)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**66), 2**66),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.lists(st.floats(), min_size=4, max_size=4),
    st.sampled_from(["../x", "\0", "/a", 0, -1, 1, 3, 90, 987, 1e300, -0.0, "NaN"]),
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_files_open_or_give_our_error(tmp_path, data):
    mutated = copy.deepcopy(content(images=3, annotations=4))
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(["images", "annotations", "categories"]))
        if not isinstance(mutated.get(key), list) or not mutated[key]:
            continue
        row = data.draw(st.sampled_from(mutated[key]))
        action = data.draw(st.sampled_from(["set", "delete", "repeat", "replace"]))
        if action == "set" and isinstance(row, dict) and row:
            row[data.draw(st.sampled_from(sorted(row)))] = data.draw(VALUES)
        elif action == "delete" and isinstance(row, dict) and row:
            del row[data.draw(st.sampled_from(sorted(row)))]
        elif action == "repeat":
            mutated[key].append(row)
        else:
            mutated[data.draw(st.sampled_from(sorted(mutated)))] = data.draw(VALUES)
    path = write(tmp_path / "m.json", mutated)
    _opens_or_explains(path)


def test_a_number_that_no_double_holds_is_refused_where_it_is_drawn(tmp_path):
    text = json.dumps(content(images=1, annotations=1))
    first = json.loads(text)["annotations"][0]["segmentation"][0][0]
    path = tmp_path / "m.json"
    path.write_text(text.replace(f"[[{first}, ", "[[1e999, "))
    assert "1e999" in path.read_text()
    polygons = open_coco(path).segmentation(0)
    assert polygons[0][0] == float("inf")
    with pytest.raises(SegmentationError, match="holds inf"):
        segmentation_mask(polygons, 64, 64)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_files_with_damaged_bytes_open_or_give_our_error(tmp_path, data):
    text = bytearray(json.dumps(content(images=3, annotations=4)).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        action = data.draw(st.sampled_from(["flip", "cut", "copy"]))
        if action == "flip":
            text[at] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del text[at : at + data.draw(st.integers(1, 40))]
        else:
            text[at:at] = text[at : at + data.draw(st.integers(1, 40))]
        if not text:
            break
    path = tmp_path / "m.json"
    path.write_bytes(text)
    _opens_or_explains(path)


def _opens_or_explains(path: Path) -> None:
    file = None
    with contextlib.suppress(DensekitError):
        file = open_coco(path)
    if file is None:
        return
    try:
        theirs = json.loads(path.read_bytes())
    except ValueError:  # Python is stricter than msgspec about control characters, and looser about NaN
        return
    assert len(file) == len(theirs["images"])
    assert len(file.boxes) == len(theirs["annotations"])
    assert np.isfinite(file.boxes).all()
    assert (file.boxes[:, 2:] > 0).all()
    assert ((file.labels >= 0) & (file.labels < len(file.classes))).all()
    assert sorted(map(str, (file.annotation_id(i) for i in range(len(file.boxes))))) == sorted(
        str(int(a["id"]) if isinstance(a["id"], float) else a["id"]) for a in theirs["annotations"]
    )
    for i in range(len(file.boxes)):
        file.segmentation(i)
