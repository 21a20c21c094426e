"""Values of images: types of files beside one another, and values that mean nothing."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from densekit.data.images.read import read_image
from densekit.data.loading.batching import collate, stack_images
from densekit.errors import DensekitError
from densekit.types import Sample

RAMP = (np.arange(48, dtype=np.float32).reshape(6, 8) * 5.25).astype(np.float32)  # 0..246.75


def write(path, values):
    """Save floats in the format of the name's ending."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".pfm":
        path.write_bytes(b"Pf\n8 6\n-1.0\n" + values[::-1].astype("<f4").tobytes())
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("ending", ["tif", "npy", "pfm"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -3.4028235e38])
def test_values_that_mean_nothing_are_refused_in_every_format(tmp_path, ending, value):
    assert np.array_equal(read_image(write(tmp_path / f"good.{ending}", RAMP), channels=1)[..., 0], RAMP)
    bad = RAMP.copy()
    bad[2, 3:5] = value
    with pytest.raises(DensekitError, match=rf"a\.{ending}: 2 of its 48 pixels are NaN, infinite or a no-data value"):
        read_image(write(tmp_path / f"a.{ending}", bad), channels=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_value_that_means_nothing_is_found_in_colour_and_in_half_and_double_precision(tmp_path, channels):
    colour = np.dstack([RAMP, RAMP + 1, RAMP + 2])
    colour[0, 0, 1] = np.nan
    cv2.imwrite(str(tmp_path / "a.tif"), colour)
    np.save(tmp_path / "half.npy", colour[..., :channels].astype(np.float16) + np.float16(np.inf))
    np.save(tmp_path / "double.npy", colour[..., :channels].astype(np.float64) + 1e200)
    for name in ("a.tif", "half.npy", "double.npy"):
        with pytest.raises(DensekitError, match=rf"{name}: (1|48) of its 48 pixels are NaN"):
            read_image(tmp_path / name, channels=channels)


def test_a_page_with_a_value_that_means_nothing_is_refused(tmp_path):
    pages = [Image.fromarray(np.full((6, 8), v, np.float32)) for v in (1, 2, np.nan, 4, 5)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DensekitError, match="48 of its 48 pixels are NaN"):
        read_image(tmp_path / "a.tif", channels=5)


def test_colour_floats_become_grey_where_one_channel_is_asked_for(tmp_path):
    colour = np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]])
    cv2.imwrite(str(tmp_path / "a.tif"), colour[..., ::-1])
    expected = colour @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601
    assert np.allclose(read_image(tmp_path / "a.tif", channels=1)[..., 0], expected, atol=1e-3)


def test_arrays_of_the_other_byte_order_are_the_same_image(tmp_path):
    values = np.arange(0, 48 * 1300, 1300, dtype=np.uint16).reshape(6, 8)
    np.save(tmp_path / "little.npy", values.astype("<u2"))
    np.save(tmp_path / "big.npy", values.astype(">u2"))
    little, big = (read_image(tmp_path / f"{name}.npy") for name in ("little", "big"))
    assert little.dtype == big.dtype
    assert np.array_equal(little, big)


@pytest.mark.parametrize("first", [0, 1])
def test_a_batch_holds_each_image_as_it_is_whatever_stands_beside_it(first):
    images = [np.full((4, 5, 1), 200, np.uint8), np.full((3, 6, 1), 0.125, np.float32)]
    images = images[first:] + images[:first]
    for batch in (
        stack_images(images, 6, 7),
        collate([Sample(i, id=n, original_size=i.shape[:2], seed=0) for n, i in enumerate(images)]).images,
    ):
        for row, image in zip(batch.numpy(), images):
            assert row.dtype == np.float32
            height, width = image.shape[:2]
            assert np.array_equal(row[0, :height, :width], image[..., 0])
            assert row[0, height:].max() == row[0, :, width:].max() == 0
