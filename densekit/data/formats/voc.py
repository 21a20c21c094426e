"""The ``voc`` data set: Pascal VOC's xml, one an image, as LabelImg, CVAT, Roboflow and many others write it too.

Pascal VOC counts pixels from 1, and its corners are the first and the last pixel of an object: ``xmin`` 1 and ``xmax``
10 are the ten pixels from 0 to 10. Most other programs write continuous coordinates from 0 (``corners: continuous``).
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from densekit.data.formats.coco.coco import CocoDataset
from densekit.data.formats.labels.dataset import labelled_images
from densekit.data.formats.labels.listing import (
    files_below,
    images_below,
    inner_folder,
    left_aside,
    listed,
    role_folders,
)
from densekit.data.formats.labels.records import Found, LabelledObject, Layout, Record
from densekit.data.images.names import FileNames
from densekit.data.images.read import MAX_PIXELS
from densekit.data.transforms.pipeline import Pipeline
from densekit.registry import DATASETS
from densekit.types import DensekitError, nearest

Corners = Literal["inclusive", "continuous"]

_HEAD = 2048  # bytes by which a file is told
_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclasses.dataclass(frozen=True)
class VocReader:
    """Reads an xml.

    Attributes:
        source: folder that places are told relative to.
        corners: see ``voc``.
        images: file of the image of each xml, by the xml's path; where it is not there, the xml names it.
    """

    source: Path
    corners: Corners
    images: dict[str, str] = dataclasses.field(repr=False)

    def __call__(self, path: Path) -> list[Record]:
        """The one record of a file."""
        own = self.images.get(str(path))
        record = Record(own or f"{path.stem}.jpg")
        try:
            text = path.read_bytes()
            if b"<!ENTITY" in text:
                raise ValueError("it declares entities, which labels never need; export it again")
            tree = ElementTree.fromstring(text)
        except (OSError, ValueError, ElementTree.ParseError) as error:
            record.problems.append(f"{path}: cannot be read as xml ({error}); export it again, or remove it")
            return [record]
        if own is None and (name := (tree.findtext("filename") or "").strip()):
            record.image = name
        record.size = _size(tree)
        place = os.path.relpath(path, self.source).replace(os.sep, "/")
        for number, element in enumerate(tree.iterfind("object"), 1):
            try:
                record.objects.append(self._object(element, f"{place}#{number}"))
            except ValueError as error:
                record.problems.append(f"{path}:{_line(text, number)}: object {number}: {error}")
        if self.corners == "inclusive":
            below = sum(min(o.box[:2]) < 0 for o in record.objects)
            record.aside += [
                "boxes begin before pixel 1, where Pascal VOC starts; are these corners: continuous?"
            ] * below
        return [record]

    def _object(self, element: ElementTree.Element, place: str) -> LabelledObject:
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError("it has no name; every object needs its class")
        box = element.find("bndbox")
        if box is None:
            raise ValueError(f"{name!r} has no bndbox; every object needs xmin, ymin, xmax and ymax")
        left, top, right, bottom = (_number(box, side) for side in _SIDES)
        if right < left or bottom < top:
            raise ValueError(
                f"{name!r}: xmin {left:g}, ymin {top:g}, xmax {right:g}, ymax {bottom:g}: the last corner lies before "
                f"the first; swap them"
            )
        if self.corners == "inclusive":
            left, top = left - 1, top - 1
        crowd = (element.findtext("difficult") or "").strip().lower() in ("1", "true", "yes")
        return LabelledObject(name, (left, top, right - left, bottom - top), place, crowd)


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """(height, width) that the xml gives; None where it gives none, as some programs write 0."""
    sides = [tree.findtext(f"size/{side}") or "" for side in ("height", "width")]
    try:
        height, width = (int(float(side)) for side in sides)
    except (ValueError, OverflowError):
        return None
    return (height, width) if 0 < height < 2**31 and 0 < width < 2**31 else None


def _number(box: ElementTree.Element, side: str) -> float:
    text = (box.findtext(side) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{side} is {text[:40]!r}, which is no finite number; correct it")
    return value


def _line(text: bytes, number: int) -> int:
    """The line where an object begins."""
    starts = [found.start() for found in re.finditer(rb"<object[\s>]", text)]
    return text.count(b"\n", 0, starts[number - 1]) + 1 if number <= len(starts) else 1


@dataclasses.dataclass(frozen=True)
class _Folders:
    """Where the parts of a set are."""

    labels: Path
    images: Path
    lists: Path | None


def _folders(folder: Path) -> _Folders:
    labels = inner_folder(folder, "Annotations", "annotations", "labels", "xmls") or folder
    images = inner_folder(folder, "JPEGImages", "images", "imgs", "image") or (folder if labels != folder else labels)
    lists = folder / "ImageSets" / "Main"
    return _Folders(labels, images, lists if lists.is_dir() else None)


def layout(
    folder: Path,
    split: str | None = None,
    list: Path | None = None,
    images: Path | None = None,
    corners: Corners = "inclusive",
) -> Layout:
    """The files of a Pascal VOC set; see ``voc``."""
    places = _folders(folder)
    root = images or places.images
    if not root.is_dir():
        raise DensekitError(f"{root}: there is no such image folder; correct the path of the images")
    names = files_below(places.labels, ".xml")
    if not names:
        raise DensekitError(f"{places.labels}: there is no xml; give the folder that has Annotations, or the xml files")
    if split is not None:
        list = _list_of(places, split)
    if list is not None:
        names = [names[i] for i in listed(list, [f"{name[:-4]}.jpg" for name in names])]
    there = images_below(root)
    found, own = FileNames(there), {}
    for name in names:
        meant = found.meant_by(name[:-4])
        if len(meant) == 1:
            own[str(places.labels / name)] = meant[0]
    files = [places.labels / name for name in names]
    notes = [] if list is not None else left_aside(folder, "have no xml", there, own.values())
    return Layout(folder, root, files, VocReader(folder, corners, own), notes=tuple(notes))


def _list_of(places: _Folders, split: str) -> Path:
    if places.lists is None:
        raise DensekitError(
            f"split: {split!r} needs a folder ImageSets/Main with {split}.txt; leave split out, or add it"
        )
    path = places.lists / f"{split}.txt"
    if not path.is_file():
        raise DensekitError(f"{places.lists}: there is no {split}.txt; {nearest(split, _splits(places))}")
    return path


def _splits(places: _Folders) -> list[str]:
    """Names of the lists of a set; those of single classes are left out."""
    found = [] if places.lists is None else sorted(path.stem for path in places.lists.glob("*.txt"))
    return [name for name in found if "_" not in name]


def recognise(folder: Path) -> Found | None:
    """A folder with ``Annotations``, with xml files beside images, or with such folders for its splits."""
    if _is_set(folder):
        splits = [name for name in _splits(_folders(folder)) if name in ("train", "val", "test")]
        if splits:
            return Found("voc", {name: {"folder": folder, "split": name} for name in splits})
        return Found("voc", {"": {"folder": folder}})
    inner = {role: place for role, place in role_folders(folder) if _is_set(place)}
    if inner:
        return Found("voc", {role: {"folder": place} for role, place in inner.items()})
    return None


def _is_set(folder: Path) -> bool:
    places = _folders(folder)
    first = next(iter(files_below(places.labels, ".xml", deep=places.labels != folder)), None)
    if first is None:
        return False
    with (places.labels / first).open("rb") as file:
        return re.search(rb"<annotation[\s>]", file.read(_HEAD)) is not None


@DATASETS.register
def voc(
    *,
    folder: Path,
    split: str | None = None,
    list: Path | None = None,
    images: Path | None = None,
    corners: Corners = "inclusive",
    classes: tuple[str, ...] | None = None,
    on_bad_box: Literal["error", "drop"] = "error",
    transforms: Pipeline | None = None,
    seed: int = 0,
    training: bool = False,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
) -> CocoDataset:
    """Images and boxes in the format of Pascal VOC.

    Args:
        folder: that has ``Annotations`` (and ``JPEGImages`` or ``images``), or xml files.
        split: a list of ``ImageSets/Main``, such as train; None: all xml files.
        list: another text file that names the images to use, one a line.
        images: the image folder, where it is not in ``folder``.
        corners: ``inclusive``: of the first and the last pixel, counted from 1, as in Pascal VOC; ``continuous``: from
            0, width is xmax - xmin, as many other programs write them.
        classes: names of the classes to use, in label order, all there are; None: those that occur, by name.
        on_bad_box: a box without area, or outside its image, is an error, or dropped.
        transforms: see ``CocoDataset``.
        seed: see ``CocoDataset``.
        training: detection looks at the same data either way.
        channels: see ``CocoDataset``.
        max_pixels: see ``CocoDataset``.
    """
    return labelled_images(
        layout(folder, split, list, images, corners),
        on_bad_box=on_bad_box,
        classes=classes,
        transforms=transforms,
        seed=seed,
        channels=channels,
        max_pixels=max_pixels,
    )
