"""EXIF orientation: one picture in training and prediction, also where the annotated size leaves it open."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from densekit.config import DataConfig
from densekit.data.formats.coco.coco import CocoDataset
from densekit.data.formats.coco.file import open_coco
from densekit.data.images.files import ImageFiles
from densekit.data.images.read import ImageReader, read_image
from densekit.data.images.settings import read_as, settle
from densekit.data.transforms.pipeline import Pipeline
from densekit.registry import DATASETS
from densekit.types import Classes

PICTURE = np.arange(12 * 16 * 3, dtype=np.uint32).reshape(12, 16, 3).astype(np.uint8)  # no symmetry
SQUARE = PICTURE[:, :12]
CONFIG = DataConfig.model_validate({"train": {"name": "coco"}})


def save(path, pixels, tag):
    """An image with a tag; the pixels as stored and as Pillow turns them."""
    exif = Image.Exif()
    exif[0x0112] = tag
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        return pixels, np.asarray(ImageOps.exif_transpose(image))


def coco(folder, images):
    """A COCO data set of ``{name: (pixels, tag, (height, width) that the json gives)}``."""
    for name, (pixels, tag, _) in images.items():
        save(folder / "images" / name, pixels, tag)
    entries = [
        {"id": number, "file_name": name, "height": size[0], "width": size[1]}
        for number, (name, (_, _, size)) in enumerate(images.items())
    ]
    content = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return CocoDataset(folder / "images", file=open_coco(folder / "a.json", cache=False))


def predicted(config, path):
    """What prediction with a checkpoint of that config sees."""
    given = {"task": "detection", "classes": Classes(("a",), (1,)), "transforms": Pipeline((), training=False)}
    images = ImageFiles([path], read_image=ImageReader(), **given)
    read_as(config, images)
    return images.sample(0, 0).image


@pytest.mark.parametrize(
    ("pixels", "tag"), [(PICTURE, 2), (PICTURE, 3), (PICTURE, 4), *((SQUARE, tag) for tag in range(2, 9))]
)
def test_a_size_that_fits_both_leaves_it_to_the_convention(tmp_path, pixels, tag):
    stored, turned = save(tmp_path / "a.png", pixels, tag)
    assert not np.array_equal(stored, turned)
    for size in (stored.shape[:2], None):
        assert np.array_equal(read_image(tmp_path / "a.png", size=size), turned)
        assert np.array_equal(read_image(tmp_path / "a.png", size=size, orientation="stored"), stored)


@pytest.mark.parametrize("convention", ["exif", "stored"])
def test_a_size_that_fits_one_alone_decides(tmp_path, convention):
    stored, turned = save(tmp_path / "a.png", PICTURE, 6)
    assert np.array_equal(read_image(tmp_path / "a.png", size=(12, 16), orientation=convention), stored)
    assert np.array_equal(read_image(tmp_path / "a.png", size=(16, 12), orientation=convention), turned)


def test_without_a_hint_images_are_turned_in_training_and_prediction_and_it_is_said(tmp_path):
    data = coco(
        tmp_path, {"a.png": (PICTURE, 3, (12, 16)), "b.png": (SQUARE, 6, (12, 12)), "c.png": (PICTURE, 1, (12, 16))}
    )
    config, lines = settle(CONFIG, data)
    read_as(config, data)
    assert config.orientation is None
    assert len(lines) == 1
    assert "2 of 3 images have an EXIF orientation, and a size that fits it and the pixels as stored" in lines[0]
    for index, name in enumerate(("a.png", "b.png", "c.png")):
        path = tmp_path / "images" / name
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
        assert np.array_equal(data.sample(0, index).image, expected)
        assert np.array_equal(predicted(config, path), expected)


def test_sizes_of_the_other_images_show_that_all_were_annotated_as_stored(tmp_path):
    data = coco(
        tmp_path, {"a.png": (PICTURE, 3, (12, 16)), "b.png": (PICTURE, 6, (12, 16)), "c.png": (PICTURE, 8, (12, 16))}
    )
    config, lines = settle(CONFIG, data)
    read_as(config, data)
    assert config.orientation == "stored"
    assert "2 images were annotated as stored, by their size, against their EXIF orientation: so all" in lines[0]
    for index, name in enumerate(("a.png", "b.png", "c.png")):
        assert np.array_equal(data.sample(0, index).image, PICTURE)
        assert np.array_equal(predicted(config, tmp_path / "images" / name), PICTURE)


def test_sizes_that_follow_the_tag_need_no_word(tmp_path):
    data = coco(tmp_path, {"a.png": (PICTURE, 3, (12, 16)), "b.png": (PICTURE, 6, (16, 12))})
    assert settle(CONFIG, data) == (CONFIG, [])
    assert np.array_equal(data.sample(0, 0).image, PICTURE[::-1, ::-1])


def test_sizes_that_show_both_are_told_and_the_most_decide(tmp_path):
    sizes = {"a.png": (PICTURE, 3, (12, 16)), "b.png": (PICTURE, 6, (16, 12)), "c.png": (PICTURE, 6, (12, 16))}
    config, lines = settle(CONFIG, coco(tmp_path, sizes))
    assert config.orientation is None
    assert "1 images were annotated as their EXIF orientation turns them, and 1 as stored" in lines[0]


def test_a_declared_convention_is_taken_without_a_word(tmp_path):
    data = coco(tmp_path, {"a.png": (PICTURE, 3, (12, 16))})
    declared = CONFIG.model_copy(update={"orientation": "stored"})
    assert settle(declared, data) == (declared, [])
    read_as(declared, data)
    assert np.array_equal(data.sample(0, 0).image, PICTURE)


def test_masks_show_the_convention_too(tmp_path):
    for name, tag in (("a.png", 6), ("b.png", 3)):
        save(tmp_path / "images" / name, PICTURE, tag)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((12, 16), np.uint8)).save(tmp_path / "masks" / name)
    options = {"images": tmp_path / "images", "masks": tmp_path / "masks", "classes": ("a",)}
    data = DATASETS.build("masks", options, transforms=None, seed=0, training=True, channels=3)
    config, _ = settle(CONFIG, data)
    read_as(config, data)
    assert config.orientation == "stored"
    assert all(np.array_equal(data.sample(0, index).image, PICTURE) for index in (0, 1))


def test_images_without_annotations_in_pixels_are_turned_and_nothing_is_said(tmp_path):
    _, turned = save(tmp_path / "a" / "x.png", PICTURE, 3)
    data = DATASETS.build("image_folder", {"images": tmp_path}, transforms=None, seed=0, training=True, channels=3)
    assert settle(CONFIG, data) == (CONFIG, [])
    assert np.array_equal(data.sample(0, 0).image, turned)
