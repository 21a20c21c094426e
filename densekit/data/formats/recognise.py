"""What a folder of images and labels is: each format looks at names and at heads of files."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from densekit.data.formats import csv, labelme, voc
from densekit.data.formats.coco import layouts
from densekit.data.formats.labels.listing import images_below
from densekit.data.formats.labels.records import Found
from densekit.data.formats.yolo import yolo
from densekit.types import DensekitError, nearest

RECOGNISERS: dict[str, Callable[[Path], Found | None]] = {
    "coco": layouts.recognise,
    "yolo": yolo.recognise,
    "voc": voc.recognise,
    "labelme": labelme.recognise,
    "csv": csv.recognise,
}
"""By the name of the data set; the first that recognises a folder reads it."""

_LABELS = frozenset({".txt", ".xml", ".json", ".csv"})


def recognise(path: Path, only: str | None = None) -> Found:
    """The data set at a path.

    Args:
        path: a folder; or a COCO json, a ``data.yaml`` or a table of boxes.
        only: name of a format; None: the first that fits.

    Raises:
        DensekitError: it is no data set that can be read; says which files were looked at.
    """
    if only is not None and only not in RECOGNISERS:
        raise DensekitError(f"--from: there is no format {only!r}; {nearest(only, RECOGNISERS)}")
    if path.is_file():
        return _of_file(path)
    if not path.is_dir():
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        raise DensekitError(f"{path}: there is no such file or folder; {nearest(path.name, beside)}")
    names = [only] if only is not None else list(RECOGNISERS)
    found = [one for name in names if (one := RECOGNISERS[name](path)) is not None]
    if not found:
        raise DensekitError(_unknown(path, only))
    others = [one.format for one in found[1:]]
    if not others:
        return found[0]
    note = f"{path}: there are labels of {', '.join(others)} too, which are left aside; --from {others[0]} reads them"
    return dataclasses.replace(found[0], notes=(*found[0].notes, note))


def _of_file(path: Path) -> Found:
    suffix = path.suffix.lower()
    if suffix == ".json" and layouts.is_coco(path):
        return layouts.of_file(path)
    if suffix == ".csv":
        return Found("csv", {"": {"boxes": path}})
    if suffix in (".yaml", ".yml") and (found := yolo.recognise(path)) is not None:
        return found
    raise DensekitError(f"{path}: neither a COCO json, a data.yaml of YOLO nor a table of boxes; give its folder")


def unread_labels(folder: Path) -> list[str]:
    """Names of files below a folder that look like labels: by their endings, and by names of images or of folders."""
    images = {os.path.splitext(name)[0].rpartition("/")[2] for name in images_below(folder)}
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in names:
            stem, ending = os.path.splitext(name)
            called = os.path.basename(place).lower() in ("labels", "annotations", "xmls")
            if ending.lower() in _LABELS and not name.startswith(".") and (called or stem in images):
                found.append(os.path.relpath(os.path.join(place, name), folder))
    return sorted(found)


def _unknown(folder: Path, only: str | None) -> str:
    formats = only or ", ".join(RECOGNISERS)
    images, labels = len(images_below(folder)), unread_labels(folder)
    counts = Counter(os.path.splitext(name)[1].lower() for name in labels)
    what = ", ".join(f"{count} {ending}" for ending, count in counts.most_common()) or "none"
    first = f", such as {labels[0]}" if labels else ""
    return (
        f"{folder}: {images} images, but no labels of {formats} (files that may be labels: {what}{first}); give the "
        f"folder that has both images and labels"
    )
