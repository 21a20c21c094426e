"""From label files to the columns of a ``CocoFile``, so that all that reads a COCO json reads any format."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from densekit.data.column_store import Strings, cache_folder
from densekit.data.formats.coco.file import CocoFile, only_classes, read_store, with_good_boxes, write_store
from densekit.data.formats.labels.listing import images_below
from densekit.data.formats.labels.reading import Columns, file_sizes, read_columns
from densekit.data.formats.labels.records import Layout
from densekit.data.images.names import other_spellings, spelling_note
from densekit.data.images.read import leaves_folder
from densekit.types import Classes, DensekitError

CACHE_FROM = 2000
"""Label files from which on their columns are cached; fewer are read faster than a cache is kept tidy."""

_NAMED = 10  # problems that are told


class BadLabels(DensekitError):
    """Labels that cannot be learned from.

    Attributes:
        problems: one line each; boxes that break a rule are in the file.
        file: what could be read.
        folder: of the images.
    """

    def __init__(self, message: str, problems: Sequence[str], file: CocoFile, folder: Path) -> None:
        super().__init__(message)
        self.problems, self.file, self.folder = tuple(problems), file, folder


def open_layout(
    layout: Layout,
    *,
    on_bad_box: Literal["error", "drop"] = "error",
    classes: Sequence[str] | None = None,
) -> CocoFile:
    """Read the labels of a layout.

    The ids of images are their file names; the id of an annotation says where it is written.

    Args:
        layout: files to read; large sets leave their columns in the cache folder.
        on_bad_box: see ``open_coco``.
        classes: names to use, in label order; None: all by id. Where the format declares no classes, these are all
            there are: objects of others are left out, which is told.

    Raises:
        BadLabels: a line, a box or an image that breaks a rule; names file, line, value, rule and remedy.
    """
    store = _store(layout)
    file = None
    if store is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent or damaged: read anew
            file = read_store(layout.source, store)
    if file is None:
        file, problems = _read(layout)
        if problems:
            raise BadLabels(_summary(problems), problems, file, layout.root)
        if store is not None:
            with contextlib.suppress(OSError):  # no room or no right to write: work without a cache
                write_store(file, store)
                file = read_store(layout.source, store)
    try:
        file = with_good_boxes(file, on_bad_box)
    except DensekitError as error:
        raise BadLabels(str(error), (), file, layout.root) from None
    return file if classes is None else _chosen(file, classes, layout.names is not None)


def _summary(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    return f"{len(problems)} problems: " + "; ".join(problems[:_NAMED]) + more


def _store(layout: Layout) -> Path | None:
    """Where the columns of a large set are kept, by size and time of its files; None: nowhere."""
    folder = cache_folder()
    if folder is None or len(layout.files) < CACHE_FROM:
        return None
    digest = hashlib.blake2b(repr((layout.source.resolve(), layout.root, layout.names)).encode())
    digest.update(repr((layout.read, layout.relative)).encode())
    root = str(layout.root)
    images = (os.path.join(root, name) for name in images_below(layout.root))
    lines = []
    try:
        for path in itertools.chain(map(str, layout.files), map(str, layout.beside), images):
            status = os.stat(path)
            lines.append(f"{path}|{status.st_size}|{status.st_mtime_ns}\n")
    except OSError:
        return None
    digest.update("".join(lines).encode("utf-8", "surrogateescape"))
    return folder / "labels" / f"{layout.source.stem}-{digest.hexdigest()[:24]}.safetensors"


def _read(layout: Layout) -> tuple[CocoFile, list[str]]:
    """The columns of all images that can be used, and lines on what cannot."""
    columns = read_columns(layout)
    notes = [*layout.notes, *(f"{layout.source}: {count} {words}" for words, count in columns.aside.items())]
    names = columns.images
    spelled = other_spellings(layout.root, names, outside=True)
    if spelled:
        notes.append(spelling_note(layout.source, names, spelled))
        names = [spelled.get(i, name) for i, name in enumerate(names)]
    sizes, problems, size_notes = _sizes(layout, columns, names)
    usable = np.all(sizes > 0, axis=1)
    _check_once([name for name, use in zip(names, usable) if use], layout.source)
    file = _as_file(layout, columns, names, sizes, usable)
    return dataclasses.replace(file, notes=(*notes, *size_notes)), [*columns.problems, *problems]


def _sizes(
    layout: Layout, columns: Columns, names: Sequence[str]
) -> tuple[npt.NDArray[np.int64], list[str], list[str]]:
    """[N, 2] (height, width) of each image, 0 where it cannot be used; lines on these, and notes."""
    inner = [name if not leaves_folder(name) else "\0" for name in names]
    seen = file_sizes(layout.root, inner)
    sizes, problems, other = columns.sizes.copy(), list[str](), list[str]()
    starts = np.concatenate(([0], np.cumsum(columns.counts)))
    for i, found in enumerate(seen):
        declared = (int(sizes[i, 0]), int(sizes[i, 1]))
        if found is None:
            problems.append(_no_image(layout, names[i]))
            sizes[i] = 0
        elif min(declared) < 1:
            sizes[i] = found[1]
        elif declared not in found:
            boxes = columns.boxes[starts[i] : starts[i + 1]]
            size = f"{found[1][1]} x {found[1][0]}"
            if (boxes[:, :2] + boxes[:, 2:] > np.array(found[1])[::-1] + 1).any():
                problems.append(
                    f"{layout.source}: the labels of {names[i]!r} are for {declared[1]} x {declared[0]} pixels and "
                    f"reach beyond the image, which is {size} (width x height); put the image back that was labelled"
                )
            other.append(f"{names[i]!r} is {size}, its labels say {declared[1]} x {declared[0]}")
            sizes[i] = found[1]
    if other:
        other = [
            f"{layout.source}: {len(other)} images are not of the size that their labels say: {other[0]}; the images' "
            f"own sizes are used"
        ]
    return sizes, problems, other


def _no_image(layout: Layout, name: str) -> str:
    path = layout.root / name
    if not leaves_folder(name) and path.is_file():
        return f"{path}: not an image that can be read; convert it to PNG or JPEG, or remove it and its labels"
    return f"{layout.source}: there is no image {name!r} in {layout.root}; add it, or remove its labels"


def _check_once(names: Sequence[str], source: Path) -> None:
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DensekitError(f"{source}: image {twice!r} has two label files; keep one of them")


def _as_file(
    layout: Layout,
    columns: Columns,
    names: Sequence[str],
    sizes: npt.NDArray[np.int64],
    usable: npt.NDArray[np.bool_],
) -> CocoFile:
    owners = np.repeat(np.arange(len(names)), columns.counts)
    objects = usable[owners]
    kept = np.flatnonzero(objects)
    classes = _classes(layout, columns.names)
    label = {name: i for i, name in enumerate(classes.names)}
    boxes, areas, polygons = columns.boxes, columns.areas, columns.polygons
    if layout.relative:
        scale = sizes[owners][:, ::-1].astype(np.float64)
        boxes, areas = boxes * np.concatenate((scale, scale), 1), areas * scale.prod(1)
        polygons = [_scaled(text, *by) if text else "" for text, by in zip(polygons, scale.tolist())]
    given = [i for i in kept.tolist() if polygons[i]]
    positions = np.full(len(polygons), -1, np.int64)
    positions[given] = np.arange(len(given))
    images = Strings.pack([name for name, use in zip(names, usable) if use])
    return CocoFile(
        path=layout.source,
        classes=classes,
        image_ids=images,
        file_names=images,
        sizes=sizes[usable],
        first=np.concatenate(([0], np.cumsum(columns.counts[usable]))),
        annotation_ids=Strings.pack([columns.places[i] for i in kept.tolist()]),
        labels=np.array([label[name] for name in columns.names], np.int64)[kept],
        boxes=boxes[kept],
        areas=areas[kept],
        crowd=columns.crowd[kept],
        segmentations=positions[kept],
        polygons=Strings.pack([polygons[i] for i in given]),
    )


def _scaled(text: str, width: float, height: float) -> str:
    """Polygons in parts of the image, as JSON, in pixels."""
    polygons = [[v * (height if i % 2 else width) for i, v in enumerate(p)] for p in json.loads(text)]
    return json.dumps(polygons)


def _classes(layout: Layout, occurring: Iterable[str]) -> Classes:
    """Those that are declared; else those that occur: numbers are their own ids, names are counted from 1."""
    if layout.names is not None:
        return Classes.named_in(layout.source, layout.names.values(), layout.names.keys())
    return classes_of(occurring)


def classes_of(occurring: Iterable[str]) -> Classes:
    """Classes of a format that declares none, by the names that occur in it."""
    names = set(occurring)
    if are_numbers(names):
        ids = sorted(map(int, names))
        return Classes(tuple(map(str, ids)), tuple(ids))
    return Classes(tuple(sorted(names)), tuple(range(1, len(names) + 1)))


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all names are whole numbers from 0, which then are their own ids."""
    return all(name.isascii() and name.isdecimal() and str(int(name)) == name for name in names)


def _chosen(file: CocoFile, names: Sequence[str], declared: bool) -> CocoFile:
    if declared:
        return only_classes(file, names)
    known: Mapping[str, int] = dict(zip(file.classes.names, range(len(file.classes))))
    ids = map(int, names) if are_numbers(names) else range(1, len(names) + 1)
    all_of_them = Classes.named_in("classes", names, ids)
    others = [name for name in file.classes.names if name not in names]
    wanted = np.isin(file.labels, [known[name] for name in names if name in known])
    table = np.array([names.index(name) if name in names else -1 for name in file.classes.names], np.int64)
    kept = file.keep(wanted)
    notes = file.notes
    if others:
        counts = np.bincount(file.labels, minlength=len(file.classes))
        told = ", ".join(f"{name!r} ({counts[known[name]]})" for name in others[:5])
        notes = (*notes, f"{file.path}: objects of classes that 'classes' does not name are left out: {told}")
    return dataclasses.replace(kept, classes=all_of_them, labels=table[kept.labels], notes=notes)
