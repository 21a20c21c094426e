"""Images of more than 8 bits: every value reaches the model, on one range for the whole set."""

from __future__ import annotations

import os
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from densekit.config import DataConfig
from densekit.data.images.files import ImageFiles
from densekit.data.images.header import peek
from densekit.data.images.read import ImageReader, read_image, read_pixels
from densekit.data.images.settings import find_range, read_as, settle, unfit_range
from densekit.data.images.value_range import values_of
from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError
from densekit.types import Classes

TWELVE = (np.arange(6 * 8, dtype=np.uint16).reshape(6, 8) * 87 + 6).astype(np.uint16)  # 48 values from 6 to 4095


def twelve_bit_tiff(values):
    """A grey TIFF of 12 bits a value, two of them in three bytes."""
    pairs = values.reshape(-1, 2).astype(int)
    data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    height, width = values.shape
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def write(path, values):
    """Save values in the format of the name's ending."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".pgm":
        path.write_bytes(b"P5\n8 6\n4095\n" + values.astype(">u2").tobytes())
    elif path.name.startswith("packed"):
        path.write_bytes(twelve_bit_tiff(values))
    else:
        cv2.imwrite(str(path), values[..., ::-1] if values.ndim == 3 else values)
    return path


def image_files(folder, **options):
    """A data set of the folder's files."""
    return ImageFiles(
        sorted(folder.iterdir()),
        task="classification",
        classes=Classes(("a",), (0,)),
        transforms=Pipeline((), training=False),
        read_image=ImageReader(1),
        **options,
    )


def data_config(**options):
    return DataConfig.model_validate({"train": {"name": "image_folder"}, **options})


def expected(values, low, high):
    """What numpy makes of it, in single precision."""
    return np.clip((values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low)), 0, 255)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "packed.tif", "a.npy", "a.pgm"])
def test_each_of_twelve_bits_reaches_the_model_to_the_bit(tmp_path, name):
    path = write(tmp_path / name, TWELVE)
    assert np.array_equal(read_pixels(path, channels=1)[..., 0], TWELVE)
    read = read_image(path, channels=1, value_range=(0, 4095))
    assert read.dtype == np.float32
    assert np.array_equal(read[..., 0], expected(TWELVE, 0, 4095))
    assert len(np.unique(read)) == 48
    assert np.array_equal(read_image(path, value_range=(0, 4095)), np.repeat(read, 3, 2))


@pytest.mark.parametrize("ending", ["png", "tif", "npy"])
def test_colour_of_sixteen_bits(tmp_path, ending):
    values = np.dstack([TWELVE, TWELVE[::-1], TWELVE[:, ::-1]])
    path = write(tmp_path / f"a.{ending}", values)
    assert np.array_equal(read_image(path, value_range=(0, 4095)), expected(values, 0, 4095))
    assert np.array_equal(read_image(path), expected(values, 0, 65535))  # no range: all of 16 bits


def test_colour_of_sixteen_bits_does_not_depend_on_what_lies_in_memory(tmp_path):
    values = np.dstack([TWELVE, TWELVE[::-1], TWELVE[:, ::-1]])
    path, wanted = write(tmp_path / "a.tif", values), expected(values, 0, 4095)
    for fill in range(200):
        np.full(values.shape, fill * 300, np.uint16)  # freed at once, for the decoder to find
        assert np.array_equal(read_image(path, value_range=(0, 4095)), wanted)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
@pytest.mark.parametrize("ending", ["tif", "npy"])
def test_values_below_zero_take_a_window(tmp_path, ending, dtype):
    values = (np.arange(48).reshape(6, 8) * 85 - 1024).astype(dtype)  # Hounsfield units
    path = write(tmp_path / f"a.{ending}", values)
    window = read_image(path, channels=1, value_range=(-160, 240))[..., 0]
    exact = np.clip((values.astype(np.float64) + 160) * (255 / 400), 0, 255)
    assert np.allclose(window, exact, atol=1e-4)
    assert window.min() == 0
    assert window.max() == 255
    with pytest.raises(DensekitError, match=r"go from -1024 to 2971 .*data.range=\[-1024,2971\]"):
        read_image(path, channels=1)


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint32])
def test_wide_types_lose_nothing_that_a_float32_can_hold(tmp_path, dtype):
    values = (10**9 + np.arange(48).reshape(6, 8)).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    read = read_image(tmp_path / "a.npy", channels=1, value_range=(10**9, 10**9 + 47))
    assert np.array_equal(read[..., 0], (np.arange(48).reshape(6, 8) * (255 / 47)).astype(np.float32))


def test_eight_bit_images_stay_bytes_whatever_the_range(tmp_path):
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for ending in ("png", "tif", "npy"):
        read = read_image(write(tmp_path / f"a.{ending}", values), channels=1, value_range=(0, 4095))
        assert read.dtype == np.uint8
        assert np.array_equal(read[..., 0], values)
    np.save(tmp_path / "flags.npy", values > 20)
    assert np.array_equal(read_image(tmp_path / "flags.npy", channels=1)[..., 0], (values > 20) * np.uint8(255))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([6, 3987], np.uint16), (0, 4095)),
        (np.array([0, 4096], np.uint16), (0, 8191)),
        (np.array([3, 65535], np.uint16), (0, 65535)),
        (np.array([0, 17], np.uint16), (0, 255)),
        (np.array([0.02, 0.98], np.float32), (0, 1)),
        (np.array([0.5, 250.5], np.float32), (0, 255)),
        (np.array([-1024, 3071], np.int16), (-1024, 3071)),
        (np.array([-0.5, 0.25], np.float32), (-0.5, 0.25)),
        (np.array([-3, -3], np.int32), (-3, -2)),
    ],
)
def test_the_range_is_the_smallest_usual_scale_that_holds_all_values(values, found):
    assert values_of(values.reshape(1, 2, 1)).range() == found


@pytest.mark.parametrize(
    ("name", "values", "deep"),
    [
        ("a.png", TWELVE, True),
        ("a.png", TWELVE.astype(np.uint8), False),
        ("a.png", np.dstack([TWELVE] * 3), True),
        ("a.tif", TWELVE, True),
        ("a.tif", np.dstack([TWELVE] * 3), True),
        ("a.tif", TWELVE.astype(np.float32), True),
        ("a.tif", TWELVE.astype(np.int8), True),
        ("a.tif", np.dstack([TWELVE] * 3).astype(np.uint8), False),
        ("packed.tif", TWELVE, True),
        ("a.pgm", TWELVE, True),
        ("a.npy", TWELVE, True),
        ("a.npy", TWELVE.astype(np.uint8), False),
        ("a.npy", TWELVE > 9, False),
        ("a.jpg", TWELVE.astype(np.uint8), False),
        ("a.bmp", TWELVE.astype(np.uint8), False),
        ("a.webp", TWELVE.astype(np.uint8), False),
    ],
)
def test_the_header_tells_files_of_more_than_eight_bits(tmp_path, name, values, deep):
    header = peek(write(tmp_path / name, values))
    assert (header.deep, header.width, header.height) == (deep, 8, 6)
    assert (read_pixels(tmp_path / name).dtype not in (np.uint8, np.bool_)) == deep


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_devices_and_damaged_files_are_no_images_and_nothing_waits_for_them(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "endless.jpg")
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': [(((" + b" " * 100)
    (tmp_path / "short.tif").write_bytes(b"II*\0\xff\xff\xff\xff")
    (tmp_path / "empty.tif").write_bytes(b"")
    for name in ("pipe.png", "endless.jpg", "damaged.npy", "empty.tif", "absent.png"):
        assert peek(tmp_path / name) is None
    assert peek(tmp_path / "short.tif").width == 0


def test_a_large_thumbnail_or_a_directory_at_the_end_hides_no_header(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    padded = exif.tobytes() + b"\0" * 60000
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "a.jpg", exif=padded, icc_profile=b"\0" * 60000)
    header = peek(tmp_path / "a.jpg")
    assert (header.width, header.height, header.orientation) == (8, 6, 6)
    wide = np.arange(300 * 400, dtype=np.uint16).reshape(300, 400)
    cv2.imwrite(str(tmp_path / "a.tif"), wide, [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    assert int.from_bytes((tmp_path / "a.tif").read_bytes()[4:8], "little") > 2**16  # its directory
    header = peek(tmp_path / "a.tif")
    assert (header.width, header.height, header.deep) == (400, 300, True)


def test_the_range_is_measured_once_over_the_training_set_and_told(tmp_path):
    write(tmp_path / "a.png", TWELVE // 2)
    write(tmp_path / "b.png", TWELVE)
    write(tmp_path / "c.png", TWELVE.astype(np.uint8))
    (tmp_path / "d.png").write_bytes(b"no image")
    data = image_files(tmp_path)
    config, lines = settle(data_config(), data)
    assert config.range == (0, 4095)
    assert lines == [
        "data: 2 images of more than 8 bits (uint16) with values from 3 to 4095: data.range [0, 4095] becomes black to "
        "white, wherever the model is used"
    ]
    read_as(config, data)
    assert np.array_equal(data.sample(0, 0).image[..., 0], expected(TWELVE // 2, 0, 4095))
    assert settle(config, data) == (config, [])  # what a resumed run does


def test_eight_bit_sets_have_no_range_and_nothing_is_said(tmp_path):
    write(tmp_path / "a.png", TWELVE.astype(np.uint8))
    assert settle(data_config(), image_files(tmp_path)) == (data_config(), [])
    declared, lines = settle(data_config(range=[0, 4095]), image_files(tmp_path))
    assert declared.range == (0, 4095)
    assert "the training set has none" in lines[0]


def test_a_range_of_which_next_to_nothing_is_used_is_told_with_the_remedy(tmp_path):
    values = np.full((60, 80), 31900, np.uint16)
    values[10:20] = 34200
    values[0, 0] = 65535  # a hot pixel
    write(tmp_path / "a.tif", values)
    found, lines = find_range(image_files(tmp_path))
    assert found == (0, 65535)
    assert lines[1].endswith("set data.range=[31900,34200], or what black and white are")


def test_deep_images_for_a_model_that_knows_no_range_are_told(tmp_path):
    write(tmp_path / "a.png", TWELVE)
    data = image_files(tmp_path)
    assert "1 of 1 images hold more than 8 bits" in unfit_range(data_config(), data)[0]
    assert unfit_range(data_config(range=[0, 4095]), data) == []


@pytest.mark.parametrize(("values", "look"), [(TWELVE * 16, "white"), (TWELVE // 32, "black"), (TWELVE, None)])
def test_images_on_another_scale_than_the_training_images_are_told(tmp_path, values, look):
    write(tmp_path / "a.png", values)
    lines = unfit_range(data_config(range=[0, 4095]), image_files(tmp_path))
    assert lines == [] if look is None else f"most of which are {look} on data.range [0, 4095]" in lines[0]


@pytest.mark.parametrize("value", [[5, 5], [4095, 0]])
def test_a_range_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="black lies below white"):
        data_config(range=value)
