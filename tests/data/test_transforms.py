"""Pipelines: boxes and masks stay with the image, draws are addressed, mistakes in the config are named."""

from __future__ import annotations

import numpy as np
import pytest

from densekit.data.transforms.pipeline import Pipeline
from densekit.types import IGNORE, DensekitError, Sample


def make_sample(height: int = 48, width: int = 64, boxes: int = 3, mask: bool = False, seed: int = 0) -> Sample:
    """Bright rectangles on black; each box is exactly its rectangle, and the mask has its number plus one."""
    random = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    classes = np.zeros((height, width), np.uint8)
    rows = np.zeros((boxes, 4), np.float32)
    for i in range(boxes):
        x, y = int(random.integers(0, width - 20)), 1 + 15 * i
        w, h = int(random.integers(8, 18)), int(random.integers(8, 13))
        rows[i] = x, y, x + w, y + h
        image[y : y + h, x : x + w] = 80 * (i + 1)
        classes[y : y + h, x : x + w] = i + 1
    return Sample(
        image=image,
        id=7,
        original_size=(height, width),
        seed=1,
        boxes=rows,
        labels=np.arange(boxes),
        crowd=np.arange(boxes) == 1,
        mask=classes if mask else None,
    )


def run(specs: list, sample: Sample, seed: int = 0, **options) -> Sample:
    return Pipeline(specs, **options)(sample, np.random.default_rng(seed))


def extent(mask: np.ndarray, value: int) -> list[int]:
    ys, xs = np.nonzero(mask == value)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"short": 96}, (96, 128)),
        ({"short": 96, "long": 100}, (75, 100)),
        ({"long": 32}, (24, 32)),
        ({"height": 10, "width": 20}, (10, 20)),
        ({"short": 24, "long": 1000}, (24, 32)),
    ],
)
def test_resize_gives_the_size_asked_for_and_scales_the_boxes(options, size):
    sample = make_sample()
    out = run([{"name": "Resize", **options}], sample)
    assert out.image.shape == (*size, 3)
    ratio = np.array([size[1] / 64, size[0] / 48] * 2)
    assert np.allclose(out.boxes, sample.boxes * ratio, atol=1e-4)
    assert out.original_size == (48, 64)


def test_a_list_of_short_sides_is_drawn_from():
    heights = {run([{"name": "Resize", "short": [24, 30, 36]}], make_sample(), s).image.shape[0] for s in range(30)}
    assert heights == {24, 30, 36}


def test_an_image_decoded_at_half_size_gives_the_same_boxes_and_size():
    sample, half = make_sample(49, 65), make_sample(49, 65)
    half.image = half.image[::2, ::2]
    pipeline = Pipeline([{"name": "Resize", "long": 30}])
    assert pipeline.reduction((49, 65)) == 2
    full, reduced = (pipeline(s, np.random.default_rng(0)) for s in (sample, half))
    assert full.image.shape == reduced.image.shape
    assert np.array_equal(full.boxes, reduced.boxes)


@pytest.mark.parametrize(
    ("specs", "reduction"),
    [
        ([{"name": "Resize", "long": 80}], 8),
        ([{"name": "Resize", "long": 81}], 4),
        ([{"name": "Resize", "short": [100, 300]}], 1),
        ([{"name": "HorizontalFlip"}, {"name": "Resize", "long": 80}], 1),
        ([], 1),
    ],
)
def test_images_are_decoded_smaller_only_where_the_first_step_shrinks_them_more(specs, reduction):
    assert Pipeline(specs).reduction((480, 640)) == reduction


def test_shrinking_averages_and_masks_take_the_nearest_pixel():
    image = np.tile(np.array([[0, 200], [200, 0]], np.uint8)[:, :, None], (8, 8, 3))
    sample = Sample(image=image, id=0, original_size=(16, 16), seed=0, mask=np.full((16, 16), IGNORE, np.uint8))
    sample.mask[:, :8] = 1
    out = run([{"name": "Resize", "long": 8}], sample)
    assert set(out.image.ravel()) == {100}
    assert np.array_equal(out.mask, np.repeat([[1] * 4 + [IGNORE] * 4], 8, 0))


@pytest.mark.parametrize("name", ["HorizontalFlip", "VerticalFlip"])
def test_flips_move_boxes_and_mask_with_the_pixels(name):
    sample = make_sample(mask=True)
    out = run([{"name": name, "p": 1.0}], sample)
    for row, label in zip(out.boxes, out.labels):
        assert row.tolist() == extent(out.mask, label + 1)
    assert np.array_equal(out.mask > 0, out.image[:, :, 0] > 0)
    assert not np.array_equal(out.mask, sample.mask)
    assert np.array_equal(run([{"name": name, "p": 1.0}], out).boxes, sample.boxes)


def test_flips_equal_those_of_albumentations():
    import albumentations

    sample = make_sample()
    compose = albumentations.Compose(
        [albumentations.HorizontalFlip(p=1.0)], bbox_params=albumentations.BboxParams("pascal_voc", label_fields=["k"])
    )
    theirs = compose(image=sample.image, bboxes=sample.boxes, k=sample.labels)
    ours = run([{"name": "HorizontalFlip", "p": 1.0}], sample)
    assert np.array_equal(ours.image, theirs["image"])
    assert np.allclose(ours.boxes, theirs["bboxes"], atol=1e-2)


SPATIAL = [
    [{"name": "ScaleJitter", "size": [40, 56], "scale": [0.3, 2.5]}],
    [{"name": "RandomCrop", "height": 30, "width": 40}],
    [{"name": "Affine", "scale": [0.7, 1.4], "translate_percent": [-0.2, 0.2], "p": 1.0}],
    [{"name": "RandomResizedCrop", "size": [40, 40], "scale": [0.3, 1.0]}],
    [{"name": "PadIfNeeded", "min_height": 70, "min_width": 80, "position": "random"}],
    [{"name": "D4"}, {"name": "Resize", "short": [30, 50]}, {"name": "BBoxSafeRandomCrop"}],
    [{"name": "OneOf", "transforms": [{"name": "Transpose"}, {"name": "RandomScale", "p": 1.0}], "p": 1.0}],
]  # fmt: skip


@pytest.mark.parametrize("specs", SPATIAL, ids=lambda s: s[0]["name"])
def test_boxes_labels_crowd_and_mask_follow_the_pixels(specs):
    pipeline, seen = Pipeline(specs), 0
    for seed in range(25):
        out = pipeline(make_sample(mask=True, seed=seed), np.random.default_rng(seed))
        assert out.boxes.dtype == np.float32
        assert (out.labels.dtype, out.crowd.dtype, out.mask.dtype) == (np.int64, np.bool_, np.uint8)
        assert out.mask.shape == out.image.shape[:2]
        assert len(out.boxes) == len(out.labels) == len(out.crowd)
        assert np.array_equal(out.crowd, out.labels == 1)
        assert (out.boxes >= 0).all()
        assert (out.boxes <= np.array([out.image.shape[1], out.image.shape[0]] * 2)).all()
        assert ((out.boxes[:, 2:] - out.boxes[:, :2]) >= 1).all()
        for row, label in zip(out.boxes, out.labels):
            if (out.mask == label + 1).sum() > 20:
                assert np.abs(row - extent(out.mask, label + 1)).max() <= 2.6
                seen += 1
    assert seen > 20


def test_boxes_that_a_crop_empties_are_dropped_with_their_labels():
    sample = make_sample()
    sample.boxes[:] = [[0, 0, 10, 10], [40, 30, 60, 44], [55, 0, 63, 5]]
    out = run([{"name": "Crop", "x_min": 32, "y_min": 16, "x_max": 64, "y_max": 48}], sample)
    assert out.labels.tolist() == [1]
    assert out.crowd.tolist() == [True]
    assert np.allclose(out.boxes, [[8, 14, 28, 28]], atol=1e-2)


def test_images_without_boxes_stay_without_boxes():
    for specs in SPATIAL:
        sample = make_sample(boxes=0)
        if specs[-1]["name"] != "BBoxSafeRandomCrop":
            out = run(specs, sample)
            assert (out.boxes.shape, out.labels.shape, out.crowd.shape) == ((0, 4), (0,), (0,))


def test_padding_of_masks_is_ignored_and_multi_label_masks_keep_their_planes():
    sample = make_sample(mask=True)
    sample.mask = np.stack([sample.mask == 1, sample.mask == 2]).astype(np.uint8)
    out = run([{"name": "PadIfNeeded", "min_height": 64, "min_width": 64, "position": "top_left"}], sample)
    assert out.mask.shape == (2, 64, 64)
    assert np.array_equal(out.mask[:, :48, :64], sample.mask)
    assert (out.mask[:, 48:] == IGNORE).all()
    small = run([{"name": "ScaleJitter", "size": [48, 64], "scale": [0.5, 0.5]}], sample)
    assert (small.mask[:, 24:] == IGNORE).all()
    assert (small.image[24:] == 128).all()
    assert np.array_equal(small.mask[:, :24, :32], sample.mask[:, 1::2, 1::2])


def test_pixel_transforms_leave_boxes_alone_bit_for_bit():
    sample = make_sample()
    sample.boxes += np.float32(0.123)
    out = run([{"name": "ColorJitter", "p": 1.0}, {"name": "GaussNoise", "p": 1.0}], sample)
    assert np.array_equal(out.boxes, sample.boxes)
    assert not np.array_equal(out.image, sample.image)


def test_the_same_generator_gives_the_same_sample_and_another_gives_another():
    specs = [
        {"name": "HorizontalFlip"},
        {"name": "ColorJitter", "p": 1.0},
        {"name": "RandomCrop", "height": 20, "width": 20},
    ]
    pipeline, other = Pipeline(specs), Pipeline(specs)  # fmt: skip
    first = [pipeline(make_sample(), np.random.default_rng(s)).image for s in range(6)]
    again = [other(make_sample(), np.random.default_rng(s)).image for s in reversed(range(6))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert len({a.tobytes() for a in first}) == 6


def test_float_and_multi_channel_images_keep_type_range_and_channels():
    sample = make_sample()
    sample.image = np.repeat(sample.image[:, :, :1], 5, 2).astype(np.float32)
    out = run([{"name": "GaussianBlur", "p": 1.0}, {"name": "Affine", "rotate": 10, "p": 1.0}], sample)
    assert out.image.dtype == np.float32
    assert out.image.shape == (48, 64, 5)
    assert 100 < out.image.max() <= 255
    grey = make_sample()
    grey.image = grey.image[:, :, :1]
    assert run([{"name": "Resize", "long": 30}, {"name": "HorizontalFlip"}], grey).image.shape[2] == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "HorizontalFlap"}, r"data.train\[0\]: there is no transform 'HorizontalFlap'; did you mean 'Hor"),
        ({"name": "HorizontalFlip", "pp": 1}, r"data.train\[0\].pp: HorizontalFlip has no such option; did you"),
        ({"name": "HorizontalFlip", "p": 2}, r"\[0\].p: input should be less than or equal to 1, not 2"),
        (
            {"name": "RandomCrop", "heigth": 3, "width": 3},
            r"heigth: RandomCrop has no such option; did you mean 'height'",
        ),
        ({"name": "RandomCrop", "height": 3}, r"\[0\].width must be given"),
        ({"name": "RandomCrop", "height": -3, "width": 3}, "height: input should be greater than"),
        ({"name": "Resize"}, "takes height and width, or short, or long"),
        ({"name": "Resize", "height": 3}, "takes height and width"),
        ({"name": "Resize", "short": "a"}, "short"),
        ({"name": "ScaleJitter", "size": [3, 3], "scale": [2, 1]}, "smallest, largest"),
        ({"name": "Normalize"}, "the model normalises"),
        ({"name": "OneOf", "transforms": [{"name": "Blurr"}]}, r"transforms\[0\]: there is no transform 'Blurr'"),
        ({"name": "BasicTransform"}, "there is no transform"),
        ({"nam": "Resize"}, "a mapping with a name"),
        ("Resize", "a mapping with a name"),
    ],
)
def test_mistakes_in_a_pipeline_are_named_with_the_remedy(spec, message):
    with pytest.raises(DensekitError, match=message) as error:
        Pipeline([spec], path="data.train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "HorizontalFlip"}, "HorizontalFlip cannot be undone"),
        ({"name": "Resize", "short": [3, 4]}, "Resize cannot be undone"),
        ({"name": "Sequential", "transforms": [{"name": "CLAHE"}]}, "Sequential cannot be undone"),
        ({"name": "RandomCrop", "height": 3, "width": 3}, "RandomCrop cannot be undone"),
        (
            {"name": "AutoContrast"},
            r"\[1\].p: AutoContrast would change one image and not the next \(p 0.5\); set p: 1",
        ),
        ({"name": "ColorJitter", "p": 1}, "ColorJitter draws its numbers anew"),
        ({"name": "CLAHE", "clip_limit": [1, 9], "p": 1}, "CLAHE draws its numbers anew .* one value twice"),
    ],
)
def test_evaluation_takes_only_what_can_be_undone_and_is_the_same_each_time(spec, message):
    with pytest.raises(DensekitError, match=message) as error:
        Pipeline([{"name": "Resize", "long": 20}, spec], training=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spec", [{"name": "AutoContrast", "method": "pil", "p": 1}, {"name": "CLAHE", "clip_limit": [2, 2], "p": 1}]
)
def test_evaluation_takes_fixed_colours_and_keeps_the_mask(spec):
    import albumentations

    image = np.random.default_rng(0).integers(90, 120, (40, 60, 3), np.uint8)
    sample = Sample(image, id=1, original_size=(40, 60), seed=0, mask=np.ones((40, 60), np.uint8))
    pipeline = Pipeline([{"name": "Resize", "long": 30}, spec], training=False)
    found = pipeline(sample, np.random.default_rng(3))
    options = {key: value for key, value in spec.items() if key != "name"}
    theirs = getattr(albumentations, spec["name"])(**options)
    shrunk = Pipeline([{"name": "Resize", "long": 30}], training=False)(sample, np.random.default_rng(3))
    assert np.array_equal(found.image, theirs(image=shrunk.image)["image"])
    assert not np.array_equal(found.image, shrunk.image)
    assert found.mask is not None
    assert found.mask.shape == (20, 30)
    assert np.array_equal(pipeline.recoloured(image), theirs(image=image)["image"])


def test_a_transform_that_cannot_take_an_image_is_named_with_the_image():
    with pytest.raises(DensekitError, match="RandomCrop cannot take image 7 of 48 x 64 x 3") as error:
        run([{"name": "RandomCrop", "height": 400, "width": 400}], make_sample())
    assert "\n" not in str(error.value)
