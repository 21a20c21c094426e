"""Files of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from densekit.data.images.files import Listing, count_others
from densekit.data.images.read import IMAGE_SUFFIXES
from densekit.doctor.defects import Defect


def list_files(folder: Path, endings: frozenset[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Files below a folder with such endings, sorted; hidden ones and links out of it are left out."""
    return [path for path in _visible(folder) if path.suffix.lower() in endings]


def left_out_files(folder: Path) -> list[Defect]:
    """A note on the files below a folder of images that are none by their ending."""
    note = Listing([], count_others(_visible(folder))).note()
    return [] if note is None else [Defect("files_left_out", str(folder), note)]


def _visible(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [Path(place, n) for n in names if not n.startswith(".")]
    root = os.path.realpath(folder)
    return sorted(p for p in found if not p.is_symlink() or os.path.realpath(p).startswith(root + os.sep))
