"""Masks drawn from COCO json: against pycocotools, against the nuclei's PNGs; what is refused."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from densekit.data.formats.coco.rle import SegmentationError, decode_runs, run_lengths, segmentation_mask
from densekit.registry import DATASETS
from densekit.types import IGNORE, DensekitError

HEIGHT, WIDTH = 20, 30
SQUARE = [2, 2, 12, 2, 12, 12, 2, 12]
INNER = [4, 4, 8, 4, 8, 8, 4, 8]


def write(tmp_path, annotations, categories=((1, "cat"), (7, "dog"))):
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / "a.png")
    rows = [
        {"id": i + 1, "image_id": 5, "bbox": [2, 2, 10, 10], "area": 100, "iscrowd": 0, "category_id": 1, **row}
        for i, row in enumerate(annotations)
    ]
    content = {
        "images": [{"id": 5, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": i, "name": n} for i, n in categories],
        "annotations": rows,
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return {"images": str(folder), "annotations": str(tmp_path / "a.json")}


def draw(options, **more):
    return DATASETS.build("coco_masks", {**options, **more}).sample(0, 0).mask


def test_polygons_and_both_kinds_of_run_lengths_draw_the_same(tmp_path):
    runs = coco.frPyObjects([SQUARE], HEIGHT, WIDTH)[0]
    region = coco.decode(runs)
    flat = region.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges.tolist(), flat.size]).tolist()
    for segmentation in (
        [SQUARE],
        {"size": [HEIGHT, WIDTH], "counts": counts},
        {"size": [HEIGHT, WIDTH], "counts": runs["counts"].decode()},
    ):
        mask = draw(write(tmp_path, [{"segmentation": segmentation}]))
        np.testing.assert_array_equal(mask, region)


def test_what_is_small_lies_on_top_whatever_the_order(tmp_path):
    small = {"segmentation": [INNER], "category_id": 7, "area": 16, "bbox": [4, 4, 4, 4]}
    large = {"segmentation": [SQUARE]}
    masks = [draw(write(tmp_path, rows)) for rows in ([small, large], [large, small])]
    np.testing.assert_array_equal(*masks)
    assert masks[0][6, 6] == 2
    assert masks[0][10, 10] == 1
    assert masks[0][15, 15] == 0


def test_layers_keep_what_overlaps(tmp_path):
    rows = [{"segmentation": [INNER], "category_id": 7}, {"segmentation": [SQUARE]}]
    layers = draw(write(tmp_path, rows), multi_label=True)
    assert layers.shape == (2, HEIGHT, WIDTH)
    assert layers[:, 6, 6].tolist() == [1, 1]
    assert layers[:, 10, 10].tolist() == [1, 0]


def test_background_crowds_and_a_choice_of_classes(tmp_path):
    rows = [{"segmentation": [INNER], "category_id": 7, "iscrowd": 1, "area": 1}, {"segmentation": [SQUARE]}]
    options = write(tmp_path, rows)
    data = DATASETS.build("coco_masks", options)
    assert data.classes.names == ("background", "cat", "dog")
    assert data.classes.ids == (0, 1, 7)
    assert draw(options, crowd="ignore")[6, 6] == IGNORE
    assert draw(options, background=None)[15, 15] == IGNORE
    assert draw(options, background=None)[10, 10] == 0
    only = DATASETS.build("coco_masks", {**options, "classes": ["dog"]})
    assert only.classes.ids == (0, 7)
    assert np.unique(only.sample(0, 0).mask).tolist() == [0, 1]


def test_a_category_with_id_0_leaves_the_background_another_id(tmp_path):
    options = write(tmp_path, [{"segmentation": [SQUARE], "category_id": 0}], ((0, "cat"), (7, "dog")))
    data = DATASETS.build("coco_masks", options)
    assert data.classes.ids == (8, 0, 7)
    assert "another name" in refusal({**options, "background": "cat"})


def test_an_image_without_annotations_is_background(tmp_path):
    assert not draw(write(tmp_path, [])).any()


def refusal(options):
    with pytest.raises(DensekitError) as error:
        draw(options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "no segmentation"),
        ([], "no segmentation"),
        ([[1, 2, 3, 4]], "4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 numbers"),
        ([[1, 2, 3, 4, 5, 1e9]], "far outside"),
        ([[1, 2, 3, 4, 5, "x"]], "not a list of numbers"),
        ({"size": [WIDTH, HEIGHT], "counts": [600]}, "[30, 20]"),
        ({"size": [HEIGHT, WIDTH], "counts": [599]}, "add up to 599"),
        ({"size": [HEIGHT, WIDTH], "counts": [700, -100]}, "whole numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": "\u007f"}, "no meaning"),
        ({"size": [HEIGHT, WIDTH], "counts": "1"}, "add up to 1,"),
        ({"size": [HEIGHT, WIDTH], "counts": "oooooooooooooooo0"}, "40 bits"),
        ({"size": [HEIGHT, WIDTH]}, "whole numbers"),
        ("text", "is no segmentation"),
    ],
)
def test_a_bad_segmentation_names_file_and_annotation(tmp_path, segmentation, message):
    text = refusal(write(tmp_path, [{"segmentation": segmentation}]))
    assert message in text
    assert "a.json: annotation 1:" in text


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_of_any_mask_are_read_as_pycocotools_reads_them(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    decoded = decode_runs(run_lengths(encoded["counts"].decode()), height, width)
    np.testing.assert_array_equal(decoded, mask)


def test_long_runs_are_read_as_pycocotools_reads_them():
    mask = np.zeros((3000, 2000), np.uint8, order="F")
    mask[100:2900, 500:503] = 1
    encoded = coco.encode(mask)
    np.testing.assert_array_equal(decode_runs(run_lengths(encoded["counts"].decode()), 3000, 2000), mask)


hostile = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=40),
    st.lists(st.one_of(st.integers(), st.floats(), st.none())),
    st.lists(st.lists(st.floats())),
)


@settings(max_examples=200, deadline=None)
@given(hostile)
def test_hostile_segmentations_are_refused_or_drawn(counts):
    for segmentation in ({"size": [8, 9], "counts": counts}, counts):
        with contextlib.suppress(SegmentationError):
            assert segmentation_mask(segmentation, 8, 9).shape == (8, 9)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_nuclei_drawn_from_json_are_their_pngs_pixel_for_pixel(real_data, split):
    nuclei = real_data / "nuclei"
    if not nuclei.is_dir():
        pytest.skip(f"the nuclei data set is not in {real_data}")
    drawn = DATASETS.build(
        "coco_masks", {"images": nuclei / "images", "annotations": nuclei / "annotations" / f"{split}.json"}
    )
    files = DATASETS.build(
        "masks",
        {"images": nuclei / "images", "masks": nuclei / "masks", "classes": nuclei / "classes.txt"},
    )
    by_name = {files.source.image_id(i): i for i in range(len(files))}
    assert len(drawn) == {"train": 234, "val": 52, "test": 48}[split]
    assert drawn.classes == files.classes
    for index in range(len(drawn)):
        name = str(drawn.source.image_path(index).relative_to(nuclei / "images"))
        # Labels of one class: where nuclei overlap there is nothing to differ in.
        np.testing.assert_array_equal(drawn.source.mask(index), files.source.mask(by_name[name]), err_msg=name)
