"""What a correction works on: the content of a file, its rows, and the log of what is changed."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from densekit.doctor.coco.rows import AnnotationRow, CocoRows, ImageRow, grouped
from densekit.doctor.coco.segmentations import Mask, drawn
from densekit.doctor.defects import Defect


class Correction:
    """One round of changes; rows are dropped at its end, so that positions stay right during the round.

    Args:
        content: of the file; changed in place.
        rows: the same, read.
        defects: that are to be corrected.
        max_pixels: a larger image is not looked at.

    Attributes:
        log: one line a change.
        removed: how many rows went, by array and code.
        file_sizes: (width, height) of files that were looked at, by row of their image.
        resized: whether images were resized after they were annotated; None: not judged yet.
    """

    def __init__(self, content: dict[str, Any], rows: CocoRows, defects: Sequence[Defect], max_pixels: int) -> None:
        self.content, self.rows, self.defects, self.max_pixels = content, rows, defects, max_pixels
        self.log: list[str] = []
        self.removed: Counter[tuple[str, str]] = Counter()
        self.file_sizes: dict[int, tuple[int, int] | None] = {}
        self.resized: bool | None = None
        self.dropped: dict[str, set[int]] = {"images": set(), "annotations": set(), "categories": set()}
        self.images = {image.row: image for image in rows.images}
        self.annotations = {annotation.row: annotation for annotation in rows.annotations}
        self.categories = {category.row: category for category in rows.categories}
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
            self.removed[key, defect.code] += 1
            self.told(defect, f"{key}[{row}] removed")

    def drop_image(self, image: ImageRow, defect: Defect) -> None:
        """Remove an image and its annotations."""
        self.drop("images", image.row, defect)
        for annotation in self.own(image.id):
            self.drop("annotations", annotation.row, defect)

    def set(self, key: str, row: int, name: str, value: Any, defect: Defect) -> None:
        """Change one value of a row; what it is already is no change."""
        entry = self.entry(key, row)
        if name in entry and type(entry[name]) is type(value) and entry[name] == value:
            return
        old = repr(entry.get(name))
        entry[name] = value
        self.told(defect, f"{key}[{row}].{name}: {short(old)} -> {short(repr(value))}")

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

    def own(self, image_id: int | str) -> list[AnnotationRow]:
        """The annotations of an image."""
        return self._by_image.get(image_id, [])

    @functools.cached_property
    def _by_image(self) -> dict[int | str, list[AnnotationRow]]:
        return grouped(self.rows.annotations)

    @functools.cached_property
    def first_of_file(self) -> dict[str, ImageRow]:
        """The first image of each file name."""
        return {image.file_name: image for image in reversed(self.rows.images)}

    @functools.cached_property
    def first_of_id(self) -> dict[int | str, AnnotationRow]:
        """The first annotation of each id."""
        return {annotation.id: annotation for annotation in reversed(self.rows.annotations)}

    @functools.cached_property
    def images_by_name(self) -> dict[str, ImageRow | None]:
        """Images by the name of their file, with or without folders and ending; None where two share one."""
        found: dict[str, ImageRow | None] = {}
        for image in self.rows.images:
            own = image.file_name.replace("\\", "/").rpartition("/")[2]
            for name in {image.file_name, own, own.rpartition(".")[0] or own}:
                found[name] = None if name in found else image
        return found

    def mask(self, annotation: AnnotationRow) -> Mask | None:
        """The mask of an annotation, where it can be drawn."""
        image = self.rows.images_by_id.get(annotation.image_id)
        return None if image is None else drawn(annotation.segmentation, image.width, image.height)


def short(text: str) -> str:
    """The start of a text for people."""
    return text if len(text) <= 100 else text[:97] + "..."
