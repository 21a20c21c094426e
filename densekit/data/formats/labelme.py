"""The ``labelme`` data set: LabelMe's json, one an image, with rectangles, polygons and circles.

Shapes of one label and one ``group_id`` are the parts of one object. Lines, points and shapes of other kinds have no
area and are left aside, which is told.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from densekit.data.formats.coco.coco import CocoDataset
from densekit.data.formats.coco.instances import Boxes
from densekit.data.formats.labels.dataset import labelled_images
from densekit.data.formats.labels.listing import files_below, images_below, left_aside, listed, role_folders
from densekit.data.formats.labels.records import Box, Found, LabelledObject, Layout, Record
from densekit.data.images.names import FileNames
from densekit.data.images.read import MAX_PIXELS
from densekit.data.transforms.pipeline import Pipeline
from densekit.registry import DATASETS
from densekit.types import DensekitError

_HEAD = 65536  # bytes by which a file is told; a picture inside it stands behind its shapes
_CORNERS = 64  # of the polygon that stands for a circle
_DIFFICULT = ("difficult", "crowd", "iscrowd")


class Shape(msgspec.Struct, gc=False):
    """One entry of ``shapes``; other keys are not looked at."""

    label: Any = None
    points: Any = None
    shape_type: Any = None
    group_id: Any = None
    flags: Any = None
    difficult: Any = False


class File(msgspec.Struct, gc=False):
    """A json file."""

    shapes: list[Shape]
    imagePath: Any = None
    imageHeight: Any = None
    imageWidth: Any = None


@dataclasses.dataclass(frozen=True)
class LabelmeReader:
    """Reads a json.

    Attributes:
        folder: of all files; places are told relative to it.
        images: file of the image of each json, by the json's path, where its name is the json's.
    """

    folder: Path
    images: dict[str, str] = dataclasses.field(repr=False)

    def __call__(self, path: Path) -> list[Record]:
        """The one record of a file."""
        record = Record(self.images.get(str(path), f"{path.stem}.jpg"))
        try:
            content = msgspec.json.decode(path.read_bytes(), type=File)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            record.problems.append(f"{path}: cannot be read as LabelMe's json ({error}); export it again, or remove it")
            return [record]
        record.image = self._image(path, content)
        sides = content.imageHeight, content.imageWidth
        if all(type(side) in (int, float) and 0 < side < 2**31 for side in sides):
            record.size = (int(sides[0]), int(sides[1]))
        place = os.path.relpath(path, self.folder).replace(os.sep, "/")
        grouped: dict[tuple[str, Any], LabelledObject] = {}
        for number, shape in enumerate(content.shapes, 1):
            try:
                one = _object(shape, f"{place}#{number}", record)
            except ValueError as error:
                record.problems.append(f"{path}: shape {number}: {error}")
                continue
            if one is not None:
                self._add(record, grouped, one, shape.group_id)
        return [record]

    def _image(self, path: Path, content: File) -> str:
        """The image that the json names, relative to the folder; the one of its own name where that is there."""
        if str(path) in self.images:
            return self.images[str(path)]
        if not isinstance(content.imagePath, str) or not content.imagePath:
            return f"{path.stem}.jpg"
        place = path.parent / content.imagePath.replace("\\", "/")
        return os.path.relpath(os.path.normpath(place), self.folder).replace(os.sep, "/")

    def _add(
        self, record: Record, grouped: dict[tuple[str, Any], LabelledObject], one: LabelledObject, group: Any
    ) -> None:
        if not isinstance(group, int | str):
            record.objects.append(one)
            return
        first = grouped.setdefault((one.name, group), one)
        if first is one:
            record.objects.append(one)
            return
        first.polygons = [*_parts(first), *_parts(one)]
        first.box = _around([first.box, one.box])


def _object(shape: Shape, place: str, record: Record) -> LabelledObject | None:
    if not isinstance(shape.label, str) or not shape.label:
        raise ValueError(f"label is {shape.label!r}; every shape needs its class")
    kind = shape.shape_type or "polygon"
    if kind not in ("rectangle", "polygon", "circle"):
        record.aside.append(f"shapes of the kind {kind!r} are left aside: they are no boxes")
        return None
    points = _points(shape)
    flags = shape.flags if isinstance(shape.flags, dict) else {}
    crowd = bool(shape.difficult) or any(flags.get(key) is True for key in _DIFFICULT)
    if kind == "circle":
        (x, y), (at_x, at_y) = points[:2]
        radius = math.hypot(at_x - x, at_y - y)
        turns = [2 * math.pi * i / _CORNERS for i in range(_CORNERS)]
        polygon = [v for turn in turns for v in (x + radius * math.cos(turn), y + radius * math.sin(turn))]
        return LabelledObject(
            shape.label, (x - radius, y - radius, 2 * radius, 2 * radius), place, crowd, [polygon]
        )  # fmt: skip
    xs, ys = [x for x, _ in points], [y for _, y in points]
    box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    outline = [[v for point in points for v in point]] if kind == "polygon" else None
    return LabelledObject(shape.label, box, place, crowd, outline)


def _points(shape: Shape) -> list[tuple[float, float]]:
    least = 3 if (shape.shape_type or "polygon") == "polygon" else 2
    points = shape.points if isinstance(shape.points, list) else []
    for point in points:
        if not (
            isinstance(point, list)
            and len(point) == 2
            and all(isinstance(v, int | float) and math.isfinite(v) for v in point)
        ):
            raise ValueError(f"{shape.label!r} has a point {point!r}; a point is two finite numbers; correct it"[:300])
    if len(points) < least:
        kind = shape.shape_type or "polygon"
        raise ValueError(f"{shape.label!r} is a {kind} of {len(points)} points; it needs {least}; draw it again")
    return [(float(x), float(y)) for x, y in points]


def _parts(one: LabelledObject) -> list[list[float]]:
    if one.polygons:
        return one.polygons
    x, y, width, height = one.box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _around(boxes: list[Box]) -> Box:
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    right, bottom = max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
    return left, top, right - left, bottom - top


def layout(folder: Path, list: Path | None = None) -> Layout:
    """The files of a LabelMe set; see ``labelme``."""
    if not folder.is_dir():
        raise DensekitError(f"{folder}: there is no such folder; give the one that has LabelMe's json files")
    names = [name for name in files_below(folder, ".json") if is_labelme(folder / name)]
    if not names:
        raise DensekitError(f"{folder}: there is no json of LabelMe (an object with 'shapes'); give their folder")
    if list is not None:
        names = [names[i] for i in listed(list, [f"{name[:-5]}.jpg" for name in names])]
    images = images_below(folder)
    found = FileNames(images)
    own = {str(folder / n): meant[0] for n in names if len(meant := found.meant_by(n[:-5])) == 1}
    notes = [] if list is not None else left_aside(folder, "have no json", images, own.values())
    files = [folder / name for name in names]
    return Layout(folder, folder, files, LabelmeReader(folder, own), notes=tuple(notes))


def is_labelme(path: Path) -> bool:
    """Whether the head of a json is LabelMe's."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return re.search(rb'"shapes"\s*:\s*\[', head) is not None and re.search(rb'"images"\s*:\s*\[', head) is None


def recognise(folder: Path) -> Found | None:
    """A folder with LabelMe's json files, or with such folders for its splits."""
    inner = {role: place for role, place in role_folders(folder) if _has_json(place)}
    if inner:
        return Found("labelme", {role: {"folder": place} for role, place in inner.items()})
    return Found("labelme", {"": {"folder": folder}}) if _has_json(folder) else None


def _has_json(folder: Path) -> bool:
    return any(is_labelme(folder / name) for name in files_below(folder, ".json")[:20])


@DATASETS.register
def labelme(
    *,
    folder: Path,
    list: Path | None = None,
    classes: tuple[str, ...] | None = None,
    on_bad_box: Literal["error", "drop"] = "error",
    boxes: Boxes = "annotated",
    transforms: Pipeline | None = None,
    seed: int = 0,
    training: bool = False,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    instances: bool = False,
) -> CocoDataset:
    """Images and boxes in the format of LabelMe.

    Args:
        folder: that has the json files, and the images beside them or where the json files say.
        list: text file that names the images to use, one a line.
        classes: names of the classes to use, in label order, all there are; None: those that occur, by name.
        on_bad_box: a box without area, or outside its image, is an error, or dropped.
        boxes: as they are, or, ``from_masks``, those around the polygons' masks after the transforms.
        transforms: see ``CocoDataset``.
        seed: see ``CocoDataset``.
        training: detection looks at the same data either way.
        channels: see ``CocoDataset``.
        max_pixels: see ``CocoDataset``.
        instances: see ``CocoDataset``; the program asks for them where a head learns masks.
    """
    return labelled_images(
        layout(folder, list),
        on_bad_box=on_bad_box,
        classes=classes,
        transforms=transforms,
        seed=seed,
        channels=channels,
        max_pixels=max_pixels,
        instances=instances,
        boxes=boxes,
    )
