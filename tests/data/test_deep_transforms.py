"""Transforms on images of more than 8 bits: as on uint8, without the rounding."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from densekit.data.transforms.pipeline import Pipeline
from densekit.types import Sample

RANDOM = np.random.default_rng(0)
FLOATS = cv2.resize(RANDOM.uniform(10, 245, (6, 6, 3)).astype(np.float32), (40, 32), interpolation=cv2.INTER_LINEAR)
BYTES = np.rint(FLOATS).astype(np.uint8)


def transformed(image, *specs, seed=3):
    sample = Sample(image, id="a", original_size=image.shape[:2], seed=0)
    return Pipeline(specs)(sample, np.random.default_rng(seed)).image


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "Resize", "long": 23},
        {"name": "Resize", "height": 50, "width": 60},
        {"name": "ScaleJitter", "size": [32, 32], "scale": [0.3, 0.6]},
        {"name": "HorizontalFlip", "p": 1},
        {"name": "VerticalFlip", "p": 1},
        {"name": "ContrastStretch", "low": 2, "high": 98},
        {"name": "Affine", "rotate": 20, "scale": 0.7, "fill": 114, "p": 1},
        {"name": "PadIfNeeded", "min_height": 60, "min_width": 60, "border_mode": 0, "fill": 114},
        {"name": "PadIfNeeded", "min_height": 60, "min_width": 60, "border_mode": 0, "fill": [10, 114, 240]},
        {"name": "CoarseDropout", "fill": 114, "p": 1},
        {"name": "PixelDropout", "dropout_prob": 0.3, "drop_value": 114, "p": 1},
        {"name": "ElasticTransform", "p": 1},
        {"name": "RandomResizedCrop", "size": [20, 20], "p": 1},
        {"name": "RandomBrightnessContrast", "p": 1},
        {"name": "RandomGamma", "p": 1},
        {"name": "GaussianBlur", "p": 1},
        {"name": "GaussNoise", "p": 1},
        {"name": "RGBShift", "p": 1},
        {"name": "InvertImg", "p": 1},
        {"name": "Sequential", "transforms": [{"name": "Pad", "padding": 5, "fill": 200, "p": 1}], "p": 1},
    ],
    ids=lambda spec: spec["name"],
)
def test_a_transform_does_to_floats_what_it_does_to_bytes(spec):
    floats, plain = transformed(FLOATS, spec), transformed(BYTES, spec)
    assert floats.dtype == np.float32
    assert plain.dtype == np.uint8
    assert floats.shape == plain.shape
    assert np.abs(floats - plain).max() < 3  # bytes are rounded before, after, and between their parts
    assert np.abs(floats - plain).mean() < 1


def test_what_floats_tell_apart_stays_apart():
    specs = ({"name": "HorizontalFlip", "p": 1}, {"name": "RandomBrightnessContrast", "p": 1})
    fine = np.linspace(100, 101, 32 * 40, dtype=np.float32).reshape(32, 40, 1)
    assert len(np.unique(transformed(fine, *specs))) > 1000


@pytest.mark.parametrize(
    ("name", "rounds"),
    [("CLAHE", True), ("Equalize", True), ("Posterize", True), ("RandomGamma", False), ("GaussianBlur", False)],
)
def test_transforms_that_work_in_eight_bits_are_known(name, rounds):
    nested = {"name": "OneOf", "transforms": [{"name": name, "p": 0.1}], "p": 0.5}
    pipeline = Pipeline([{"name": "Resize", "long": 32}, nested, {"name": "HorizontalFlip"}])
    assert pipeline.in_eight_bits() == [name] * rounds
    slope = np.linspace(20, 220, 4096, dtype=np.float32).reshape(64, 64, 1).repeat(3, 2)
    assert (len(np.unique(transformed(slope, {"name": name, "p": 1}))) <= 256) == rounds
