"""The bytes of an image file to an array of the values that it stores, whatever their type."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from densekit.data.images.bands import band_count, decode_bands
from densekit.data.images.big_tiff import as_classic
from densekit.data.images.header import ImageHeader
from densekit.data.images.pixel_values import Pixels
from densekit.errors import DensekitError

_BY_OPENCV = ("JPEG", "PNG", "BMP", "WEBP", "PPM")
_BY_PILLOW = ("GIF", "TGA", "ICO")  # OpenCV gives transparent pixels of a GIF another colour, and does not read others
_OPENCV_BANDS = 4  # interleaved, at most
_REDUCED = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def decode(path: Path, data: bytes, header: ImageHeader, channels: int, reduce: int) -> Pixels:
    """Decode an encoded image.

    Args:
        path: for messages.
        data: the file.
        header: of it.
        channels: 1 and 3 convert between grey and colour; other numbers take what the file holds.
        reduce: 1, 2, 4 or 8, of a JPEG.

    Returns:
        [H, W, C] RGB as stored: values of the file's own type, not turned by its EXIF tag.

    Raises:
        DensekitError: it cannot be decoded.
    """
    if header.format in _BY_PILLOW:
        return _by_pillow(path, data, header, channels)
    try:
        data = as_classic(data) if header.format == "TIFF" else data
        buffer = np.frombuffer(data, np.uint8)
        if header.format == "TIFF" and band_count(data) > _OPENCV_BANDS:
            image = decode_bands(data)
        elif channels not in (1, 3) and header.format == "TIFF":
            image = _pages(buffer)
        elif header.format == "TIFF" and header.deep:
            # As stored: OpenCV 5.0 gives whatever lies in memory where it is to turn colours of 16 bits itself.
            image = _grey(_rgb_order(cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)), channels)
        else:
            image = cv2.imdecode(buffer, _flags(channels, reduce))
            image = image if channels in (1, 3) else _rgb_order(image)
    except (cv2.error, struct.error, ValueError, OverflowError):
        image = None
    if image is None:
        raise DensekitError(f"{path}: {_why_not(header)}")
    if header.format == "TIFF" and header.bits in (10, 12, 14) and image.max() >= 2**header.bits:
        image = image >> (16 - header.bits)  # OpenCV moves them up to 16 bits
    return as_channels(image, channels)


def _by_pillow(path: Path, data: bytes, header: ImageHeader, channels: int) -> Pixels:
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            alpha = image.has_transparency_data
            mode = {1: "L", 3: "RGB"}.get(channels, "RGBA" if alpha else "RGB")
            return as_channels(np.asarray(image.convert(mode)), channels)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise DensekitError(f"{path}: the {header.format} is damaged ({reason}); copy it again or remove it") from None


def _why_not(header: ImageHeader) -> str:
    """Why OpenCV gives nothing."""
    if header.format == "JPEG" and header.bits != 8:
        return f"a JPEG of {header.bits} bits is not among the formats that are read; save it as PNG or TIFF of 16 bits"
    if header.format == "TIFF":
        return "the TIFF is damaged, or its compression or its type of values is none that is read; save it anew"
    if header.format in _BY_OPENCV:
        return f"the {header.format} is damaged and cannot be decoded; copy it again or remove it"
    return f"{header.format} is not among the formats that are read; convert it to PNG or JPEG"


def _flags(channels: int, reduce: int) -> int:
    if channels not in (1, 3):
        return int(cv2.IMREAD_UNCHANGED)
    colour = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    depth = _REDUCED[reduce] if reduce > 1 else cv2.IMREAD_ANYDEPTH
    return int(colour | depth | cv2.IMREAD_IGNORE_ORIENTATION)


def _pages(buffer: npt.NDArray[np.uint8]) -> Pixels | None:
    read, pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED)
    if not read or not pages:
        return None
    if len(pages) == 1 or any(p.ndim != 2 or p.shape != pages[0].shape for p in pages):
        return _rgb_order(pages[0])
    return np.stack(pages, axis=2)


def _rgb_order(image: Pixels | None) -> Pixels | None:
    """OpenCV's BGR(A) to RGB(A); other layouts as they are."""
    if image is not None and image.ndim == 3 and image.shape[2] in (3, 4):
        return image[:, :, [2, 1, 0, 3][: image.shape[2]]]
    return image


def _grey(image: Pixels | None, channels: int) -> Pixels | None:
    """One channel of three or four (ITU-R 601), where one is asked for."""
    if image is None or channels != 1 or image.ndim == 2 or image.shape[2] < 3:
        return image
    kind = image.dtype if image.dtype in (np.uint8, np.uint16) else np.float32
    return np.asarray(cv2.cvtColor(image[:, :, :3].astype(kind, copy=False), cv2.COLOR_RGB2GRAY))


def as_channels(image: Pixels, channels: int) -> Pixels:
    """[H, W] or [H, W, C] with three channels where they are asked for: grey is repeated, alpha dropped."""
    image = image[:, :, None] if image.ndim == 2 else image
    if channels == 3 and image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    if channels == 3 and image.shape[2] == 4:
        return image[:, :, :3]
    return image


def oriented(image: Pixels, orientation: int) -> Pixels:
    """Turn and mirror as EXIF 2.32, table 4, tag 274 says."""
    if orientation in (2, 5, 7):
        image = image[:, ::-1]
    elif orientation == 4:
        image = image[::-1]
    turns = {3: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.rot90(image, turns) if turns else image


def decode_npy(path: Path, data: bytes, max_pixels: int) -> Pixels:
    """Decode an array file.

    Returns:
        [H, W] or [H, W, C] numbers of the array's own type.

    Raises:
        DensekitError: no plain array of numbers, one that is empty, or one of more than ``max_pixels``.
    """
    try:
        image = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # of a damaged header numpy raises whatever Python's own parser does
        reason = str(error).splitlines()[0] if str(error) else "damaged"
        raise DensekitError(f"{path}: not a plain .npy array ({reason}); save it again by numpy.save") from None
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3) or image.dtype.kind not in "buif":
        raise DensekitError(f"{path}: an image array must be [H, W] or [H, W, C] numbers; save it again so")
    if image.size == 0 or image.shape[0] * image.shape[1] > max_pixels:
        raise DensekitError(f"{path}: {image.shape} is empty or over the limit of {max_pixels}; raise max_pixels")
    return image.astype(image.dtype.newbyteorder("="), copy=False)
