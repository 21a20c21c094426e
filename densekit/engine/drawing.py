"""Pictures of predictions: boxes with names and scores."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from densekit.errors import DensekitError
from densekit.files import whole_file

Image = npt.NDArray[np.uint8]


def colours(count: int) -> list[tuple[int, int, int]]:
    """``count`` RGB colours that differ well: hues one golden ratio apart, in two brightnesses."""
    found = []
    for i in range(count):
        r, g, b = colorsys.hsv_to_rgb(i * 0.618034 % 1.0, 0.85, 1.0 if i % 2 == 0 else 0.8)
        found.append((round(255 * r), round(255 * g), round(255 * b)))
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
        cv2.rectangle(picture, (x1, top - height - base), (x1 + width, top), palette[kind], -1)
        cv2.putText(
            picture, text, (x1, top - base // 2), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), thickness, cv2.LINE_AA
        )
    return picture


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
