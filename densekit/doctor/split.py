"""One data set that is examined: a COCO json with its images, images with masks, or images alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from densekit.data.formats.coco.layouts import guessed_folder
from densekit.data.images.read import MAX_PIXELS
from densekit.doctor.coco.locate import locate
from densekit.doctor.coco.rows import CocoRows, ImageRow, read_rows
from densekit.doctor.defects import Defect
from densekit.doctor.masks.checks import MaskQuestion


@dataclasses.dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image file; ``row`` is its entry where a json names it."""

    path: Path
    row: ImageRow | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) that the json gives."""
        return None if self.row is None else (self.row.width, self.row.height)


@dataclasses.dataclass(slots=True)
class Split:
    """One data set: what is learned from, or tested on.

    Attributes:
        name: such as ``train``; empty where there is one alone.
        rows: of its COCO json.
        images: files to look at.
        masks: files to look at.
        defects: found on the way.
        max_pixels: a larger image is not decoded.
        chosen: names of the categories that the config chooses; None: all.
        is_json: whether ``rows`` are a json's, and not labels of another format.
    """

    name: str
    rows: CocoRows | None = None
    images: list[ImageEntry] = dataclasses.field(default_factory=list)
    masks: list[MaskQuestion] = dataclasses.field(default_factory=list)
    defects: list[Defect] = dataclasses.field(default_factory=list)
    max_pixels: int = MAX_PIXELS
    chosen: tuple[str, ...] | None = None
    is_json: bool = True


def coco_split(name: str, path: Path, images: Path | None, max_pixels: int = MAX_PIXELS) -> Split:
    """A COCO json and its images."""
    return split_of_rows(name, read_rows(path), images, max_pixels)


def split_of_rows(name: str, rows: CocoRows, images: Path | None, max_pixels: int = MAX_PIXELS) -> Split:
    """The same of a json that was read already; without ``images`` the folder is guessed."""
    locate(rows, images if images is not None else _guessed(rows))
    split = Split(name, rows, max_pixels=max_pixels)
    if rows.folder is None:
        if rows.images:
            message = "the image folder is not beside it under a usual name; the files were not looked at"
            split.defects.append(Defect("images_not_found", str(rows.path), message, source=str(rows.path)))
        return split
    first = {id(image) for image in rows.images_by_id.values()}
    for image in rows.images:
        place = rows.place(image)
        if place is not None and id(image) in first:
            split.images.append(ImageEntry(place, image))
    return split


def _guessed(rows: CocoRows) -> Path | None:
    return guessed_folder(rows.path.resolve(), [image.file_name for image in rows.images])
