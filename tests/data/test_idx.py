"""MNIST's file format."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from densekit.errors import DensekitError
from densekit.registry import DATASETS


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape) + values.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 2, 0, 1], np.uint8)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx(IMAGES), mtime=0))
    (tmp_path / "labels").write_bytes(idx(LABELS))
    return {"images": str(tmp_path / "images.gz"), "labels": str(tmp_path / "labels")}


def test_images_and_labels_plain_or_zipped(files):
    data = DATASETS.build("idx", files)
    assert len(data) == 6
    assert data.classes.names == ("0", "1", "2")
    assert [data.sample(0, i).target for i in range(6)] == LABELS.tolist()
    assert np.array_equal(data.sample(0, 3).image, IMAGES[3][:, :, None])
    assert np.allclose(data.aspect_ratios(), 4 / 5)


def test_a_part_keeps_the_files_positions_as_ids_and_all_classes(files):
    data = DATASETS.build("idx", {**files, "part": [4, 6]})
    assert [data.sample(0, i).id for i in range(len(data))] == [4, 5]
    assert [data.sample(0, i).target for i in range(len(data))] == [0, 1]
    assert len(data.classes) == 3


def test_grey_becomes_three_channels_where_the_model_wants_them(files):
    image = DATASETS.build("idx", files, channels=3).sample(0, 0).image
    assert image.shape == (5, 4, 3)
    assert np.array_equal(image[:, :, 2], IMAGES[0])


def test_classes_can_be_named(files):
    assert DATASETS.build("idx", {**files, "classes": ["x", "y", "z", "w"]}).classes.names == ("x", "y", "z", "w")
    with pytest.raises(DensekitError, match="classes: 2 names, but the labels go up to 2"):
        DATASETS.build("idx", {**files, "classes": ["x", "y"]})


def test_mnist_itself_is_read(real_data):
    folder = real_data / "mnist"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    names = {"images": "t10k-images-idx3-ubyte.gz", "labels": "t10k-labels-idx1-ubyte.gz"}
    options = {key: str(folder / name) for key, name in names.items()}
    data = DATASETS.build("idx", {**options, "part": [8000, 10000]})
    assert len(data) == 2000
    assert data.sample(0, 0).image.shape == (28, 28, 1)
    assert len(data.classes) == 10


@pytest.mark.parametrize("part", [[3, 3], [-1, 2], [0, 7]])
def test_parts_outside_the_file_are_told(part, files):
    with pytest.raises(DensekitError, match=r"part: .* is not within 0 and 6"):
        DATASETS.build("idx", {**files, "part": part})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello world", "not an idx file"),
        (b"", "not an idx file"),
        (idx(IMAGES)[:-1], "the header says 6 x 5 x 4 values, but 119 are there; the file is damaged"),
        (idx(IMAGES) + b"x", "but 121 are there"),
        (idx(IMAGES)[:9], "the header says nothing values"),
        (idx(IMAGES, kind=0x0D), "values of type 0x0d; only unsigned bytes"),
        (idx(LABELS), "1 dimensions, 3 or 4 are needed; are images and labels exchanged"),
        (gzip.compress(idx(IMAGES), mtime=0)[:-9], "cannot be read"),
        (idx(IMAGES[:5]), "there are 5 images but 6 labels"),
        (idx(np.zeros((6, 5, 4, 2), np.uint8)), "the images have 2 channels, the model takes 1"),
    ],
)
def test_files_that_are_not_as_they_should_be_are_told(content, message, files, tmp_path):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(DensekitError, match=message) as error:
        DATASETS.build("idx", {**files, "images": str(tmp_path / "bad")})
    assert "\n" not in str(error.value)


def test_a_missing_file_is_told(files, tmp_path):
    with pytest.raises(DensekitError, match="there is no such file"):
        DATASETS.build("idx", {**files, "labels": str(tmp_path / "absent")})


def test_images_over_the_limit_are_refused(files):
    with pytest.raises(DensekitError, match="4 x 5 pixels is over 19"):
        DATASETS.build("idx", files, max_pixels=19)
