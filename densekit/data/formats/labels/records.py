"""The common form of labels: one record an image, whatever program wrote them.

A format is a file beside this folder that turns its own files into records (``Layout``); the rest, from records to the
columns of a ``CocoFile``, is the same for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from densekit.types import Task

Box = tuple[float, float, float, float]
"""(x, y, width, height), as in COCO; in pixels, or in parts of the image where the layout is ``relative``."""

Size = tuple[int, int]
"""(height, width)."""


@dataclasses.dataclass(slots=True)
class LabelledObject:
    """One object.

    Attributes:
        name: of its class.
        box: around it.
        place: where it is written, such as ``labels/a.txt:3``; the id of its annotation.
        crowd: neither learned nor counted as missed: COCO's crowds, Pascal VOC's difficult objects.
        polygons: flat lists x1, y1, x2, ..., in the units of the box; None: it has a box alone.
    """

    name: str
    box: Box
    place: str
    crowd: bool = False
    polygons: list[list[float]] | None = None


@dataclasses.dataclass(slots=True)
class Record:
    """The labels of one image.

    Attributes:
        image: its file as the labels spell it, relative to the layout's root.
        objects: in the order of the file.
        size: that the labels give; None: the image file's own.
        aside: a phrase for each thing that is not learned from, such as ``lines are left aside``.
        problems: one line for each thing that cannot be read: file, line, value, rule and remedy.
    """

    image: str
    objects: list[LabelledObject] = dataclasses.field(default_factory=list)
    size: Size | None = None
    aside: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A data set on disk that is about to be read.

    Attributes:
        source: what the user named: a folder or a file, for messages.
        root: folder that images are relative to.
        files: each is read by itself: label files, or images whose label file follows from their name.
        read: the records of one of the files; called in other processes where there are many.
        names: of the classes by id, where the format declares them; else they are those that occur.
        relative: whether coordinates are parts of the image's width and height.
        notes: one line for each thing that was found and is not used, or used although it is odd.
        beside: other files that are read with these, whose change matters too.
    """

    source: Path
    root: Path
    files: Sequence[Path]
    read: Callable[[Path], list[Record]]
    names: Mapping[int, str] | None = None
    relative: bool = False
    notes: tuple[str, ...] = ()
    beside: Sequence[Path] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A data set that a folder was recognised as.

    Attributes:
        format: registered name of the data set.
        splits: options of the data set for each split; the one split of a folder without any is called ``""``.
        notes: one line for each thing that lies in the folder and is left aside.
        task: that it is read for.
    """

    format: str
    splits: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()
    task: Task = "detection"
