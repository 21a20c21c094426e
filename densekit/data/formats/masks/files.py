"""Mask files: class indices from grey, palette, colour-coded and array files, each value checked against the classes.

* Palette PNGs give their indices, not their colours (unless a colour table is given); 1-bit files give 0 and 1.
* A colour image is a mask only where a colour table is given, or where its channels are equal, which is grey.
* Alpha is dropped. JPEG is refused: its loss changes class indices.
* ``.npy`` holds [H, W] numbers, or layers [K, H, W] (or [H, W, K]) of 0 and 1 for multi-label.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from densekit.data.images.header import read_header
from densekit.data.images.read import MAX_PIXELS, read_bytes
from densekit.types import IGNORE, Classes, DensekitError

Colour = tuple[int, int, int]
Labels = npt.NDArray[np.uint8]

MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".npy"})
"""File name endings, lower case, that count as masks in a folder; not GIF, whose writers sort the palette."""


@dataclasses.dataclass(frozen=True)
class MaskCode:
    """What the values or colours of mask files mean.

    Attributes:
        classes: names, and values in the files.
        ignore: values that are not looked at.
        ignore_given: the user named them; else 255 is ignored because it mostly is.
        colours: colour of each class, in label order, where the files are colour-coded.
        ignore_colours: colours that are not looked at.
        layers: the files hold a layer of 0 and 1 per class.
    """

    classes: Classes
    ignore: tuple[int, ...] = (IGNORE,)
    colours: tuple[Colour, ...] | None = None
    ignore_colours: tuple[Colour, ...] = ()
    layers: bool = False
    ignore_given: bool = True

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= IGNORE:
            raise DensekitError(f"classes: masks hold 1 to {IGNORE} classes, not {len(self.classes)}")
        if both := sorted(set(self.ignore) & set(self.classes.ids) - {IGNORE}):
            raise DensekitError(f"ignore: {both[0]} is the value of a class; a value is either a class or ignored")
        if bad := [v for v in (*self.classes.ids, *self.ignore) if not 0 <= v < 2**16]:
            raise DensekitError(f"classes: {bad[0]} is no value of a mask file; use 0 to 65535")
        coloured = [*(self.colours or ()), *self.ignore_colours]
        if twice := [c for c in coloured if coloured.count(c) > 1]:
            raise DensekitError(f"colors: {twice[0]} stands twice; each class needs a colour of its own")

    def read(self, path: Path, max_pixels: int = MAX_PIXELS) -> Labels:
        """Read a mask file as labels: [H, W] uint8, or [K, H, W] of 0, 1 and ``IGNORE`` where it holds layers.

        Raises:
            DensekitError: the file is missing, damaged, of the wrong kind, or holds a value or colour of no class.
        """
        if self.layers:
            return self._layers(path, read_values(path, max_pixels))
        if self.colours is not None:
            return self._by_colour(path, read_colours(path, max_pixels))
        return self._by_value(path, read_values(path, max_pixels))

    def _by_value(self, path: Path, values: npt.NDArray[Any]) -> Labels:
        if values.ndim != 2:
            raise DensekitError(
                f"{path}: the mask is {values.shape}; a mask is [height, width], or layers with multi_label set"
            )
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if low < 0 or high >= 2**16 or (labels := self._table[values]).min(initial=0) < 0:
            raise DensekitError(self._unknown_values(path, values))
        return np.asarray(labels, np.uint8)

    @functools.cached_property
    def _table(self) -> npt.NDArray[np.int16]:
        """Label of each value from 0 to 65535; -1 for those of no class."""
        table = np.full(2**16, -1, np.int16)
        table[list(self.ignore)] = IGNORE
        table[list(self.classes.ids)] = np.arange(len(self.classes))
        return table

    def _by_colour(self, path: Path, colours: npt.NDArray[np.uint8]) -> Labels:
        assert self.colours is not None
        known = [*self.colours, *self.ignore_colours]
        labels = [*range(len(self.colours)), *[IGNORE] * len(self.ignore_colours)]
        codes = _colour_codes(np.array(known, np.uint8).reshape(-1, 3))
        order = np.argsort(codes)
        found = _colour_codes(colours)
        at = order[np.searchsorted(codes[order], found).clip(max=len(codes) - 1)]
        wrong = codes[at] != found
        if wrong.any():
            raise DensekitError(self._unknown_colours(path, colours[wrong]))
        return np.asarray(np.array(labels, np.uint8)[at])

    def _layers(self, path: Path, values: npt.NDArray[Any]) -> Labels:
        count = len(self.classes)
        if values.ndim == 3 and values.shape[0] != count and values.shape[2] == count:
            values = values.transpose(2, 0, 1)
        if values.ndim != 3 or values.shape[0] != count:
            raise DensekitError(
                f"{path}: {values.shape} are no layers of {count} classes; save [{count}, height, width] as .npy"
            )
        wrong = ~np.isin(values, (0, 1, IGNORE))
        if wrong.any():
            example, pixels = values[wrong][0], int(wrong.sum())
            raise DensekitError(f"{path}: layers hold 0, 1 and {IGNORE}, not {example} ({pixels} pixels); correct it")
        return np.ascontiguousarray(values, np.uint8)

    def _unknown_values(self, path: Path, values: npt.NDArray[Any]) -> str:
        found, counts = np.unique(values, return_counts=True)
        allowed = {*self.classes.ids, *self.ignore}
        wrong = [f"{v} ({n} pixels)" for v, n in zip(found.tolist(), counts.tolist()) if v not in allowed]
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        classes = ", ".join(f"{n}={i}" for n, i in zip(self.classes.names[:12], self.classes.ids))
        hint = "; it looks like a 0/255 mask: give the class the value 255" if found.tolist() == [0, 255] else ""
        return (
            f"{path}: value {', '.join(wrong[:5])}{more} is none of the classes ({classes}"
            f"{', ...' if len(self.classes) > 12 else ''}), nor ignored {list(self.ignore)}; correct the mask, or name "
            f"the value in classes or ignore{hint}"
        )

    def _unknown_colours(self, path: Path, wrong: npt.NDArray[np.uint8]) -> str:
        assert self.colours is not None
        found, counts = np.unique(wrong, axis=0, return_counts=True)
        worst = tuple(int(v) for v in found[counts.argmax()])
        distance = np.abs(np.array(self.colours, int) - worst).sum(1)
        near = int(distance.argmin())
        return (
            f"{path}: colour {worst} ({int(counts.max())} pixels) is not in colors ({len(found)} such colours); "
            f"the nearest is {self.classes.names[near]!r} {self.colours[near]}; add it to colors or ignore_colors"
        )


def read_values(path: Path, max_pixels: int = MAX_PIXELS) -> npt.NDArray[Any]:
    """The values of a mask file as stored: [H, W] integers, or what an array file holds.

    Raises:
        DensekitError: the file is missing, damaged, too large, a JPEG, or a colour image.
    """
    if path.suffix.lower() == ".npy":
        return _read_array(path, max_pixels)
    with _opened(path, max_pixels) as image:
        # A palette keeps its indices here; OpenCV would give its colours.
        if image.mode in ("P", "L", "1", "I", "I;16", "I;16B", "I;16L"):
            return np.asarray(image).astype(np.uint8 if image.mode == "1" else np.asarray(image).dtype)
        if image.mode in ("LA", "PA"):
            return np.asarray(image)[:, :, 0]
        colours = np.asarray(image.convert("RGB"))
    if (colours == colours[:, :, :1]).all():
        return colours[:, :, 0]
    raise DensekitError(
        f"{path}: a colour image, but a mask holds one class index a pixel; give the colour of each class as colors"
    )


def read_colours(path: Path, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """The colours of a mask file: [H, W, 3] RGB; a palette's indices give the colours that they stand for.

    Raises:
        DensekitError: the file is missing, damaged, too large, a JPEG, or an array.
    """
    if path.suffix.lower() == ".npy":
        raise DensekitError(f"{path}: an array has no colours; leave colors out, or save the mask as PNG")
    with _opened(path, max_pixels) as image:
        return np.asarray(image.convert("RGB"))


def read_classes(classes: Path | Sequence[str] | Mapping[str, int]) -> Classes:
    """Names and values of the classes.

    Args:
        classes: names (values 0, 1, 2, ...), values by name, or a text file with a name a line (blank lines and those
            that begin with # are skipped).

    Raises:
        DensekitError: the file can't be read or holds no name.
    """
    source = f"classes: {classes}" if isinstance(classes, Path) else "classes"
    if isinstance(classes, Path):
        classes = _lines(classes, "classes", "a file with a name a line")
        if not classes:
            raise DensekitError("classes: the file holds no name; write one a line, in the order of the masks' values")
    if isinstance(classes, Mapping):
        return Classes.named_in(source, classes, classes.values())
    return Classes.named_in(source, classes, range(len(classes)))


def read_colour_table(path: Path) -> dict[str, Colour]:
    """Colours by class name, from a file with ``name,red,green,blue`` a line (a first line of other words is skipped).

    Raises:
        DensekitError: the file can't be read, or a line is not of this form.
    """
    table: dict[str, Colour] = {}
    for number, line in enumerate(_lines(path, "colors", "a file with name,red,green,blue a line")):
        name, *parts = (part.strip() for part in line.replace(";", ",").split(","))
        values = [int(part) for part in parts if part.isdecimal()]
        if number == 0 and not values:
            continue
        if len(parts) != 3 or len(values) != 3 or max(values) > 255 or name in table:
            raise DensekitError(
                f"colors: {path} has a line {line!r}; write name,red,green,blue with 0 to 255, and each name once"
            )
        table[name] = (values[0], values[1], values[2])
    return table


def _lines(path: Path, option: str, wanted: str) -> list[str]:
    """Lines of a text file without blank ones and comments."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise DensekitError(f"{option}: {path} can't be read ({reason}); give {wanted}") from None
    return [line for line in lines if line and not line.startswith("#")]


def _opened(path: Path, max_pixels: int) -> Image.Image:
    data = read_bytes(path, max_pixels)
    header = read_header(data)
    if header is None or header.truncated:
        raise DensekitError(f"{path}: the mask is damaged or no image; copy it again or remove its image")
    if header.format == "JPEG":
        raise DensekitError(f"{path}: a JPEG changes class indices by its loss; save masks as PNG")
    if header.width * header.height > max_pixels:
        raise DensekitError(f"{path}: {header.width} x {header.height} is over {max_pixels} pixels; raise max_pixels")
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the limit above stands in for Pillow's own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise DensekitError(f"{path}: the mask can't be decoded ({error}); copy it again") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return image


def _read_array(path: Path, max_pixels: int) -> npt.NDArray[Any]:
    data = read_bytes(path, max_pixels)
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:  # of a damaged header numpy raises whatever Python's own parser does
        raise DensekitError(f"{path}: not a plain .npy array; save the mask again by numpy.save") from None
    if not isinstance(values, np.ndarray) or values.ndim not in (2, 3) or values.dtype.kind not in "buif":
        raise DensekitError(f"{path}: a mask is [H, W] or [K, H, W] numbers; save it so")
    if values.dtype.kind == "f" and not (values == values.round()).all():
        raise DensekitError(f"{path}: the mask holds numbers that are not whole; save class indices")
    return values if values.dtype.kind == "u" else values.astype(np.int64)


def _colour_codes(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    wide = colours.astype(np.int32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])
