"""Instance masks from the file to the batch: equal to image-sized masks, never made image-sized, boxes with them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from densekit.data.formats.coco.coco import coco as coco_set
from densekit.data.formats.labelme import labelme
from densekit.data.formats.shapes import generate_shapes
from densekit.data.formats.yolo.yolo import yolo
from densekit.data.loading.batching import collate
from densekit.data.transforms.instances import boxes_from_masks
from densekit.data.transforms.pipeline import Pipeline
from densekit.ops.run_lengths import cut_out, encoded
from densekit.types import DensekitError, Instance, Sample

PIPELINES = {
    "nothing": [],
    "flips": [{"name": "HorizontalFlip", "p": 1}, {"name": "VerticalFlip", "p": 1}],
    "larger": [{"name": "Resize", "short": 77}],
    "smaller": [{"name": "Resize", "height": 20, "width": 33}],
    "jitter_in": [{"name": "ScaleJitter", "size": [40, 40], "scale": [1.5, 2.5]}],
    "jitter_out": [{"name": "ScaleJitter", "size": [40, 40], "scale": [0.3, 0.9]}],
    "crop": [{"name": "RandomCrop", "height": 30, "width": 30}],
    "affine": [{"name": "Affine", "rotate": [-40, 40], "scale": [0.7, 1.4], "shear": [-10, 10], "p": 1}],
    "elastic": [{"name": "ElasticTransform", "p": 1}, {"name": "RandomBrightnessContrast", "p": 1}],
    "mixed": [
        {"name": "Resize", "short": [50, 60]},
        {"name": "OneOf", "transforms": [{"name": "Transpose", "p": 1}, {"name": "Perspective", "p": 1}], "p": 1},
        {"name": "HorizontalFlip", "p": 0.5},
        {"name": "PadIfNeeded", "min_height": 90, "min_width": 90},
    ],
}


def cut(mask: np.ndarray) -> Instance:
    """As an independent reader would cut it."""
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return Instance(0, 0, np.zeros((0, 0), np.uint8))
    return Instance(
        int(xs.min()), int(ys.min()), mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].astype(np.uint8)
    )


def whole(instance: Instance, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    height, width = instance.mask.shape
    mask[instance.y : instance.y + height, instance.x : instance.x + width] = instance.mask
    return mask


def blobs(count: int, size: tuple[int, int] = (48, 64), seed: int = 0) -> np.ndarray:
    """[count, H, W] discs that overlap, touch the edge and differ in size; the last one is a single pixel."""
    random = np.random.default_rng(seed)
    ys, xs = np.mgrid[: size[0], : size[1]]
    radii = random.uniform(2, 14, count)
    centres = random.uniform((0, 0), size, (count, 2))
    masks = [(ys - y) ** 2 + (xs - x) ** 2 <= r**2 for (y, x), r in zip(centres, radii)]
    masks[-1] = (ys == 20) & (xs == 30)
    return np.stack(masks).astype(np.uint8)


def sample_of(masks: np.ndarray, layers: bool) -> Sample:
    """The masks as instances, or as the layers that segmentation has, with boxes that never get lost."""
    height, width = masks.shape[1:]
    boxes = np.tile(np.array([0, 0, width, height], np.float32), (len(masks), 1))
    return Sample(
        image=np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8),
        id=1,
        original_size=(height, width),
        seed=0,
        boxes=boxes,
        labels=np.arange(len(masks)),
        crowd=np.zeros(len(masks), np.bool_),
        instances=None if layers else [cut(mask) for mask in masks],
        mask=masks if layers else None,
    )


@pytest.mark.parametrize("name", PIPELINES)
def test_instances_go_through_a_pipeline_as_image_sized_masks_do(name):
    pipeline, masks = Pipeline(PIPELINES[name]), blobs(12)
    for seed in range(4):
        ours = pipeline(sample_of(masks, layers=False), np.random.default_rng(seed))
        theirs = pipeline(sample_of(masks, layers=True), np.random.default_rng(seed))
        assert len(ours.instances) == len(ours.boxes) == len(ours.labels)
        size = ours.image.shape[:2]
        found = {k: whole(one, size) for k, one in zip(ours.labels.tolist(), ours.instances)}
        for k, mask in enumerate(theirs.mask):
            np.testing.assert_array_equal(found[k], mask == 1)
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)


def test_masks_of_more_objects_than_a_label_map_holds_stay_apart():
    ys, xs = np.mgrid[:40, :40]
    masks = np.stack([(ys // 2 == k // 20) & (xs // 2 == k % 20) for k in range(400)]).astype(np.uint8)
    out = Pipeline([{"name": "Transpose", "p": 1}])(sample_of(masks, layers=False), np.random.default_rng(0))
    for k, one in enumerate(out.instances):
        np.testing.assert_array_equal(whole(one, (40, 40)), masks[k].T)


def test_a_fill_that_a_config_asks_for_masks_belongs_to_no_object():
    specs = [{"name": "PadIfNeeded", "min_height": 60, "min_width": 80, "fill_mask": 1, "border_mode": 0}]
    out = Pipeline(specs)(sample_of(blobs(3), layers=False), np.random.default_rng(0))
    assert [int(one.mask.sum()) for one in out.instances] == blobs(3).sum((1, 2)).tolist()


def test_an_object_that_is_dropped_takes_its_mask_along():
    masks = blobs(6)
    sample = sample_of(masks, layers=False)
    sample.boxes[2] = 60, 40, 64, 48
    out = Pipeline([{"name": "Crop", "x_max": 30, "y_max": 30}])(sample, np.random.default_rng(0))
    assert out.labels.tolist() == [0, 1, 3, 4, 5]
    for k, one in zip(out.labels.tolist(), out.instances):
        np.testing.assert_array_equal(whole(one, (30, 30)), masks[k, :30, :30])


# Run lengths.


@pytest.mark.parametrize("kind", ["blobs", "noise", "full", "empty", "column", "corner"])
def test_run_lengths_of_a_cut_are_pycocotools_of_the_whole_mask(kind):
    random = np.random.default_rng(3)
    masks = {
        "blobs": blobs(20),
        "noise": random.integers(0, 2, (20, 9, 7)),
        "full": np.ones((1, 5, 6)),
        "empty": np.zeros((1, 5, 6)),
        "column": np.eye(6)[:, None].repeat(5, 1),  # a column from top to bottom
        "corner": np.eye(30).reshape(30, 5, 6),
    }[kind].astype(np.uint8)
    for mask in masks:
        theirs = coco.encode(np.asfortranarray(mask))
        ours = encoded(cut(mask), mask.shape)
        assert ours == {"size": list(mask.shape), "counts": theirs["counts"].decode()}
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat, prepend=0, append=2))
        runs = np.diff(np.concatenate(([0], edges)))
        again = cut_out(runs, mask.shape[0])
        np.testing.assert_array_equal(whole(again, mask.shape), mask)
        assert again.mask.shape == cut(mask).mask.shape


# The data set.


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generate_shapes(folder, train=8, val=2, test=2, size=64)
    return folder


def opened(folder, **options):
    return coco_set(images=folder / "images", annotations=folder / "annotations/train.json", instances=True, **options)


def test_polygons_and_run_lengths_are_read_as_pycocotools_draws_them(shapes):
    data = opened(shapes)
    content = json.loads((shapes / "annotations/train.json").read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    rows = {}
    for row in content["annotations"]:
        rows.setdefault(row["image_id"], []).append(row)
    seen = 0
    for index in range(len(data)):
        sample = data.sample(0, index)
        size = sizes[sample.id]
        assert len(sample.instances) == len(rows.get(sample.id, []))
        for row, one in zip(rows.get(sample.id, []), sample.instances):
            code = row["segmentation"]
            code = (
                coco.merge(coco.frPyObjects(code, *size)) if isinstance(code, list) else coco.frPyObjects(code, *size)
            )
            expected = coco.decode(code)
            np.testing.assert_array_equal(whole(one, size), expected)
            assert one.mask.shape == cut(expected).mask.shape
            seen += 1
    assert seen > 10
    assert any(row["iscrowd"] for row in content["annotations"])


def test_masks_follow_an_image_that_is_decoded_at_a_fraction_of_its_size(shapes):
    small = Pipeline([{"name": "Resize", "short": 16}])
    data, full = opened(shapes, transforms=small), opened(shapes)
    assert small.reduction((64, 64)) == 4
    for index in range(len(data)):
        sample, source = data.sample(0, index), full.sample(0, index)
        size = sample.image.shape[:2]
        masks = [whole(one, source.original_size) for one in source.instances]
        resized = [cv2.resize(m, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) for m in masks]
        assert [whole(one, size).tolist() for one in sample.instances] == [m.tolist() for m in resized]


def test_polygons_of_yolo_and_labelme_are_the_same_masks(shapes, tmp_path):
    content = json.loads((shapes / "annotations/train.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    for image in content["images"]:
        rows = [a for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        size, stem = (image["width"], image["height"]), Path(image["file_name"]).stem
        points = [np.array(a["segmentation"][0]).reshape(-1, 2) for a in rows]
        lines = [
            f"{a['category_id']} " + " ".join(map(repr, (p / size).ravel().tolist())) for a, p in zip(rows, points)
        ]
        objects = [
            {"label": names[a["category_id"]], "points": p.tolist(), "shape_type": "polygon"}
            for a, p in zip(rows, points)
        ]
        tree = {"version": "5", "shapes": objects, "imagePath": f"{stem}.jpg", "imageData": None}
        tree |= {"imageWidth": size[0], "imageHeight": size[1]}
        for name, text in ((f"yolo/labels/{stem}.txt", "\n".join(lines)), (f"labelme/{stem}.json", json.dumps(tree))):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        for place in ("yolo/images", "labelme"):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            shutil.copy(shapes / "images" / image["file_name"], tmp_path / place)
    data = opened(shapes)
    # YOLO's shares are rounded, which moves a point across a fifth of a pixel, COCO's grid, now and then.
    sets = (
        (yolo(folder=tmp_path / "yolo", instances=True), 3),
        (labelme(folder=tmp_path / "labelme", instances=True), 0),
    )
    for read, most in sets:
        assert len(read) == len(data)
        for index in range(len(read)):
            ours, theirs = read.sample(0, index), data.sample(0, index)
            size = theirs.image.shape[:2]
            expected = [one for one, crowd in zip(theirs.instances, theirs.crowd) if not crowd]
            for one, other in zip(ours.instances, expected, strict=True):
                assert (whole(one, size) != whole(other, size)).sum() <= most


def test_boxes_are_taken_from_the_transformed_masks_where_asked(shapes):
    crop = Pipeline([{"name": "Crop", "x_max": 34, "y_max": 34}])
    kept, plain = opened(shapes, boxes="from_masks", transforms=crop), opened(shapes, transforms=crop)
    other = 0
    for index in range(len(kept)):
        sample = kept.sample(0, index)
        other += not np.array_equal(sample.boxes, plain.sample(0, index).boxes)
        for box, one in zip(sample.boxes, sample.instances):
            ys, xs = np.nonzero(whole(one, sample.image.shape[:2]))
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert len(sample.labels) == len(sample.crowd) == len(sample.instances) == len(sample.boxes)
    assert other > 0


def test_an_object_that_nothing_is_left_of_has_no_box_around_its_mask_and_a_crowd_keeps_its_own():
    masks = blobs(8)
    sample = sample_of(masks, layers=False)
    sample.crowd[3] = True
    moved = Pipeline([{"name": "Crop", "x_max": 30, "y_max": 30}])(sample, np.random.default_rng(0))
    left = [k for k, mask in enumerate(masks) if mask[:30, :30].any() or k == 3]
    assert left == [3, 5, 6]
    assert not masks[3, :30, :30].any()
    out = boxes_from_masks(moved)
    assert out.labels.tolist() == left
    assert out.boxes[left.index(3)].tolist() == [0, 0, 30, 30]


def test_boxes_from_masks_serve_a_head_that_takes_boxes_alone(shapes):
    data = coco_set(images=shapes / "images", annotations=shapes / "annotations/train.json", boxes="from_masks")
    assert data.sample(0, 1).instances is None
    np.testing.assert_array_equal(data.sample(0, 1).boxes, opened(shapes, boxes="from_masks").sample(0, 1).boxes)


def written(folder, segmentations, boxes=None):
    """A set of one 20 x 30 image with an object for each segmentation."""
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (30, 20)).save(folder / "images/a.png")
    boxes = boxes or [[2, 3, 10, 10]] * len(segmentations)
    rows = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 9, "iscrowd": 0, "segmentation": s}
        for i, (s, box) in enumerate(zip(segmentations, boxes), 1)
    ]
    for row in rows:
        if row["segmentation"] == "absent":
            del row["segmentation"]
    content = {"images": [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}], "annotations": rows}
    path = folder / "annotations/train.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**content, "categories": [{"id": 1, "name": "cell"}]}))
    return folder


SQUARE = [[2, 3, 12, 3, 12, 13, 2, 13]]
NOTHING = ([], None, [[]], "absent")


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_objects_without_a_segmentation_among_others_keep_their_boxes_and_are_told_of(tmp_path, nothing):
    data = opened(written(tmp_path, [SQUARE, nothing, SQUARE]))
    sample = data.sample(0, 0)
    assert [one.mask.size for one in sample.instances] == [100, 0, 100]
    assert len(sample.boxes) == 3
    (line,) = data.notes
    assert "1 of 3 objects have no segmentation: they are learned by their boxes alone" in line
    from_masks = opened(tmp_path, boxes="from_masks")
    assert len(from_masks.sample(0, 0).boxes) == 2
    assert "left out" in from_masks.notes[0]


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_a_json_without_segmentations_is_refused_where_masks_are_asked_for(tmp_path, nothing):
    folder = written(tmp_path, [nothing, nothing])
    with pytest.raises(DensekitError, match=r"train.json: not one of its 2 objects has a segmentation"):
        opened(folder)
    assert coco_set(images=folder / "images", annotations=folder / "annotations/train.json").sample(0, 0).boxes.any()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], r"annotation 2: a polygon has 4 numbers; it needs x and y of three points or more"),
        (
            {"size": [30, 20], "counts": [600]},
            r"annotation 2: its run lengths are for \[30, 20\], the image is \[20, 30\]",
        ),
        ({"size": [20, 30], "counts": [5, 5]}, r"annotation 2: its run lengths add up to 10"),
        ("circle", r"annotation 2: 'circle' is no segmentation"),
    ],
)
def test_a_broken_segmentation_is_named(tmp_path, segmentation, message):
    with pytest.raises(DensekitError, match=message):
        opened(written(tmp_path, [SQUARE, segmentation])).sample(0, 0)


def test_masks_outside_of_their_boxes_of_one_pixel_and_of_nothing_are_read_as_they_are(tmp_path):
    pixel = {"size": [20, 30], "counts": [599, 1]}
    nothing = {"size": [20, 30], "counts": [600]}
    sample = opened(written(tmp_path, [SQUARE, pixel, nothing], [[20, 1, 5, 5]] * 3)).sample(0, 0)
    assert [(one.x, one.y, one.mask.shape) for one in sample.instances] == [
        (2, 3, (10, 10)), (29, 19, (1, 1)), (0, 0, (0, 0))
    ]  # fmt: skip
    assert sample.boxes.tolist() == [[20, 1, 25, 6]] * 3


def test_a_batch_holds_the_cuts_of_all_images_and_keeps_them_where_it_is_packed(shapes):
    from densekit.engine.guard import pack_batch, unpack_batch

    data = opened(shapes)
    samples = [data.sample(0, index) for index in range(len(data))]
    batch = unpack_batch(pack_batch(collate(samples)))
    masks = batch.targets.boxes.masks
    assert masks.pixels.dtype == torch.uint8
    for b, sample in enumerate(samples):
        for i, one in enumerate(sample.instances):
            x, y, width, height = masks.cuts[b, i].tolist()
            start = int(masks.starts[b, i])
            found = masks.pixels[start : start + width * height].reshape(height, width)
            np.testing.assert_array_equal(found.numpy(), one.mask)
            assert (x, y) == (one.x, one.y)
    assert collate([dataclasses.replace(s, instances=None) for s in samples]).targets.boxes.masks is None
