"""One image file: can it be read, is it what its name and its annotations say, and what does it look like in small."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from densekit.data.images.header import ImageHeader, read_header
from densekit.data.images.pixel_values import count_not_finite, stretched
from densekit.data.images.read import read_bytes, read_pixels
from densekit.data.images.value_range import Values, values_of
from densekit.errors import DensekitError

SIDE = 32
"""Rows and columns of the small picture that images are compared by."""

_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
}
_KNOWN = frozenset(ending for endings in _ENDINGS.values() for ending in endings)

Small = npt.NDArray[np.uint8]


@dataclasses.dataclass(slots=True)
class Look:
    """What one look at an image file gave.

    Attributes:
        path: the file.
        problems: (code, message) of what is wrong with it.
        size: (width, height) as training sees it; None where it can't be read.
        kind: ``colour``, ``grey``, ``palette``, ``alpha``; empty where it can't be read.
        values: of an image of more than 8 bits; None for others.
        digest: of its bytes.
        small: [SIDE, SIDE] grey picture.
        mean: RGB means of the small picture.
        channels: with which it was read.
    """

    path: Path
    problems: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    size: tuple[int, int] | None = None
    kind: str = ""
    values: Values | None = None
    digest: bytes = b""
    small: Small | None = None
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    channels: int = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A file to look at.

    Attributes:
        path: the file.
        size: (width, height) that the annotations give.
        max_pixels: a larger image is not decoded.
        channels: as which it is looked at; for more than three the file must hold them.
    """

    path: Path
    size: tuple[int, int] | None
    max_pixels: int
    channels: int = 3


def look(question: Question) -> Look:
    """Look at one image file."""
    found = Look(question.path)
    path = question.path
    if not os.path.isfile(path):  # Path.is_file raises on names that are too long
        found.problems.append(_missing(path))
        return found
    try:
        data = read_bytes(path, question.max_pixels)
    except DensekitError as error:
        large = "too much for" in str(error)
        found.problems.append(("image_too_large" if large else "image_unreadable", _without_path(error, path)))
        return found
    found.digest = hashlib.blake2b(data, digest_size=16).digest()
    if path.suffix.lower() == ".npy":
        _look_inside(found, question, None)
        return found
    header = read_header(data)
    if header is None or min(header.width, header.height) < 1:
        found.problems.append(("image_unreadable", "it is no image that can be read"))
    elif header.width * header.height > question.max_pixels:
        pixels = f"{header.width} x {header.height} pixels"
        found.problems.append(("image_too_large", f"{pixels} is over the limit of {question.max_pixels}"))
    elif header.truncated:
        found.problems.append(("image_truncated", f"the {header.format} is cut off before its end"))
    else:
        _look_inside(found, question, header)
        if found.size is not None:
            found.problems += _of_header(question, header)
            found.kind = stored_kind(data, header)
    return found


def _missing(path: Path) -> tuple[str, str]:
    try:
        names = os.listdir(path.parent)
    except (OSError, ValueError):
        return "image_missing", f"there is no folder {path.parent}"
    return "image_missing", "it is no file" if path.name in names else "there is no such file"


def _look_inside(found: Look, question: Question, header: ImageHeader | None) -> None:
    try:
        found.channels = _channels(question)
        pixels = stored_pixels(found, question.max_pixels)
    except (DensekitError, cv2.error, ValueError, MemoryError) as error:
        found.problems.append(("image_unreadable", _without_path(error, question.path)))
        return
    found.size = (pixels.shape[1], pixels.shape[0])
    if question.size is not None and (wrong := _size(found.size, question.size, header)):
        found.problems.append(("image_size", wrong))
    if bad := count_not_finite(pixels):
        message = f"{bad} of its {found.size[0] * found.size[1]} pixels are NaN, infinite or a no-data value"
        found.problems.append(("image_not_finite", message))
        return
    if pixels.dtype not in (np.uint8, np.bool_):
        found.values = values_of(pixels)
    small = cv2.resize(_first_three(pixels), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    found.mean = (float(small[..., 0].mean()), float(small[..., 1].mean()), float(small[..., 2].mean()))
    found.small = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)


def stored_pixels(look: Look, max_pixels: int, reduce: int = 1) -> npt.NDArray[Any]:
    """All channels that an image was looked at with, as stored; see ``read_pixels``."""
    return read_pixels(look.path, channels=look.channels, max_pixels=max_pixels, reduce=reduce)


def grey_picture(look: Look, side: int, max_pixels: int, reduce: int = 1) -> Small:
    """[side, side] grey."""
    pixels = _first_three(stored_pixels(look, max_pixels, reduce))
    return np.asarray(cv2.cvtColor(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY))


def _channels(question: Question) -> int:
    if question.path.suffix.lower() != ".npy":
        return question.channels
    try:
        shape = np.load(question.path, mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError, EOFError):
        return 3
    return int(shape[2]) if len(shape) == 3 else 3


def _first_three(pixels: npt.NDArray[np.generic]) -> Small:
    values = stretched(pixels[..., :3])
    return values if values.shape[2] == 3 else np.repeat(values[..., :1], 3, axis=2)


def _size(found: tuple[int, int], said: tuple[int, int], header: ImageHeader | None) -> str | None:
    """Training takes the stored size or the turned one, whichever the annotations give."""
    turned = header is not None and header.orientation >= 5
    if said == found or (turned and said == found[::-1]):
        return None
    return f"the file is {found[0]} x {found[1]}, its annotations say {said[0]} x {said[1]} (width x height)"


def _of_header(question: Question, header: ImageHeader) -> list[tuple[str, str]]:
    found = []
    ending = question.path.suffix.lower()
    if ending in _KNOWN and header.format in _ENDINGS and ending not in _ENDINGS[header.format]:
        found.append(("image_extension", f"its name ends in {question.path.suffix}, but it is a {header.format}"))
    if header.orientation != 1:
        message = (
            f"its EXIF orientation is {header.orientation}, not 1 (as stored); {_annotated(question.size, header)}"
        )
        found.append(("image_orientation", message))
    return found


def _annotated(size: tuple[int, int] | None, header: ImageHeader) -> str:
    """What an annotated (width, height) says of an EXIF orientation."""
    if size is None:
        return "it is turned"
    if header.size == header.turned_size:
        return "its annotated size fits both"
    return "its annotated size is the turned one" if size[::-1] == header.turned_size else "it was annotated as stored"


def stored_kind(data: bytes, header: ImageHeader) -> str:
    """What the file stores: ``colour``, ``grey``, ``palette`` or ``alpha``."""
    if header.format == "PNG" and len(data) > 26:
        return {0: "grey", 2: "colour", 3: "palette", 4: "alpha", 6: "alpha"}.get(data[25], "colour")
    mode = _mode(data)
    kinds = {"L": "grey", "1": "grey", "I": "grey", "F": "grey", "I;16": "grey", "I;16B": "grey", "P": "palette"}
    return kinds.get(mode, "alpha" if mode in ("RGBA", "RGBa", "LA", "La", "PA") else "colour")


def _mode(data: bytes) -> str:
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            return image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""


def _without_path(error: BaseException, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")[:300] or type(error).__name__
