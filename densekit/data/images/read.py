"""Image files to RGB arrays: one place that decides on orientation, bit depth, channels, limits and damaged files.

* Grey and palette files become RGB where 3 channels are asked for, and colour becomes grey (ITU-R 601) where 1 is.
* An alpha channel is dropped; the colours stay as they are stored, they are not blended with any background
  (a TIFF with alpha excepted: libtiff multiplies by it).
* Files of more than 8 bits become float32 (``pixel_values.py``).
* Any other number of channels comes from ``.npy`` ([H, W] or [H, W, C]) or from TIFF (interleaved, a plane each, or one
  channel a page).
* Boxes belong to the width and height that the annotations give: where that is the size as stored and not as turned by
  the EXIF tag, the file is taken as stored; where it is the turned size alone, it is turned. Where it is both (half
  turns, mirrors, squares), and without annotations, the data set's convention decides.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from densekit.data.images.decode import as_channels, decode, decode_npy, oriented
from densekit.data.images.header import ImageHeader, read_header, without_waiting
from densekit.data.images.pixel_values import Pixels, Range, on_scale
from densekit.data.images.web import address, fetch, is_web, named_by_address
from densekit.files import mistaken_for
from densekit.types import DensekitError, nearest

cv2.setNumThreads(0)  # the loader runs one image a worker: OpenCV's own threads only get in each other's way
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors are ours to report, in one line

MAX_PIXELS = 2**28
"""Width x height that an image may have unless the caller says otherwise (16384 x 16384, 0.8 GB as RGB)."""

Orientation = Literal["exif", "stored"]
"""A data set's convention: images are turned by their EXIF tag, or taken as stored."""

IMAGE_SUFFIXES = frozenset({
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".npy"),
    *(".jp2", ".avif", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
})  # fmt: skip
"""File name endings, lower case, that count as images when a folder is listed."""


def read_image(
    path: Path,
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    reduce: int = 1,
    value_range: Range | None = None,
    orientation: Orientation = "exif",
) -> Pixels:
    """Read one image file.

    Args:
        path: the file.
        channels: channels to give: 1, 3, or exactly what the file holds.
        size: (height, width) that the annotations give; settles the orientation where it can.
        max_pixels: refuse a larger image before decoding it.
        reduce: 1, 2, 4 or 8: decode a JPEG at this fraction of its size (sizes are rounded up), several times faster.
            Other formats ignore it and come at full size.
        value_range: values of deep images that become black and white, see ``on_scale``.
        orientation: settles the orientation where ``size`` does not.

    Returns:
        [H, W, channels] uint8 RGB, or float32 in 0..255 where the file holds more than 8 bits.

    Raises:
        DensekitError: the file is missing, empty, cut off, no image, too large, of another size or channel count, or
            holds NaN or infinite values.
    """
    pixels = read_pixels(
        path, channels=channels, size=size, max_pixels=max_pixels, reduce=reduce, orientation=orientation
    )
    return on_scale(pixels, value_range, path)


def read_pixels(
    path: Path,
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    reduce: int = 1,
    orientation: Orientation = "exif",
) -> Pixels:
    """As ``read_image``, with the values that the file stores: [H, W, channels] of its own type."""
    data = read_bytes(path, max_pixels)
    if path.suffix.lower() == ".npy":
        image = as_channels(decode_npy(path, data, max_pixels), channels)
        if size is not None and image.shape[:2] != tuple(size):
            raise DensekitError(_size_message(path, image.shape[1], image.shape[0], size))
    else:
        header = _checked_header(path, data, max_pixels)
        tag = _tag_to_apply(path, header, size, orientation)
        image = oriented(decode(path, data, header, channels, reduce if header.format == "JPEG" else 1), tag)
    if image.shape[2] != channels:
        raise DensekitError(_channels_message(path, image.shape[2], channels))
    return np.ascontiguousarray(image)


@dataclasses.dataclass(frozen=True, slots=True)
class ImageReader:
    """How a data set reads its image files; its attribute ``read_image`` is one.

    Attributes:
        channels: see ``read_image``, as for ``max_pixels``, ``value_range`` and ``orientation``.
        blank: give images of the right size without their pixels, where nobody looks at them.
    """

    channels: int = 3
    max_pixels: int = MAX_PIXELS
    value_range: Range | None = None
    orientation: Orientation = "exif"
    blank: bool = False

    def __call__(self, path: Path, *, size: tuple[int, int] | None = None, reduce: int = 1) -> Pixels:
        """As ``read_image``."""
        if self.blank:
            return blank_image(path, self, size)
        with named_by_address(path):
            return read_image(
                path,
                channels=self.channels,
                size=size,
                max_pixels=self.max_pixels,
                reduce=reduce,
                value_range=self.value_range,
                orientation=self.orientation,
            )


def blank_image(path: Path, reader: ImageReader, size: tuple[int, int] | None = None) -> Pixels:
    """An image of the right size without its pixels, for data sets whose feature maps are stored already.

    The file is opened only where ``size`` is not known, and then only its header is looked at.
    """
    if size is None and path.suffix.lower() == ".npy":
        size = decode_npy(path, read_bytes(path, reader.max_pixels), reader.max_pixels).shape[:2]
    if size is None:
        header = _checked_header(path, read_bytes(path, reader.max_pixels), reader.max_pixels)
        size = header.turned_size if reader.orientation == "exif" else header.size
    return np.broadcast_to(np.uint8(0), (*size, reader.channels))


def read_bytes(path: Path, max_pixels: int = MAX_PIXELS) -> bytes:
    """Read a whole file that should be an image; missing, empty, forbidden and huge files are explained.

    A path may stand for a web address too, see ``web``.
    """
    if is_web(path):
        return fetch(address(path))
    try:
        with open(path, "rb", opener=without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DensekitError(f"{path}: is no file but a pipe or a device; put an image file there")
            length = status.st_size
            if length > 16 * max_pixels:
                raise DensekitError(f"{path}: {length} bytes is too much for {max_pixels} pixels; raise max_pixels")
            data = file.read()
    except OSError as error:
        raise DensekitError(_unreadable(path, error)) from None
    if not data:
        raise DensekitError(f"{path}: the file is empty; copy it again or remove it from the annotations")
    return data


def inside(folder: Path, name: str, source: Path | str) -> Path:
    """Join a folder and a file name from an untrusted file.

    Args:
        folder: the image folder.
        name: relative file name as the annotations give it.
        source: the file that gives the name, for the message.

    Raises:
        DensekitError: the name is absolute, climbs out by ``..``, or is a link to a file outside the folder.
    """
    if leaves_folder(name):
        raise DensekitError(f"{source}: file_name {name!r} leaves the image folder; give a path relative to {folder}")
    path = folder / name
    root, place = (os.path.join(os.path.realpath(p), "") for p in (folder, path))
    if not place.startswith(root):
        raise DensekitError(f"{source}: file_name {name!r} is a link out of {folder}; copy the file into the folder")
    return path


def leaves_folder(name: str) -> bool:
    """Whether a file name is empty, absolute (on any system), climbs by ``..``, or holds a null byte."""
    parts = name.replace("\\", "/").split("/")
    return not name or "\0" in name or parts[0] == "" or parts[0].endswith(":") or ".." in parts


def _unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        try:
            names = os.listdir(path.parent)
        except OSError:
            return f"{path}: there is no such image, and no folder {path.parent}; correct the image folder"
        near = nearest(path.name, names) if names else "the folder is empty"
        return f"{path}: there is no such image; {near}"
    return f"{path}: cannot be read ({error.strerror or error}); check that it is a file and may be read"


def _checked_header(path: Path, data: bytes, max_pixels: int) -> ImageHeader:
    header = read_header(data)
    if header is None or header.width < 1 or header.height < 1:
        if (what := mistaken_for(data[:512])) is not None:
            raise DensekitError(f"{path}: not an image: {what}; put the image there, or remove it")
        raise DensekitError(f"{path}: not an image that can be read; convert it to PNG or JPEG, or remove it")
    if header.width * header.height > max_pixels:
        raise DensekitError(
            f"{path}: {header.width} x {header.height} pixels is over the limit of {max_pixels}; "
            "shrink or tile the image, or raise max_pixels"
        )
    if header.truncated:
        raise DensekitError(f"{path}: the {header.format} is cut off before its end; copy it again or remove it")
    return header


def _tag_to_apply(path: Path, header: ImageHeader, size: tuple[int, int] | None, convention: Orientation) -> int:
    """EXIF orientation to apply, so that the image has the size that the annotations give."""
    if size is None or header.size == tuple(size) == header.turned_size:
        return header.orientation if convention == "exif" else 1
    if header.size == tuple(size):
        return 1
    if header.turned_size == tuple(size):
        return header.orientation
    raise DensekitError(_size_message(path, header.width, header.height, size))


def _channels_message(path: Path, found: int, wanted: int) -> str:
    return f"{path}: {found} channels, but the model takes {wanted}; set model.channels={found}, or convert the file"


def _size_message(path: Path, width: int, height: int, size: tuple[int, int]) -> str:
    return (
        f"{path}: the image is {width} x {height} but its annotations say {size[1]} x {size[0]} (width x height); "
        "correct the size in the annotation file, or restore the image that was annotated"
    )
