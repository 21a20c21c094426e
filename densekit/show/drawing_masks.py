"""Pictures and files of masks: class-index PNGs, coloured overlays with a legend, objects, the confusion matrix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from densekit.errors import DensekitError
from densekit.files import whole_file
from densekit.ops.run_lengths import NO_MASK
from densekit.show.drawing import FONT, SHADES, Image, as_rgb, colours, drawable, shaded, with_legend
from densekit.types import Classes, Instance

BACKGROUNDS = frozenset({
    *("background", "backgrounds", "bg", "rest", "void", "none", "nothing", "empty", "null"),
    *("unlabeled", "unlabelled", "unlabeled area", "no label", "ignore", "ignored"),
})  # fmt: skip
"""Names, in small letters, of classes that say that nothing is there."""


def is_background(name: str) -> bool:
    """Whether a class is left without colour: its name says so, as ``BACKGROUNDS``; its number does not matter."""
    return " ".join(re.split(r"[\W_]+", name.lower())).strip() in BACKGROUNDS


def write_mask(path: Path, mask: npt.NDArray[Any]) -> None:
    """Write class ids [H, W] as a grey PNG that reads back to the same numbers: 8 bit up to 255, else 16 bit.

    Raises:
        DensekitError: an id that no PNG holds, another ending than .png, or a full disk.
    """
    if path.suffix.lower() != ".png":
        raise DensekitError(f"{path}: masks are written as .png; other formats change the class ids")
    low, high = (int(mask.min()), int(mask.max())) if mask.size else (0, 0)
    if low < 0 or high >= 2**16:
        raise DensekitError(f"{path}: class ids from {low} to {high} don't fit into a PNG (0 to 65535)")
    done, data = cv2.imencode(".png", mask.astype(np.uint8 if high < 2**8 else np.uint16))
    assert done
    with whole_file(path) as file:
        file.write(data.tobytes())


def overlay(image: npt.NDArray[Any], mask: npt.NDArray[Any], classes: Classes, *, opacity: float = 0.5) -> Image:
    """As ``coloured``, with a legend of the classes that are drawn below."""
    return with_legend(*coloured(image, mask, classes, opacity=opacity))


def coloured(
    image: npt.NDArray[Any], mask: npt.NDArray[Any], classes: Classes, *, opacity: float = 0.5, first: int = 0
) -> tuple[Image, list[tuple[str, tuple[int, int, int]]]]:
    """Colour an image by class, with a line around each region.

    Args:
        image: [H, W, C].
        mask: [H, W] the data set's ids, or [K, H, W] layers of 0 and 1 (the last layer lies on top).
        classes: names and ids; one whose name says that nothing is there (``is_background``) stays without colour.
        opacity: of the colour, 0 to 1.
        first: number of the first class's colour.

    Returns:
        A new RGB picture [H, W, 3], and the names that are drawn with their colours.
    """
    picture = as_rgb(image)
    shown = []
    words = zip(classes.names, drawable(classes.names), colours(first + len(classes))[first:])
    for region, (name, word, colour) in zip(_regions(mask, classes), words):
        if (mask.ndim == 2 and is_background(name)) or not region.any():
            continue
        shown.append((word, colour))
        picture[region] = (picture[region] * (1 - opacity) + np.array(colour) * opacity).astype(np.uint8)
        edges, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, edges, -1, colour, 1)
    return picture, shown


def tinted(
    image: npt.NDArray[Any],
    instances: Sequence[Instance],
    kinds: Sequence[int],
    *,
    scale: float = 1,
    opacity: float = 0.5,
) -> Image:
    """Colour objects, each in its own shade of its kind's colour, with a line around each of its parts.

    Args:
        image: [H, W, C].
        instances: masks of the objects, the first on top.
        kinds: colour number of each, such as the label.
        scale: how many times the pixels of the masks the image's are.
        opacity: of the colour, 0 to 1.

    Returns:
        A new RGB picture [H, W, 3].
    """
    picture, palette = as_rgb(image), colours(max(kinds, default=0) + 1)
    turns = [list(kinds[:number]).count(kind) for number, kind in enumerate(kinds)]
    for one, kind, turn in reversed(list(zip(instances, kinds, turns))):
        x, y, mask = _scaled(one, scale)
        place = picture[y : y + mask.shape[0], x : x + mask.shape[1]]
        filled = mask[: place.shape[0], : place.shape[1]] == 1
        colour = shaded(palette[kind], SHADES[turn % len(SHADES)])
        place[filled] = (place[filled] * (1 - opacity) + np.array(colour) * opacity).astype(np.uint8)
        edges, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE) if mask.size else ([], None)
        cv2.drawContours(picture, edges, -1, colour, 1, offset=(x, y))
    return picture


def _scaled(instance: Instance, scale: float) -> Instance:
    x, y, mask = instance
    height, width = mask.shape
    left, top, right, bottom = (round(scale * v) for v in (x, y, x + width, y + height))
    if right == left or bottom == top:
        return NO_MASK
    method = cv2.INTER_NEAREST_EXACT
    return Instance(left, top, np.asarray(cv2.resize(mask, (right - left, bottom - top), interpolation=method)))


def draw_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Image:
    """Picture of a confusion matrix: rows are true classes, columns predicted ones, in percent of the row's pixels.

    Args:
        confusion: [K][K] pixels by true and predicted class.
        names: of the classes.

    Returns:
        RGB [H, W, 3].
    """
    counts = np.asarray(confusion, np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell, margin = (56, 130) if len(names) <= 25 else (12, 130)
    picture = np.full((margin + cell * len(names), margin + cell * len(names), 3), 255, np.uint8)
    for row, column in np.ndindex(*shares.shape):
        share = float(shares[row, column])
        top, left = margin + row * cell, margin + column * cell
        shade = tuple(round(255 - share * (255 - c)) for c in (20, 90, 160))
        cv2.rectangle(picture, (left, top), (left + cell - 2, top + cell - 2), shade, -1)
        if cell > 40:
            _text(picture, f"{100 * share:.1f}", (left + 6, top + cell // 2 + 4), 255 if share > 0.5 else 0)
    _label_axes(picture, drawable(names), cell, margin)
    return picture


def _label_axes(picture: Image, names: Sequence[str], cell: int, margin: int) -> None:
    for index, name in enumerate(names):
        middle = margin + index * cell + cell // 2
        _text(picture, name[:16], (4, middle + 4), 0)
    # The columns' names are written along the rows of the turned picture.
    turned = np.ascontiguousarray(np.rot90(picture[:margin, margin:], -1))
    for index, name in enumerate(names):
        _text(turned, name[:16], (4, index * cell + cell // 2 + 4), 0)
    picture[:margin, margin:] = np.rot90(turned, 1)
    _text(picture, "true \\ predicted", (4, margin - 8), 0)


def _text(picture: Image, text: str, at: tuple[int, int], grey: int) -> None:
    cv2.putText(picture, text, at, FONT, 0.4, (grey, grey, grey), 1, cv2.LINE_AA)


def _regions(mask: npt.NDArray[Any], classes: Classes) -> list[npt.NDArray[np.bool_]]:
    if mask.ndim == 3:
        return [layer == 1 for layer in mask]
    return [mask == value for value in classes.ids]
