"""TIFF files of more than four bands, as satellites and microscopes give them, which OpenCV does not read.

Their first directory is written anew so that the bands are grey to libtiff: interleaved ones as one image that is that
many times wider, planes as an image each. The compressed bytes stay as they are, so every compression is read that
OpenCV's libtiff knows. Only the predictors reach across bands; they are undone here: the horizontal one (TIFF 6.0,
section 14) and that of floats (Adobe's TIFF Technical Note 3), whose rows are read as bytes for that.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import warnings
from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from densekit.data.images.pixel_values import Pixels

WIDTH, BITS, PHOTOMETRIC, OFFSETS, SAMPLES, COUNTS, PLANAR = 256, 258, 262, 273, 277, 279, 284
PREDICTOR, TILE_WIDTH, TILE_OFFSETS, TILE_COUNTS, EXTRA, FORMAT = 317, 322, 324, 325, 338, 339
_TYPES = {1: "B", 3: "H", 4: "I"}
_PLANES = 2  # a plane a band; 1 is interleaved
_FLOATS = 3  # the predictor of floats


@dataclasses.dataclass(frozen=True, slots=True)
class _Directory:
    """The first directory of a TIFF: entries (type, count, four bytes), and the numbers of those that hold some."""

    order: str
    entries: Mapping[int, tuple[int, int, bytes]]
    numbers: Mapping[int, tuple[int, ...]]

    def first(self, tag: int, default: int = 1) -> int:
        return self.numbers[tag][0] if self.numbers.get(tag) else default


def band_count(data: bytes) -> int:
    """Bands of a TIFF file's first image; 1 where that can't be told."""
    try:
        return _read(data).first(SAMPLES)
    except struct.error:
        return 1


def decode_bands(data: bytes) -> Pixels | None:
    """[H, W, C] values of a TIFF file's first image, of the file's own type; None where they can't be decoded."""
    try:
        directory = _read(data)
        bands = directory.first(SAMPLES)
        if directory.first(PREDICTOR) not in (1, 2, _FLOATS) or len(set(directory.numbers.get(BITS, (1,)))) > 1:
            return None
        if directory.first(PLANAR) == _PLANES:
            planes = [_decoded(data, directory, _one_plane(directory, band, bands)) for band in range(bands)]
            return None if any(p is None for p in planes) else np.stack([p for p in planes if p is not None], axis=2)
        floats = directory.first(PREDICTOR) == _FLOATS
        times = bands * (directory.first(BITS) // 8 if floats else 1)
        wide = {WIDTH: (times * directory.first(WIDTH),), PREDICTOR: (1,)}
        if TILE_WIDTH in directory.numbers:
            wide[TILE_WIDTH] = (times * directory.first(TILE_WIDTH),)
        if floats:
            wide |= {WIDTH: (times * _across(directory),), BITS: (8,), FORMAT: (1,)}
        image = _decoded(data, directory, wide)
    except (struct.error, cv2.error, IndexError, ValueError):
        return None
    if image is None or image.ndim != 2:
        return None
    if floats:
        return _joined(image, directory)
    image = image.reshape(image.shape[0], -1, bands)
    return _summed(image, directory) if directory.first(PREDICTOR) == 2 else image


def _one_plane(directory: _Directory, band: int, bands: int) -> dict[int, tuple[int, ...]]:
    """Where the bytes of a plane are."""
    changed = {}
    for tag in (OFFSETS, COUNTS, TILE_OFFSETS, TILE_COUNTS):
        if tag in directory.numbers:
            parts = len(directory.numbers[tag]) // bands
            changed[tag] = directory.numbers[tag][band * parts : (band + 1) * parts]
    return changed


def _summed(image: Pixels, directory: _Directory) -> Pixels:
    """Undo the horizontal predictor: values are differences to the pixel on the left, anew in each tile."""
    unsigned = image.view(np.dtype(f"u{image.dtype.itemsize}"))
    step = directory.first(TILE_WIDTH, image.shape[1])
    parts = [unsigned[:, a : a + step] for a in range(0, image.shape[1], step)]
    whole: npt.NDArray[np.generic] = np.concatenate([p.cumsum(1, dtype=p.dtype) for p in parts], axis=1)
    return whole.view(image.dtype)


def _across(directory: _Directory) -> int:
    """Pixels of a row with what pads its last tile, since the bytes of a float lie a tile's width apart."""
    width = directory.first(WIDTH)
    return -(-width // directory.first(TILE_WIDTH, width)) * directory.first(TILE_WIDTH, width)


def _joined(image: npt.NDArray[np.uint8], directory: _Directory) -> Pixels:
    """Undo the predictor of floats: in each tile first bytes of all numbers, then second ones, as differences."""
    bands, length, width = directory.first(SAMPLES), directory.first(BITS) // 8, directory.first(WIDTH)
    step = directory.first(TILE_WIDTH, width)
    parts = []
    for start in range(0, _across(directory), step):
        part = image[:, start * bands * length : (start + step) * bands * length]
        whole = part.reshape(len(part), -1, bands).cumsum(1, dtype=np.uint8)
        high_first = whole.reshape(len(part), length, -1).transpose(0, 2, 1)
        values = np.ascontiguousarray(high_first).view(f">f{length}").reshape(len(part), step, bands)
        parts.append(values.astype(f"f{length}"))
    return np.concatenate(parts, axis=1)[:, :width]


def _decoded(data: bytes, directory: _Directory, changed: Mapping[int, tuple[int, ...]]) -> Pixels | None:
    """The grey image that the changed directory describes."""
    grey = {SAMPLES: (1,), PHOTOMETRIC: (1,), PLANAR: (1,), BITS: (directory.first(BITS),)}
    if FORMAT in directory.numbers:
        grey[FORMAT] = (directory.first(FORMAT),)
    written = _rewritten(data, directory, {**grey, **changed})
    image = cv2.imdecode(np.frombuffer(written, np.uint8), cv2.IMREAD_UNCHANGED)
    return _by_pillow(written) if image is None else np.asarray(image)


def _by_pillow(data: bytes) -> Pixels | None:
    """Tiles of bytes that are not compressed, which OpenCV fails on."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the caller has looked at the size
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            values = np.asarray(image)
            return values.astype(values.dtype.newbyteorder("="), copy=False)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError):
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _rewritten(data: bytes, directory: _Directory, changed: Mapping[int, tuple[int, ...]]) -> bytes:
    """The file with another first directory at its end."""
    order, entries = directory.order, {tag: e for tag, e in directory.entries.items() if tag != EXTRA}
    tail = bytearray(len(data) % 2)
    for tag, numbers in changed.items():
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            packed, place = struct.pack(order + "I", len(data) + len(tail)), packed
            tail += place
        entries[tag] = (4, len(numbers), packed)
    start = len(data) + len(tail)
    tail += struct.pack(order + "H", len(entries))
    for tag, (kind, count, value) in sorted(entries.items()):
        tail += struct.pack(order + "HHI", tag, kind, count) + value
    tail += bytes(4)
    return data[:4] + struct.pack(order + "I", start) + data[8:] + bytes(tail)


def _read(data: bytes) -> _Directory:
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    entries, numbers = {}, {}
    for place in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, several = struct.unpack_from(order + "HHI", data, place)
        entries[tag] = (kind, several, data[place + 8 : place + 12])
        if kind in _TYPES and several <= len(data):
            form = f"{order}{several}{_TYPES[kind]}"
            away = struct.calcsize(form) > 4
            numbers[tag] = struct.unpack_from(form, data, struct.unpack_from(order + "I", data, place + 8)[0] if away
                                              else place + 8)  # fmt: skip
    return _Directory(order, entries, numbers)
