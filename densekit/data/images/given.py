"""Images that a program holds: the names of files, Pillow's images, arrays; as a data set to predict on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image

from densekit.data.images.decode import as_channels
from densekit.data.images.pixel_values import Pixels, on_scale
from densekit.data.images.read import ImageReader
from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError
from densekit.types import Sample

GivenImage = str | os.PathLike[str] | PIL.Image.Image | npt.NDArray[Any]
"""The name of a file; a Pillow image, taken as it is (a file's EXIF orientation is applied to names alone); an array
[H, W] or [H, W, C]."""


class GivenImages:
    """A few images, numbered.

    Args:
        items: of any of the kinds of ``GivenImage``.
        first: the number of the first one.
        bgr: the colours of arrays are in OpenCV's order; else they are RGB.
        transforms: of the evaluation.
        read_image: how files are read, and how many channels and what range of values arrays get.
    """

    def __init__(
        self, items: Sequence[GivenImage], *, first: int, bgr: bool, transforms: Pipeline, read_image: ImageReader
    ) -> None:
        self._items, self._first, self._bgr = items, first, bgr
        self.transforms, self.read_image = transforms, read_image
        self.paths = [Path(item) if isinstance(item, str | os.PathLike) else None for item in items]

    def image_id(self, index: int) -> int:
        """Its number."""
        return self._first + index

    def read(self, index: int) -> Pixels:
        """The untouched image [H, W, C].

        Raises:
            DensekitError: its file can't be read, or the array is no image for the model.
        """
        item, path = self._items[index], self.paths[index]
        if path is not None:
            return self.read_image(path)
        name = f"image {self.image_id(index)}"
        pixels = _pillow_pixels(item) if isinstance(item, PIL.Image.Image) else _array(item, name, self._bgr)
        channels = self.read_image.channels
        if channels == 1 and pixels.ndim == 3 and pixels.shape[2] in (3, 4) and pixels.dtype == np.uint8:
            pixels = cv2.cvtColor(np.ascontiguousarray(pixels[:, :, :3]), cv2.COLOR_RGB2GRAY)
        pixels = as_channels(pixels, channels)
        if pixels.shape[2] != channels:
            raise DensekitError(f"{name}: {pixels.shape[2]} channels, but the model takes {channels}; convert it")
        if self.read_image.value_range is None and pixels.dtype.kind == "f" and 0 < pixels.max(initial=0) <= 1:
            raise DensekitError(
                f"{name}: its floats go from {pixels.min():g} to {pixels.max():g}, and the model takes 0 to 255; "
                f"multiply them by 255"
            )
        return np.ascontiguousarray(on_scale(pixels, self.read_image.value_range, Path(name)))

    def sample(self, index: int) -> Sample:
        """One image, transformed as in evaluation; its id is its position."""
        image = self.read(index)
        size = (int(image.shape[0]), int(image.shape[1]))
        return self.transforms(Sample(image, id=index, original_size=size, seed=0), np.random.default_rng(0))


def _pillow_pixels(image: PIL.Image.Image) -> Pixels:
    """Its colours or grey values, without alpha."""
    if image.mode in ("P", "PA", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    elif image.mode in ("LA", "La"):
        image = image.convert("L")
    return np.asarray(image)


def _array(item: object, name: str, bgr: bool) -> Pixels:
    if not isinstance(item, np.ndarray):
        raise DensekitError(
            f"{name}: a {type(item).__name__} is no image; give a path, a Pillow image, or a numpy array [H, W, 3] of "
            f"uint8 in RGB order"
        )
    if item.ndim not in (2, 3) or item.size == 0 or item.dtype.kind not in "buif":
        raise DensekitError(
            f"{name}: an array of shape {item.shape} and type {item.dtype} is no image; give numbers [H, W, 3]"
        )
    if item.ndim == 3 and item.shape[2] > 4 and item.shape[0] in (1, 3, 4):
        raise DensekitError(f"{name}: shape {item.shape} has its channels first; give [H, W, C] (.transpose(1, 2, 0))")
    if bgr and item.ndim == 3 and item.shape[2] in (3, 4):
        return item[:, :, [2, 1, 0, 3][: item.shape[2]]]
    return item
