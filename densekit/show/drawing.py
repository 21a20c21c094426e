"""Pictures of predictions: boxes with names and scores, panels side by side."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from densekit.errors import DensekitError
from densekit.files import printable, whole_file

Image = npt.NDArray[np.uint8]

DRAWS_ANY_LETTER = int(cv2.__version__.split(".")[0]) >= 5

SMALLEST_PANEL = 240
"""Pixels that the long side of a panel has at least: smaller images are enlarged, so that words fit."""

_GAP, _LINE = 8, 18


def colours(count: int) -> list[tuple[int, int, int]]:
    """``count`` RGB colours that differ well: hues one golden ratio apart, in two brightnesses."""
    found = []
    for i in range(count):
        r, g, b = colorsys.hsv_to_rgb(i * 0.618034 % 1.0, 0.85, 1.0 if i % 2 == 0 else 0.8)
        found.append((round(255 * r), round(255 * g), round(255 * b)))
    return found


def drawable(names: Sequence[str]) -> list[str]:
    """Names as OpenCV draws them: any letter from version 5 on; before, ASCII, and the class's number for others."""
    if DRAWS_ANY_LETTER:
        return [printable(name) for name in names]
    found: list[str] = []
    for number, name in enumerate(names):
        plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
        text = "".join(c for c in plain if c.isascii() and c.isprintable())
        found.append(text if text == plain and text not in found else f"{text}#{number}")
    return found


def as_rgb(image: npt.NDArray[np.generic]) -> Image:
    """[H, W, C] of any number of channels -> RGB uint8 to look at: grey is repeated, others show the first three."""
    picture = np.clip(np.asarray(image, dtype=np.float32), 0, 255).astype(np.uint8)
    picture = picture[..., None] if picture.ndim == 2 else picture
    return np.ascontiguousarray(picture[..., :3] if picture.shape[2] >= 3 else np.repeat(picture[..., :1], 3, axis=2))


def draw_boxes(
    image: npt.NDArray[np.generic],
    boxes: npt.NDArray[np.float32],
    texts: Sequence[str],
    kinds: Sequence[int],
) -> Image:
    """Draw boxes with a text each.

    Args:
        image: [H, W, C].
        boxes: [n, 4] xyxy in its pixels.
        texts: what stands at each box, such as ``cat 0.93``.
        kinds: colour number of each box, such as the label.

    Returns:
        A new RGB picture [H, W, 3].
    """
    picture = as_rgb(image)
    palette = colours(max(kinds, default=0) + 1)
    thickness = max(1, round(max(picture.shape[:2]) / 500))
    scale = max(0.35, max(picture.shape[:2]) / 1600)
    # Worst first, so that the best boxes lie on top.
    for box, text, kind in reversed(list(zip(boxes.tolist(), texts, kinds))):
        x1, y1, x2, y2 = (round(v) for v in box)
        cv2.rectangle(picture, (x1, y1), (x2, y2), palette[kind], thickness)
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
        top = y1 if y1 > height + base else y1 + height + base
        left = max(0, min(x1, picture.shape[1] - width))
        cv2.rectangle(picture, (left, top - height - base), (left + width, top), palette[kind], -1)
        cv2.putText(
            picture, text, (left, top - base // 2), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), thickness, cv2.LINE_AA
        )
    return picture


def enlarged(image: npt.NDArray[np.generic]) -> tuple[Image, int]:
    """An image as RGB, and how many times it was enlarged for a panel."""
    picture = as_rgb(image)
    times = max(1, -(-SMALLEST_PANEL // max(picture.shape[:2])))
    return np.ascontiguousarray(picture.repeat(times, 0).repeat(times, 1)), times


def side_by_side(panels: Sequence[tuple[str, Image]]) -> Image:
    """Panels in a row on white, each under its caption.

    Args:
        panels: caption and RGB picture.

    Returns:
        A new RGB picture.
    """
    lines = [_wrapped(caption, picture.shape[1]) for caption, picture in panels]
    most = max(len(caption) for caption in lines)
    shown = [_captioned(caption, picture, most) for caption, (_, picture) in zip(lines, panels)]
    height = max(panel.shape[0] for panel in shown)
    columns = [np.pad(p, ((0, height - p.shape[0]), (0, _GAP), (0, 0)), constant_values=255) for p in shown]
    return np.ascontiguousarray(np.concatenate(columns, 1)[:, :-_GAP])


def _captioned(lines: Sequence[str], picture: Image, most: int) -> Image:
    """A picture under its lines, with room for so many."""
    strip = np.full((_LINE * most + 4, picture.shape[1], 3), 255, np.uint8)
    for number, line in enumerate(lines):
        at = (2, _LINE * number + 14)
        cv2.putText(strip, line, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, picture])


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and cv2.getTextSize(longer, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0] <= width - 4:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def write_picture(path: Path, picture: Image) -> None:
    """Write an RGB picture whole or not at all, in the format of the name's ending.

    Raises:
        DensekitError: an ending that OpenCV can't write, or a full disk.
    """
    bgr = picture[..., ::-1] if picture.ndim == 3 else picture
    done, data = cv2.imencode(path.suffix, np.ascontiguousarray(bgr))
    if not done:
        raise DensekitError(f"{path} could not be encoded; use a name that ends in .png or .jpg")
    with whole_file(path) as file:
        file.write(data.tobytes())
