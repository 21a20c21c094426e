"""Several COCO jsons as one data set: those of several annotators, tasks or dates, over one image folder.

An image is told by its file name, a category by its name; ids that mean different things in different files are given
anew.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from densekit.data.column_store import Strings
from densekit.data.formats.coco.columns import Id
from densekit.data.formats.coco.file import CocoFile, only_classes, open_coco
from densekit.types import Classes, DensekitError

Indices = npt.NDArray[np.int64]


def open_annotations(
    paths: Path | Sequence[Path],
    *,
    on_bad_box: Literal["error", "drop"] = "error",
    classes: Sequence[str] | None = None,
) -> CocoFile:
    """Open one json, or several as one.

    Args:
        paths: of the jsons.
        on_bad_box: see ``open_coco``.
        classes: see ``open_coco``.

    Raises:
        DensekitError: as ``open_coco``; no path, one of them twice, or files that give an image different sizes.
    """
    if isinstance(paths, Path):
        return open_coco(paths, on_bad_box=on_bad_box, classes=classes)
    if not paths or len({os.path.realpath(path) for path in paths}) < len(paths):
        raise DensekitError(f"annotations: {[str(p) for p in paths]} must be one json or several different ones")
    file = merged([open_coco(path, on_bad_box=on_bad_box) for path in paths])
    return file if classes is None else only_classes(file, classes)


def merged(files: Sequence[CocoFile]) -> CocoFile:
    """One file of several: images in the order of the files, each once, with the annotations of all files."""
    if len(files) == 1:
        return files[0]
    classes, class_note = _classes(files)
    places, firsts = _images(files)
    ids, id_note = _image_ids(files, firsts)
    owners = np.concatenate([place[file.owners] for file, place in zip(files, places)])
    order = np.argsort(owners, kind="stable")
    starts = _starts(files)
    segmentations = [np.where(f.segmentations < 0, -1, f.segmentations + s) for f, s in zip(files, starts)]
    sizes = np.concatenate([file.sizes for file in files])
    rows = _rows(files, firsts)
    return CocoFile(
        path=Path(os.path.commonpath([os.path.abspath(file.path.parent) for file in files])),
        classes=classes,
        image_ids=ids,
        file_names=Strings.pack([files[f].file_names[i] for f, i in firsts]),
        sizes=sizes[rows],
        first=np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=len(firsts))))),
        annotation_ids=_annotation_ids(files, order),
        labels=np.concatenate([_labels(file, classes) for file in files])[order],
        boxes=np.concatenate([file.boxes for file in files])[order],
        areas=np.concatenate([file.areas for file in files])[order],
        crowd=np.concatenate([file.crowd for file in files])[order],
        segmentations=np.concatenate(segmentations)[order],
        notes=(*(note for file in files for note in file.notes), *class_note, *id_note),
        dropped=tuple(line for file in files for line in file.dropped),
        parts=tuple((file.path, start) for file, start in zip(files, starts)),
    )


def _starts(files: Sequence[CocoFile]) -> list[int]:
    """Where each file's text would start if they stood one behind the other: tells positions in them apart."""
    return [0, *itertools.accumulate(os.path.getsize(file.path) for file in files[:-1])]


def _images(files: Sequence[CocoFile]) -> tuple[list[Indices], list[tuple[int, int]]]:
    """For each file the merged position of each image; and of each merged image its first (file, position)."""
    known: dict[str, int] = {}
    places, firsts = [], list[tuple[int, int]]()
    for f, file in enumerate(files):
        place = []
        for i, name in enumerate(file.file_names):
            at = known.setdefault(name, len(known))
            if at == len(firsts):
                firsts.append((f, i))
            place.append(at)
            _check_size(files, firsts[at], (f, i))
        places.append(np.array(place, np.int64))
    return places, firsts


def _check_size(files: Sequence[CocoFile], first: tuple[int, int], other: tuple[int, int]) -> None:
    (f, i), (g, j) = first, other
    if f != g and (files[f].sizes[i] != files[g].sizes[j]).any():
        sizes = ["{1} x {0}".format(*files[a].sizes[b]) for a, b in (first, other)]
        raise DensekitError(
            f"{files[g].path}: image {files[g].file_names[j]!r} is {sizes[1]}, in {files[f].path} it is {sizes[0]} "
            f"(width x height); one data set needs one size of an image, correct one of the files"
        )


def _rows(files: Sequence[CocoFile], firsts: Sequence[tuple[int, int]]) -> Indices:
    starts = [0, *itertools.accumulate(len(file) for file in files[:-1])]
    return np.array([starts[f] + i for f, i in firsts], np.int64)


def _image_ids(
    files: Sequence[CocoFile], firsts: Sequence[tuple[int, int]]
) -> tuple[npt.NDArray[np.int64] | Strings, list[str]]:
    """The files' own ids; where two images share one, the name of the file is put before each."""
    ids: list[Id] = [files[f].image_id(i) for f, i in firsts]
    texts = any(isinstance(i, str) for i in ids)
    if len(set(map(str, ids))) == len(ids):
        return (Strings.pack([str(i) for i in ids]) if texts else np.array(ids, np.int64)), []
    labels = _labels_of_paths([file.path for file in files])
    told_apart = [f"{labels[f]}:{own}" for (f, _), own in zip(firsts, ids)]
    twice = next(i for i, count in Counter(map(str, ids)).items() if count > 1)
    return Strings.pack(told_apart), [
        f"{files[0].path.parent}: several of the {len(files)} jsons use the same image ids, such as {twice}; they are "
        f"told apart as {told_apart[0]!r} and so on"
    ]


def _labels_of_paths(paths: Sequence[Path]) -> list[str]:
    """Short names of files: as much of the end of the paths as tells them apart."""
    parts = [path.with_suffix("").parts for path in map(Path.absolute, paths)]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(p[-length:]) for p in parts]
        if len(set(labels)) == len(labels):
            break
    return labels


def _annotation_ids(files: Sequence[CocoFile], order: Indices) -> npt.NDArray[np.int64] | Strings:
    columns = [file.annotation_ids for file in files]
    if all(isinstance(column, np.ndarray) for column in columns):
        return np.concatenate(columns)[order]
    texts = [str(i) for column in columns for i in column]
    return Strings.pack([texts[i] for i in order.tolist()])


def _labels(file: CocoFile, classes: Classes) -> Indices:
    table = np.array([classes.names.index(name) for name in file.classes.names], np.int64)
    return table[file.labels]


def _classes(files: Sequence[CocoFile]) -> tuple[Classes, list[str]]:
    """All names by id; a name has the id of the first file that has it, or a free one where that is another's."""
    ids: dict[str, int] = {}
    changed = []
    for file in files:
        for name, own in zip(file.classes.names, file.classes.ids):
            if name not in ids:
                ids[name] = own if own not in ids.values() else max(ids.values()) + 1
            if ids[name] != own:
                changed.append(f"{name!r} {own} -> {ids[name]}")
    ordered = sorted(ids, key=lambda name: ids[name])
    notes = [
        f"{files[0].path.parent}: the {len(files)} jsons number their categories in different ways; they are matched "
        f"by name: {', '.join(changed[:5])}"
    ]
    return Classes(tuple(ordered), tuple(ids[name] for name in ordered)), notes if changed else []
