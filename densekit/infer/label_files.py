"""Boxes and outlines as the files that annotation tools open, one an image: YOLO txt, Pascal VOC xml, LabelMe json.

They hold what is to be corrected by hand, so only boxes of at least a score that the caller chose.
"""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from densekit.files import printable
from densekit.infer.results import BoxResult
from densekit.ops.outlines import outlines


class LabelFormat(NamedTuple):
    """How a program's label files are written.

    Attributes:
        folder: below that of the prediction.
        ending: of the files, which have the images' names.
        text: of the file of a result, given its path.
    """

    folder: str
    ending: str
    text: Callable[[BoxResult, Path], str]


def yolo_text(result: BoxResult, path: Path) -> str:
    """A line a box: position of the class, middle and sides as shares of the image's; ``classes.txt`` has the names.

    Of a head that finds masks, a line for each part of an object, with the points around it; none where no pixel of the
    object is left.
    """
    height, width = result.image.size
    lines = []
    for number, ((x1, y1, x2, y2), label) in enumerate(zip(result.boxes.tolist(), result.labels)):
        shapes = [[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]]
        if result.instances is not None:
            shapes = outlines(result.instances[number])
        for numbers in shapes:
            shares = (f"{v / (height if i % 2 else width):.6f}" for i, v in enumerate(numbers))
            lines.append(" ".join([str(label), *shares]) + "\n")
    return "".join(lines)


def voc_text(result: BoxResult, path: Path) -> str:
    """Corners as Pascal VOC counts pixels: from 1, the last one within the box."""
    height, width = result.image.size
    file = _file_of(result)
    root = ET.Element("annotation")
    for tag, text in (("folder", file.parent.name), ("filename", file.name), ("path", str(file))):
        ET.SubElement(root, tag).text = printable(text)
    _numbers(ET.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
    ET.SubElement(root, "segmented").text = "0"
    for box, name in zip(result.boxes.tolist(), result.names):
        entry = ET.SubElement(root, "object")
        for tag, text in (("name", name), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            ET.SubElement(entry, tag).text = printable(text)
        x1, y1, x2, y2 = box
        (left, right), (top, bottom) = _pixels(x1, x2, width), _pixels(y1, y2, height)
        _numbers(ET.SubElement(entry, "bndbox"), {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom})
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def labelme_text(result: BoxResult, path: Path) -> str:
    """Rectangles, or the outlines of masks, with their scores; parts of one object have one group.

    The image is named relative to the file, as LabelMe looks for it.
    """
    height, width = result.image.size
    shapes = []
    for number, (name, score) in enumerate(zip(result.names, result.scores.tolist())):
        parts, kind = [result.boxes[number].tolist()], "rectangle"
        if result.instances is not None and result.instances[number].mask.size:
            parts, kind = outlines(result.instances[number]), "polygon"
        shapes += [
            {
                "label": name,
                "points": [[x, y] for x, y in zip(part[::2], part[1::2])],
                "group_id": number if len(parts) > 1 else None,
                "description": "",
                "shape_type": kind,
                "flags": {},
                "score": score,
            }
            for part in parts
        ]
    image = os.path.relpath(_file_of(result), path.parent)
    content: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": printable(image),
        "imageData": None,
    }
    return json.dumps({**content, "imageHeight": height, "imageWidth": width}, indent=1) + "\n"


LABEL_FORMATS = {
    "yolo": LabelFormat("labels", "txt", yolo_text),
    "voc": LabelFormat("voc", "xml", voc_text),
    "labelme": LabelFormat("labelme", "json", labelme_text),
}
"""By the names that ``--formats`` takes."""


def _file_of(result: BoxResult) -> Path:
    return Path(os.path.abspath(result.image.path or result.image.name))


def _numbers(parent: ET.Element, values: dict[str, int]) -> None:
    for tag, value in values.items():
        ET.SubElement(parent, tag).text = str(value)


def _pixels(start: float, end: float, side: int) -> tuple[int, int]:
    """First and last pixel of a box along a side, from 1; at least one pixel, inside the image."""
    first = min(side, round(start) + 1)
    return first, max(first, min(side, round(end)))
