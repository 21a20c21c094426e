"""ContrastStretch against numpy's percentiles; flat images, floats, channels."""

from __future__ import annotations

import numpy as np
import pytest

from densekit.data.transforms.pipeline import Pipeline
from densekit.types import DensekitError, Sample


def stretched(image: np.ndarray, **options: object) -> np.ndarray:
    """The image after the transform, as an evaluation sees it."""
    sample = Sample(image, id=1, original_size=image.shape[:2], seed=0)
    pipeline = Pipeline([{"name": "ContrastStretch", **options}], training=False)
    found = pipeline(sample, np.random.default_rng(0)).image
    assert np.array_equal(found, pipeline.recoloured(image))
    return found


def expected(image: np.ndarray, low: float, high: float) -> np.ndarray:
    darkest, brightest = np.percentile(image, (low, high))
    return ((image.astype(np.float64) - darkest) / (brightest - darkest) * 255).clip(0, 255)


def dim_image(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).gamma(2.0, 9.0, (37, 23, channels)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize(("low", "high"), [(0.5, 99.8), (0, 100), (12.3, 77.7)])
def test_the_percentiles_become_black_and_white(channels, low, high):
    image = dim_image(channels)
    found = stretched(image, low=low, high=high)
    assert found.dtype == np.uint8
    assert found.shape == image.shape
    np.testing.assert_allclose(found, expected(image, low, high), atol=0.51)


def test_a_large_image_is_counted_part_by_part():
    image = np.random.default_rng(0).integers(40, 90, (1300, 1100, 3), np.uint8)
    assert image.size > 2**22
    np.testing.assert_allclose(stretched(image), expected(image, 0.5, 99.8), atol=0.51)


def test_each_channel_can_be_stretched_alone():
    image = dim_image() // np.array([1, 2, 4], np.uint8)
    found = stretched(image, each_channel=True)
    for channel in range(3):
        np.testing.assert_allclose(found[..., channel], expected(image[..., channel], 0.5, 99.8), atol=0.51)
    assert not np.array_equal(found, stretched(image))


def test_floats_stay_floats():
    image = dim_image().astype(np.float32) * 0.7
    found = stretched(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(image, 0.5, 99.8), atol=1e-3)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_an_image_of_one_value_becomes_black(kind):
    assert not stretched(np.full((5, 4, 3), 90, kind)).any()
    assert not stretched(np.full((1, 1, 1), 90, kind)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 60, "high": 40}, "low lies below high, not 60.0 and 40.0"),
        ({"high": 101}, "high: input should be less"),
    ],
)
def test_percentiles_that_make_no_sense_are_refused(options, message):
    with pytest.raises(DensekitError, match=message):
        Pipeline([{"name": "ContrastStretch", **options}])
