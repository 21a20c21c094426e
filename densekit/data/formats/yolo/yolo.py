"""The ``yolo`` data set: a text file an image, a line an object: class and box or polygon in parts of the image.

The labels of ``.../images/a.jpg`` are ``.../labels/a.txt``, or else ``a.txt`` beside it. An image without such a file,
or with an empty one, has no object. Names of classes come from ``data.yaml``, ``classes.txt`` or ``*.names``.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from densekit.data.formats.coco.coco import CocoDataset
from densekit.data.formats.coco.instances import Boxes
from densekit.data.formats.labels.columns import are_numbers
from densekit.data.formats.labels.dataset import labelled_images
from densekit.data.formats.labels.listing import listed, role_folders
from densekit.data.formats.labels.records import Found, LabelledObject, Layout, Record
from densekit.data.formats.yolo.files import YoloFiles, is_no_label, label_path, open_files, yaml_of
from densekit.data.images.read import MAX_PIXELS
from densekit.data.transforms.pipeline import Pipeline
from densekit.registry import DATASETS
from densekit.types import DensekitError, nearest

_SLACK = 0.01  # that rounding may take a coordinate beyond the image


@dataclasses.dataclass(frozen=True)
class YoloReader:
    """Reads the label file of an image.

    Attributes:
        root: folder that names of images are relative to.
        base: folder that places of labels are told relative to.
        names: of the classes by number; None: any number is a class.
        source: that declares them, for messages.
        keypoints: whether lines go on with keypoints behind the box.
    """

    root: Path
    base: Path
    names: Mapping[int, str] | None
    source: Path
    keypoints: bool = False

    def __call__(self, image: Path) -> list[Record]:
        """The one record of an image."""
        path = label_path(image)
        record = Record(os.path.relpath(image, self.root).replace(os.sep, "/"))
        if path is None:
            record.aside.append("images without a label file are learned as background")
            return [record]
        try:
            lines = path.read_text("utf-8-sig", "replace").splitlines()
        except OSError as error:
            record.problems.append(f"{path}: cannot be read ({error.strerror}); check that it is a file")
            return [record]
        place = os.path.relpath(path, self.base).replace(os.sep, "/")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record.objects.append(self._object(line.split(), f"{place}:{number}"))
            except ValueError as error:
                record.problems.append(f"{path}:{number}: {error}")
        if self.keypoints and record.objects:
            record.aside.append("images have keypoints, which are left aside")
        return [record]

    def _object(self, words: list[str], place: str) -> LabelledObject:
        values = [_number(word) for word in words[1:]]
        name = self._class(words[0])
        if self.keypoints:
            values = values[:4]
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise ValueError(
                f"{len(words)} values; a line is a class and a box (5 numbers) or a polygon (7, 9, ...); correct it"
            )
        for value in values:
            if not -_SLACK <= value <= 1 + _SLACK:
                raise ValueError(
                    f"{value:g} is no part of the image's width or height, from 0 to 1; divide pixels by them"
                )
        if len(values) == 4:
            x, y, width, height = values
            return LabelledObject(name, (x - width / 2, y - height / 2, width, height), place)
        xs, ys = values[0::2], values[1::2]
        box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
        return LabelledObject(name, box, place, polygons=[values])

    def _class(self, word: str) -> str:
        number = _number(word)
        if number < 0 or number != int(number):
            raise ValueError(f"class {word!r} is no whole number from 0; the first number of a line is the class")
        if self.names is None:
            return str(int(number))
        if int(number) not in self.names:
            raise ValueError(
                f"class {int(number)} is not among the {len(self.names)} of {self.source} ({min(self.names)} to "
                f"{max(self.names)}); correct it, or name it there"
            )
        return self.names[int(number)]


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{word[:40]!r} is no finite number; a line is a class and a box in numbers; correct it")
    return value


def layout(
    folder: Path, split: str | None = None, list: Path | None = None, names: Sequence[str] | None = None
) -> Layout:
    """The files of a YOLO set; see ``yolo``. ``names`` are those of the classes, where no file has them."""
    files = open_files(folder)
    if files.names is None and names and not are_numbers(names):
        files = dataclasses.replace(files, names=dict(enumerate(names)))
    images = files.images(split)
    root = Path(os.path.commonpath([os.path.abspath(p.parent) for p in images]))
    if list is not None:
        inner = [os.path.relpath(p, root).replace(os.sep, "/") for p in images]
        images = [images[i] for i in listed(list, inner)]
    labels = [path for image in images if (path := label_path(image)) is not None]
    notes = _unused(files, images, labels) if list is None else []
    reader = YoloReader(root, files.root, files.names, files.source, files.keypoints)
    return Layout(folder, root, images, reader, files.names, relative=True, notes=tuple(notes), beside=labels)


def _unused(files: YoloFiles, images: Sequence[Path], labels: Sequence[Path]) -> list[str]:
    """A line on label files without an image.

    Raises:
        DensekitError: no image has one.
    """
    used = set(map(str, labels))
    if not used:
        place = label_path(images[0], must_exist=False)
        raise DensekitError(
            f"{files.source}: none of the {len(images)} images has a label file, such as {place}; put the labels there"
        )
    names = [
        os.path.join(place, name)
        for place in sorted(set(map(os.path.dirname, used)))
        for name in sorted(os.listdir(place))
        if name.endswith(".txt") and not name.startswith(".")
    ]
    others = [name for name in names if name not in used and not is_no_label(name)]
    if not others:
        return []
    some = ", ".join(others[:3])
    return [f"{files.source}: {len(others)} label files belong to no image and are left aside: {some}"]


def recognise(folder: Path) -> Found | None:
    """A ``data.yaml`` as ultralytics writes it, a folder that has one, or one with images and YOLO's text files."""
    path = yaml_of(folder)
    if path is None and not folder.is_dir():
        return None
    files = open_files(path or folder)
    roles = [role for role in files.splits if files.has_labels(role)]
    if roles:
        notes = [f"{files.source}: no labels for {role}, left aside" for role in files.splits if role not in roles]
        return Found("yolo", {role: {"folder": files.source, "split": role} for role in roles}, tuple(notes))
    if path is not None:
        return None
    if files.has_labels(None):
        return Found("yolo", {"": {"folder": folder}})
    inner = {role: place for role, place in role_folders(folder) if open_files(place).has_labels(None)}
    return Found("yolo", {role: {"folder": place} for role, place in inner.items()}) if inner else None


@DATASETS.register
def yolo(
    *,
    folder: Path,
    split: str | None = None,
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
    """Images and boxes in the format of YOLO.

    Args:
        folder: a ``data.yaml``, or a folder that has one, or images and labels.
        split: of the ``data.yaml``, or of the subfolders of ``images``: train, val, test; None: all images.
        list: text file that names the images to use, one a line.
        classes: names of the classes to use, in label order; None: all, by number. Where no file has names, these are
            the names of the numbers.
        on_bad_box: a box without area, or outside its image, is an error, or dropped.
        boxes: as they are, or, ``from_masks``, those around the polygons' masks after the transforms.
        transforms: see ``CocoDataset``.
        seed: see ``CocoDataset``.
        training: detection looks at the same data either way.
        channels: see ``CocoDataset``.
        max_pixels: see ``CocoDataset``.
        instances: see ``CocoDataset``; the program asks for them where a head learns masks.
    """
    if not folder.exists():
        beside = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise DensekitError(f"{folder}: there is no such file or folder; {nearest(folder.name, beside)}")
    return labelled_images(
        layout(folder, split, list, classes),
        on_bad_box=on_bad_box,
        classes=classes,
        transforms=transforms,
        seed=seed,
        channels=channels,
        max_pixels=max_pixels,
        instances=instances,
        boxes=boxes,
    )
