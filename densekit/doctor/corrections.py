"""What ``--fix`` does about each code: one small function each, on a copy of the file's content."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from densekit.data.rle import extent
from densekit.doctor.coco_rows import AnnotationRow, CocoRows, ImageRow, folded_name, which_row
from densekit.doctor.defects import Box, Defect
from densekit.doctor.image_checks import Question, look
from densekit.doctor.segmentations import Mask, Runs, drawn
from densekit.doctor.set_corrections import write_areas, write_as_coco, write_polygons


class Correction:
    """One round of changes; rows are dropped at its end, so that positions stay right during the round.

    Args:
        content: of the file; changed in place.
        rows: the same, read.
        max_pixels: a larger image is not looked at.
    """

    def __init__(self, content: dict[str, Any], rows: CocoRows, max_pixels: int) -> None:
        self.content, self.rows, self.max_pixels = content, rows, max_pixels
        self.log: list[str] = []
        self.dropped: dict[str, set[int]] = {"images": set(), "annotations": set(), "categories": set()}
        self.images = {image.row: image for image in rows.images}
        self.annotations = {annotation.row: annotation for annotation in rows.annotations}
        used = [a.id for a in rows.annotations] + [i.id for i in rows.images]
        self.next_id = max((i for i in used if isinstance(i, int) and i < 2**62), default=0) + 1

    def new_id(self, *, text: bool) -> int | str:
        """An id that nothing has yet."""
        self.next_id += 1
        return f"densekit-{self.next_id}" if text else self.next_id

    def entry(self, key: str, row: int) -> dict[str, Any]:
        """A row of the content."""
        found: dict[str, Any] = self.content[key][row]
        return found

    def drop(self, key: str, row: int, defect: Defect) -> None:
        """Remove a row."""
        if row not in self.dropped[key]:
            self.dropped[key].add(row)
            self.told(defect, f"{key}[{row}] removed")

    def drop_image(self, image: ImageRow, defect: Defect) -> None:
        """Remove an image and its annotations."""
        self.drop("images", image.row, defect)
        for annotation in self.rows.annotations:
            if annotation.image_id == image.id:
                self.drop("annotations", annotation.row, defect)

    def set(self, key: str, row: int, name: str, value: Any, defect: Defect) -> None:
        """Change one value of a row."""
        entry = self.entry(key, row)
        old = repr(entry.get(name))
        entry[name] = value
        self.told(defect, f"{key}[{row}].{name}: {_short(old)} -> {_short(repr(value))}")

    def told(self, defect: Defect, change: str) -> None:
        """Add a line to the log."""
        annotation = "" if defect.annotation_id is None else f" annotation {defect.annotation_id!r}"
        self.log.append(f"{defect.file}{annotation}: {defect.code}: {change}")

    def result(self) -> dict[str, Any]:
        """The content without the rows that were dropped."""
        for key, rows in self.dropped.items():
            if rows:
                self.content[key] = [v for i, v in enumerate(self.content[key]) if i not in rows]
        return self.content

    def mask(self, annotation: AnnotationRow) -> Mask | None:
        """The mask of an annotation, where it can be drawn."""
        image = self.rows.images_by_id.get(annotation.image_id)
        return None if image is None else drawn(annotation.segmentation, image.width, image.height)


def _drop_row(c: Correction, defect: Defect) -> None:
    key, row = which_row(defect.row)
    entry = c.content[key][row]
    if key == "annotations" and isinstance(entry, dict) and "id" not in entry:
        c.set(key, row, "id", c.new_id(text=False), defect)
    else:
        c.drop(key, row, defect)


def _drop_annotation(c: Correction, defect: Defect) -> None:
    c.drop("annotations", defect.row, defect)


def _drop_image(c: Correction, defect: Defect) -> None:
    if defect.row in c.images:
        c.drop_image(c.images[defect.row], defect)


def _id_kind(c: Correction, defect: Defect) -> None:
    """A new id of the usual kind; the annotations of an image follow it."""
    if defect.annotation_id is not None:
        old = c.annotations[defect.row].id
        c.set("annotations", defect.row, "id", c.new_id(text=not isinstance(old, str)), defect)
        return
    image = c.images[defect.row]
    new = c.new_id(text=not isinstance(image.id, str))
    c.set("images", image.row, "id", new, defect)
    for annotation in c.rows.annotations:
        if annotation.image_id == image.id:
            c.set("annotations", annotation.row, "image_id", new, defect)


def _image_id_twice(c: Correction, defect: Defect) -> None:
    """The same file again goes; of two files neither is sure of its annotations."""
    image = c.images[defect.row]
    first = c.rows.images_by_id[image.id]
    c.drop("images", image.row, defect)
    if first.file_name != image.file_name:
        c.drop_image(first, defect)


def _file_name_twice(c: Correction, defect: Defect) -> None:
    image = c.images[defect.row]
    first = next(i for i in c.rows.images if i.file_name == image.file_name)
    for annotation in c.rows.annotations:
        if annotation.image_id == image.id:
            c.set("annotations", annotation.row, "image_id", first.id, defect)
    c.drop("images", image.row, defect)


def _annotation_id_twice(c: Correction, defect: Defect) -> None:
    entry = c.entry("annotations", defect.row)
    first = next(a for a in c.rows.annotations if a.id == entry["id"])
    if c.entry("annotations", first.row) == entry:
        c.drop("annotations", defect.row, defect)
    else:
        c.set("annotations", defect.row, "id", c.new_id(text=isinstance(entry["id"], str)), defect)


def _category_id_twice(c: Correction, defect: Defect) -> None:
    category = next(k for k in c.rows.categories if k.row == defect.row)
    first = next(k for k in c.rows.categories if k.id == category.id)
    if first.name == category.name:
        c.drop("categories", category.row, defect)


def _category_name_twice(c: Correction, defect: Defect) -> None:
    category = next(k for k in c.rows.categories if k.row == defect.row)
    first = next(k for k in c.rows.categories if k.name == category.name)
    for annotation in c.rows.annotations:
        if annotation.category_id == category.id:
            c.set("annotations", annotation.row, "category_id", first.id, defect)
    c.drop("categories", category.row, defect)


def _box_from_mask(c: Correction, defect: Defect) -> None:
    """The box around the mask where there is one; else the annotation goes."""
    mask = c.mask(c.annotations[defect.row])
    around = None if mask is None else extent(_run_lengths(mask), mask.shape[0])
    if around is None:
        c.drop("annotations", defect.row, defect)
    else:
        c.set("annotations", defect.row, "bbox", list(around), defect)


def _swap_corners(c: Correction, defect: Defect) -> None:
    x, y, w, h = c.annotations[defect.row].box
    c.set("annotations", defect.row, "bbox", [min(x, x + w), min(y, y + h), abs(w), abs(h)], defect)


def _cut(c: Correction, defect: Defect) -> None:
    annotation = c.annotations[defect.row]
    image = c.rows.images_by_id[annotation.image_id]
    x, y, w, h = annotation.box
    left, top = max(x, 0.0), max(y, 0.0)
    box = [left, top, min(x + w, image.width) - left, min(y + h, image.height) - top]
    c.set("annotations", defect.row, "bbox", box, defect)
    if annotation.area is not None and not annotation.segmentation:
        c.set("annotations", defect.row, "area", box[2] * box[3], defect)


def _area(c: Correction, defect: Defect) -> None:
    annotation = c.annotations[defect.row]
    mask = c.mask(annotation)
    area = annotation.box[2] * annotation.box[3] if mask is None else float(mask.sum())
    c.set("annotations", defect.row, "area", area, defect)


def _polygon_too_short(c: Correction, defect: Defect) -> None:
    polygons = c.annotations[defect.row].segmentation
    kept = [p for p in polygons if not (isinstance(p, list) and len(p) < 6)]
    if kept:
        c.set("annotations", defect.row, "segmentation", kept, defect)
    else:
        _box_as_mask(c, defect)


def _box_as_mask(c: Correction, defect: Defect) -> None:
    annotation = c.annotations[defect.row]
    if not all(map(math.isfinite, annotation.box)) or min(annotation.box[2:]) <= 0:
        return  # the box goes or changes first
    if annotation.crowd:
        _runs(c, defect)
        return
    x, y, w, h = annotation.box
    c.set("annotations", defect.row, "segmentation", [[x, y, x + w, y, x + w, y + h, x, y + h]], defect)


def _runs(c: Correction, defect: Defect) -> None:
    """Run lengths of the polygons, or of the box."""
    annotation = c.annotations[defect.row]
    image = c.rows.images_by_id[annotation.image_id]
    mask = c.mask(annotation)
    mask = _filled(annotation.box, image) if mask is None else mask
    if mask is None:
        c.drop("annotations", defect.row, defect)
        return
    value = {"size": [image.height, image.width], "counts": _run_lengths(mask).tolist()}
    c.set("annotations", defect.row, "segmentation", value, defect)


def _run_lengths(mask: Mask) -> Runs:
    """Lengths of the runs of False and True in turn, column by column."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], edges, [mask.size])))
    return np.concatenate(([0], runs)) if flat[0] else runs


def _filled(box: Box, image: ImageRow) -> Mask | None:
    if image.width * image.height > 2**26 or not all(map(math.isfinite, box)):
        return None
    x1, y1, x2, y2 = (round(v) for v in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    mask = np.zeros((image.height, image.width), np.bool_)
    mask[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
    return mask


def _crowd_flag(c: Correction, defect: Defect) -> None:
    crowd = c.annotations[defect.row].crowd
    c.set("annotations", defect.row, "iscrowd", int(str(crowd).lower() in ("1", "true", "1.0")), defect)


def _rename(c: Correction, defect: Defect) -> None:
    image = c.images.get(defect.row)
    place = None if image is None else c.rows.place(image)
    if image is None or place is None or not place.parent.is_dir():
        return
    names = [n for n in os.listdir(place.parent) if folded_name(n) == folded_name(place.name)]
    if len(names) == 1:
        name = (Path(image.file_name).parent / names[0]).as_posix()
        c.set("images", image.row, "file_name", name, defect)


def _image_size(c: Correction, defect: Defect) -> None:
    """The file's own size, where all boxes fit into it and no run lengths say otherwise; else the image goes."""
    image = c.images.get(defect.row)
    place = None if image is None else c.rows.place(image)
    if image is None or place is None:
        return
    size = look(Question(place, None, c.max_pixels)).size
    own = [a for a in c.rows.annotations if a.image_id == image.id]
    fits = size is not None and all(
        not isinstance(a.segmentation, dict) and a.box[0] + a.box[2] <= size[0] and a.box[1] + a.box[3] <= size[1]
        for a in own
    )
    if size is None or not fits:
        c.drop_image(image, defect)
    else:
        c.set("images", image.row, "width", size[0], defect)
        c.set("images", image.row, "height", size[1], defect)


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


CORRECTIONS: dict[str, Callable[[Correction, Defect], None]] = {
    "box_layout": write_as_coco,
    "area_of_set": write_areas,
    "segmentations_in_parts": write_polygons,
    "row_malformed": _drop_row,
    "id_kind": _id_kind,
    "image_id_twice": _image_id_twice,
    "annotation_id_twice": _annotation_id_twice,
    "category_id_twice": _category_id_twice,
    "category_name_twice": _category_name_twice,
    "file_name_twice": _file_name_twice,
    "unknown_image": _drop_annotation,
    "unknown_category": _drop_annotation,
    "name_leaves_folder": _drop_image,
    "box_not_finite": _box_from_mask,
    "box_negative": _swap_corners,
    "box_without_area": _box_from_mask,
    "box_outside": _box_from_mask,
    "box_partly_outside": _cut,
    "box_off_by_one": _cut,
    "box_against_mask": _box_from_mask,
    "near_duplicate": _drop_annotation,
    "area_against_mask": _area,
    "polygon_too_short": _polygon_too_short,
    "segmentation_invalid": _box_as_mask,
    "rle_size": _box_as_mask,
    "segmentation_missing": _box_as_mask,
    "crowd_without_rle": _runs,
    "crowd_flag": _crowd_flag,
    "image_missing": _drop_image,
    "image_name_differs": _rename,
    "image_unreadable": _drop_image,
    "image_truncated": _drop_image,
    "image_too_large": _drop_image,
    "image_size": _image_size,
}
"""By code; what is not here is for people to decide."""
