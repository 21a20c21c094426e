"""One mask file: can it be read as class indices, which values does it hold, and what colours do these have."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from densekit.data.formats.masks.files import MaskCode, read_values
from densekit.data.images.header import read_header
from densekit.errors import DensekitError
from densekit.types import IGNORE

_MOST_VALUES = 1024
_MANY = 4  # values from which on they may be numbers of objects; so many are looked at closely


@dataclasses.dataclass(frozen=True)
class MaskQuestion:
    """A mask to look at.

    Attributes:
        mask: the file.
        image: its image.
        code: what values mean; None: not known.
        max_pixels: a larger one is not decoded.
    """

    mask: Path
    image: Path | None
    code: MaskCode | None
    max_pixels: int


@dataclasses.dataclass(slots=True)
class MaskLook:
    """What one look at a mask gave.

    Attributes:
        path: the file.
        problems: (code, message).
        size: (width, height); None where it can't be read.
        pixels: number of pixels of each value; of each label where the code is known.
        values: the first of the values as the file has them; none of a mask with colours or layers.
        pieces: of some of these, where they are 0, 1, 2, ... without a gap: how many regions each has.
        palette: colour of each index that is used, where it is a palette file.
    """

    path: Path
    problems: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    size: tuple[int, int] | None = None
    pixels: dict[int, int] = dataclasses.field(default_factory=dict)
    values: tuple[int, ...] = ()
    pieces: tuple[int, ...] = ()
    palette: dict[int, tuple[int, ...]] | None = None


def look_at_mask(question: MaskQuestion) -> MaskLook:
    """Look at one mask file."""
    found = MaskLook(question.mask)
    path, code = question.mask, question.code
    try:
        values = _values(question)
    except (DensekitError, ValueError, MemoryError) as error:
        found.problems.append(("mask_unreadable", str(error).removeprefix(f"{path}: ")[:300]))
        return found
    found.size = (int(values.shape[-1]), int(values.shape[-2]))
    if values.ndim == 2 and (code is None or code.colours is None):
        numbers, _ = _counted(values)
        found.values = tuple(numbers[:_MOST_VALUES].tolist())
        found.pieces = _pieces(values, numbers[numbers > 0].tolist())
    known = code is not None
    if code is not None:
        try:
            values = code.read(path, question.max_pixels)
        except DensekitError as error:
            found.problems.append(("mask_values", str(error).removeprefix(f"{path}: ")[:300]))
            known = False
    if values.ndim == 2:
        numbers, counts = _counted(values)
        found.pixels = dict(zip(numbers.tolist()[:_MOST_VALUES], counts.tolist()))
        if code is None or code.colours is None:
            found.palette = _palette(path, numbers)
    if not found.problems:
        found.problems += _of_values(values, known)
    return found


def _counted(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The values that occur, sorted, and how often each does."""
    if values.dtype in (np.uint8, np.uint16):  # ten times faster than sorting
        counts = np.bincount(values.ravel())
        numbers = np.flatnonzero(counts)
        return numbers, counts[numbers]
    numbers, counts = np.unique(values, return_counts=True)
    return numbers, counts


def _pieces(values: npt.NDArray[Any], numbers: Sequence[int]) -> tuple[int, ...]:
    """Regions of some of the values, where these are 1, 2, 3, ... as of objects that are numbered."""
    if len(numbers) < _MANY or numbers[-1] != len(numbers):
        return ()
    chosen = numbers[:: -(-len(numbers) // _MANY)]
    return tuple(cv2.connectedComponents((values == v).astype(np.uint8), connectivity=8)[0] - 1 for v in chosen)


def _values(question: MaskQuestion) -> npt.NDArray[Any]:
    if question.code is not None and question.code.colours is not None:
        return question.code.read(question.mask, question.max_pixels)
    return read_values(question.mask, question.max_pixels)


def _of_values(values: npt.NDArray[Any], known: bool) -> list[tuple[str, str]]:
    if not values.size:
        return [("mask_unreadable", "it has no pixels")]
    first = int(values.flat[0])
    if not (values == first).all():
        return []
    if known and first == IGNORE:
        return [("mask_all_ignored", "every pixel is ignored")]
    return [] if values.ndim == 3 or first == 0 else [("mask_one_value", f"every pixel is {first}")]


def _palette(path: Path, used: npt.NDArray[Any]) -> dict[int, tuple[int, ...]] | None:
    if path.suffix.lower() == ".npy":
        return None
    try:
        data = path.read_bytes()
        if read_header(data) is None:
            return None
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            colours = image.getpalette() if image.mode == "P" else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    if colours is None:
        return None
    return {int(v): tuple(colours[3 * v : 3 * v + 3]) for v in used.tolist() if 3 * v + 3 <= len(colours)}
