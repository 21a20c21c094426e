"""What the headers of a data set's image files say, without decoding one: which of them hold more than 8 bits."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from densekit import machine
from densekit.data.image_header import peek
from densekit.errors import DensekitError

LOOKED_AT = 512
"""Files that are looked at, evenly spread over a larger data set: 50 milliseconds from a warm disk."""


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """What was found.

    Attributes:
        looked_at: number of files.
        deep: those that hold more than 8 bits, in the order of the data set.
    """

    looked_at: int
    deep: tuple[Path, ...]


def survey(dataset: Any) -> Survey:
    """Look at the headers of a data set's images.

    Args:
        dataset: with ``path(index)``, as all that read image files have; others have nothing to look at.
    """
    if not hasattr(dataset, "path"):
        return Survey(0, ())
    with ThreadPoolExecutor(min(8, machine.cores())) as pool:
        found = list(pool.map(lambda index: _look(dataset, index), _spread(len(dataset))))
    return Survey(len(found), tuple(path for path in found if path is not None))


def _spread(count: int) -> list[int]:
    return [int(i) for i in np.linspace(0, count - 1, min(count, LOOKED_AT)).round()]


def _look(dataset: Any, index: int) -> Path | None:
    """The file at an index if it is deep."""
    try:
        path: Path = dataset.path(index)
    except DensekitError:  # told when the image is read
        return None
    header = peek(path)
    return path if header is not None and header.deep else None
