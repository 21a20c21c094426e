"""Files of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from densekit.data.images import IMAGE_SUFFIXES


def list_files(folder: Path, endings: frozenset[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Files below a folder with such endings, sorted; hidden ones and links out of it are left out."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [Path(place, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in endings]
    root = os.path.realpath(folder)
    return sorted(p for p in found if not p.is_symlink() or os.path.realpath(p).startswith(root + os.sep))
