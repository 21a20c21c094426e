"""Pictures of predictions: boxes with names and scores, panels side by side."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from densekit.errors import DensekitError
from densekit.files import printable, whole_file
from densekit.show.labels import place_labels

Image = npt.NDArray[np.uint8]

DRAWS_ANY_LETTER = int(cv2.__version__.split(".")[0]) >= 5

SMALLEST_PANEL = 240
"""Pixels that the long side of a panel has at least: smaller images are enlarged, so that words fit."""

_GAP, _LINE = 8, 18

_SEVEN = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
SHADES = (0.0, -0.5, 0.55, -0.25, 0.3)
"""Of one colour, for ``shaded``."""

FONT = cv2.FONT_HERSHEY_SIMPLEX


def colours(count: int) -> list[tuple[int, int, int]]:
    """``count`` RGB colours that people of any colour vision tell apart, as far as so many can be.

    The first seven are Okabe and Ito's (Color Universal Design, 2008); the next ones are these, darker and lighter, so
    that brightness tells apart what hue does not.
    """
    found = []
    for i in range(count):
        turn, base = divmod(i, len(_SEVEN))
        found.append(shaded(_SEVEN[base], SHADES[turn % len(SHADES)]))
    return found


def shaded(colour: tuple[int, int, int], shade: float) -> tuple[int, int, int]:
    """Towards black (below 0) or white (above 0)."""
    r, g, b = (round(c * (1 + shade) if shade < 0 else c + (255 - c) * shade) for c in colour)
    return r, g, b


def text_colour(ground: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever has more contrast to a colour (WCAG 2.1, relative luminance)."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in ground]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else (255, 255, 255)


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
    frames = [(round(x1), round(y1), round(x2), round(y2)) for x1, y1, x2, y2 in boxes.tolist()]
    drawn = list(zip(frames, kinds))
    # Worst first, so that the best boxes lie on top; and all words behind all boxes, so that no line crosses them.
    for (x1, y1, x2, y2), kind in reversed(drawn):
        cv2.rectangle(picture, (x1, y1), (x2, y2), palette[kind], thickness)
    extents = [cv2.getTextSize(text, FONT, scale, thickness) for text in texts]
    places = place_labels(frames, [(width, height + base) for (width, height), base in extents], picture.shape[:2])
    for place, text, kind, (_, base) in reversed(list(zip(places, texts, kinds, extents))):
        left, top, right, bottom = place
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), palette[kind], -1)
        at, ink = (left, bottom - base // 2 - 1), text_colour(palette[kind])
        cv2.putText(picture, text, at, FONT, scale, ink, thickness, cv2.LINE_AA)
    return picture


def with_legend(picture: Image, shown: Sequence[tuple[str, tuple[int, int, int]]]) -> Image:
    """Words with their colours on white below a picture, so that nothing of it is covered."""
    if not shown:
        return picture
    width = picture.shape[1]
    places, left, row = [], 4, 0
    for name, _ in shown:
        needed = 24 + cv2.getTextSize(name, FONT, 0.4, 1)[0][0]
        if left > 4 and left + needed > width:
            left, row = 4, row + 1
        places.append((left, 18 * row + 4))
        left += needed
    strip = np.full((18 * (row + 1) + 4, width, 3), 255, np.uint8)
    for (left, top), (name, colour) in zip(places, shown):
        cv2.rectangle(strip, (left, top), (left + 11, top + 11), colour, -1)
        cv2.putText(strip, name, (left + 16, top + 10), FONT, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([picture, strip])


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
        cv2.putText(strip, line, at, FONT, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, picture])


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and cv2.getTextSize(longer, FONT, 0.42, 1)[0][0] <= width - 4:
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
