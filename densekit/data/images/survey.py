"""What the headers of a data set's image files say, without decoding one: bits a value, and EXIF orientations."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from densekit import machine
from densekit.data.images.header import ImageHeader, peek
from densekit.errors import DensekitError

LOOKED_AT = 256
"""Files that are looked at, evenly spread over a larger data set: 0.2 ms each from a warm disk."""

Tag = Literal["none", "turned", "stored", "open"]
"""Of an image: no EXIF orientation; annotated as it turns it, or as stored; its annotated size fits both."""


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """What was found.

    Attributes:
        looked_at: number of files.
        deep: those that hold more than 8 bits, in the order of the data set.
        turned: how many were annotated as their EXIF orientation turns them, by their size.
        stored: how many with such a tag were annotated as stored, by their size.
        open: how many with such a tag have an annotated size that fits both.
    """

    looked_at: int = 0
    deep: tuple[Path, ...] = ()
    turned: int = 0
    stored: int = 0
    open: int = 0


def survey(dataset: Any) -> Survey:
    """Look at the headers of a data set's images.

    Args:
        dataset: with ``path(index)``, as all that read image files have (others have nothing to look at), and
            ``annotated_size(index)``, where it has annotations that lie in pixels.
    """
    if not hasattr(dataset, "path"):
        return Survey()
    with ThreadPoolExecutor(min(8, machine.cores())) as pool:
        found = list(pool.map(lambda index: _look(dataset, index), _spread(len(dataset))))
    tags = [tag for _, tag in found]
    deep = tuple(path for path, _ in found if path is not None)
    return Survey(len(found), deep, *(tags.count(tag) for tag in ("turned", "stored", "open")))


def _spread(count: int) -> list[int]:
    return [int(i) for i in np.linspace(0, count - 1, min(count, LOOKED_AT)).round()]


def _look(dataset: Any, index: int) -> tuple[Path | None, Tag]:
    """The file at an index if it is deep, and what its EXIF tag and its annotated size say of one another."""
    try:
        path: Path = dataset.path(index)
        header = peek(path)
        if header is None:
            return None, "none"
        return path if header.deep else None, _tag(header, dataset, index)
    except DensekitError:  # told when the image is read
        return None, "none"


def _tag(header: ImageHeader, dataset: Any, index: int) -> Tag:
    if header.orientation == 1 or not hasattr(dataset, "annotated_size"):
        return "none"
    size = dataset.annotated_size(index)
    if header.size == header.turned_size:
        return "open"
    return "turned" if size == header.turned_size else "stored" if size == header.size else "none"
