"""What a folder of images and labels is: each format looks at names and at heads of files.

Labels of objects come first, then masks, then a folder a class: the first two may look like folders of classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from densekit.data.formats import csv, image_folder, labelme, voc
from densekit.data.formats.coco import layouts
from densekit.data.formats.labels.listing import images_below
from densekit.data.formats.labels.records import Found
from densekit.data.formats.masks import layouts as masks
from densekit.data.formats.yolo import yolo
from densekit.types import DensekitError, Task, nearest

RECOGNISERS: dict[str, Callable[[Path], Found | None]] = {
    "coco": layouts.recognise,
    "yolo": yolo.recognise,
    "voc": voc.recognise,
    "labelme": labelme.recognise,
    "csv": csv.recognise,
}
"""By the name of the data set; the first that recognises a folder reads it."""

FOLDERS: dict[str, Callable[[Path], Found | None]] = {"masks": masks.recognise, "image_folder": image_folder.recognise}
"""Data sets without boxes, likewise."""

POLYGONS = ("coco", "yolo", "labelme")
"""Formats of boxes that may have outlines too, which can be drawn into masks."""

_NO_CLASSES = frozenset({"images", "imgs", "jpegimages", "labels", "annotations", "masks"})

_OF_TASK: dict[Task, tuple[str, ...]] = {
    "detection": tuple(RECOGNISERS),
    "segmentation": ("masks", *POLYGONS),
    "classification": ("image_folder",),
}

_LABELS = frozenset({".txt", ".xml", ".json", ".csv"})


def recognise(path: Path, only: str | None = None, task: Task | None = None) -> Found:
    """The data set at a path.

    Args:
        path: a folder; or a COCO json, a ``data.yaml`` or a table of boxes.
        only: name of a format; None: the first that fits.
        task: that the labels must serve; None: the first that they do.

    Raises:
        DensekitError: it is no data set that can be read; says which files were looked at.
    """
    every = {**RECOGNISERS, **FOLDERS}
    if only is not None and only not in every:
        raise DensekitError(f"--from: there is no format {only!r}; {nearest(only, every)}")
    if only is not None and task is not None and only not in _OF_TASK[task]:
        raise DensekitError(f"--task {task}: {only} has no labels for it; {', '.join(_OF_TASK[task])} may have")
    if path.is_file():
        return _for_task(_of_file(path), path, task)
    if not path.is_dir():
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        raise DensekitError(f"{path}: there is no such file or folder; {nearest(path.name, beside)}")
    names = [only] if only is not None else list(every if task is None else _OF_TASK[task])
    found = next((one for name in names if (one := every[name](path)) is not None), None)
    if found is None and (inner := _only_folder(path)) is not None:
        with contextlib.suppress(DensekitError):
            return recognise(inner, only, task)
    if found is None or (task is None and only is None and found.format == "image_folder" and not _are_classes(path)):
        raise DensekitError(_unknown(path, only, task))
    rest = names[names.index(found.format) + 1 :] if found.format not in FOLDERS else []
    notes = [*found.notes, *_others(path, [name for name in rest if name != "image_folder"])]
    return dataclasses.replace(found, notes=tuple(notes), task=task or found.task)


def _only_folder(path: Path) -> Path | None:
    """The one folder inside, as archives unpack, where there are no files beside it but texts."""
    entries = [entry for entry in os.scandir(path) if not entry.name.startswith((".", "__MACOSX"))]
    places = [Path(entry.path) for entry in entries if entry.is_dir()]
    return places[0] if len(places) == 1 and not images_below(path, deep=False) else None


def _are_classes(folder: Path) -> bool:
    """Whether the folders inside may be classes: there are no labels that nobody read, and none is called images."""
    names = {name.lower() for _, folders, _ in os.walk(folder) for name in folders}
    return not names & _NO_CLASSES and not unread_labels(folder)


def _others(path: Path, names: Sequence[str]) -> list[str]:
    """A line on what else could be read, and how."""
    found = []
    for name in names:
        with contextlib.suppress(DensekitError):  # is left aside, whatever is wrong with it
            if ({**RECOGNISERS, **FOLDERS})[name](path) is not None:
                found.append(name)
    if not found:
        return []
    how = "--task segmentation" if found[0] == "masks" else f"--from {found[0]}"
    what = " and ".join("masks" if name == "masks" else f"labels of {name}" for name in found)
    return [f"{path}: there are {what} too, which are left aside; {how} reads them"]


def _for_task(found: Found, path: Path, task: Task | None) -> Found:
    """What a file was recognised as, where it may serve the task."""
    if task is not None and found.format not in _OF_TASK[task]:
        raise DensekitError(f"{path}: labels of {found.format}, which are for {found.task}, not for {task}")
    return dataclasses.replace(found, task=task or found.task)


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


def _unknown(folder: Path, only: str | None, task: Task | None) -> str:
    images, labels = len(images_below(folder)), unread_labels(folder)
    if task is not None and only is None:
        with contextlib.suppress(DensekitError):
            found = recognise(folder)
            return (
                f"{folder}: {found.format} was recognised, which is for {found.task}; there is nothing to learn "
                f"{task} from (it needs {_NEEDS[task]})"
            )
    formats = only or ", ".join(_OF_TASK[task] if task else (*RECOGNISERS, *FOLDERS))
    counts = Counter(os.path.splitext(name)[1].lower() for name in labels)
    what = ", ".join(f"{count} {ending}" for ending, count in counts.most_common()) or "none"
    first = f", such as {labels[0]}" if labels else ""
    return (
        f"{folder}: {images} images, but no labels of {formats} (files that may be labels: {what}{first}); give the "
        f"folder that has both images and labels"
    )


_NEEDS: dict[Task, str] = {
    "detection": "boxes or outlines",
    "segmentation": "masks, or outlines of COCO, YOLO or LabelMe",
    "classification": "a folder of images a class",
}
