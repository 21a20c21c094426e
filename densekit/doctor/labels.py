"""Labels of YOLO, Pascal VOC, LabelMe and tables, examined as the COCO json that they become."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densekit.data.formats.coco.write import content_of
from densekit.data.formats.labels.columns import BadLabels
from densekit.data.formats.labels.records import Found
from densekit.data.formats.recognise import RECOGNISERS, unread_labels
from densekit.data.formats.yolo import yolo
from densekit.data.images.read import MAX_PIXELS
from densekit.doctor.coco.rows import rows_of
from densekit.doctor.defects import Defect
from densekit.doctor.split import Split, split_of_rows
from densekit.errors import DensekitError
from densekit.registry import DATASETS

FORMATS = tuple(name for name in RECOGNISERS if name != "coco")
"""Data sets that are examined here, by name."""

_SHOWN = 3  # files that nobody read


def label_splits(path: Path) -> tuple[list[Split], list[str]]:
    """The splits of a folder, a ``data.yaml`` or a table, and lines on what was left aside; none of any other file."""
    if path.suffix.lower() == ".csv" and path.is_file():
        return _splits(Found("csv", {"": {"boxes": path}}))
    if path.is_file():
        found = yolo.recognise(path)
        return _splits(found) if found is not None else ([], [])
    for name in FORMATS:
        found = RECOGNISERS[name](path)
        if found is not None:
            return _splits(found)
    return [], []


def _splits(found: Found) -> tuple[list[Split], list[str]]:
    splits, notes = [], list(found.notes)
    for name, options in found.splits.items():
        split, told = label_split(name, found.format, options)
        splits.append(split)
        notes += [line for line in told if line not in notes]
    return splits, notes


def label_split(
    name: str, kind: str, options: Mapping[str, Any], max_pixels: int = MAX_PIXELS
) -> tuple[Split, list[str]]:
    """A split in a format of ``FORMATS``, and lines on what training reads although it is odd, or leaves aside.

    Raises:
        DensekitError: the options name nothing that can be read.
    """
    problems: tuple[str, ...] = ()
    try:
        built = DATASETS.build(kind, {**options, "on_bad_box": "error"}, path=f"data.{name}", max_pixels=max_pixels)
        file, folder = built.file, built.folder
    except BadLabels as error:
        file, folder, problems = error.file, error.folder, error.problems
    split = split_of_rows(name, rows_of(content_of(file), file.path), folder, max_pixels)
    split.is_json = False
    split.defects += [Defect("label_unreadable", str(file.path), line, source=str(file.path)) for line in problems]
    return split, list(file.notes)


def unread(folder: Path) -> list[Defect]:
    """Labels below a folder of images that no format reads."""
    try:
        names = unread_labels(folder)
    except OSError as error:
        raise DensekitError(f"{folder}: can't be looked at ({error.strerror}); correct the path") from None
    if not names:
        return []
    some = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    message = f"{len(names)} files look like labels and are of no format that is read: {some}"
    return [Defect("labels_unread", str(folder), message, source=str(folder))]
