"""Which of many files are there, quickly: large folders are listed once, in threads, so that a slow disk hurts less."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from densekit.data.images.read import leaves_folder

_LISTED_FROM = 500  # names in a folder; fewer are looked up one by one, which is faster than listing a large folder
_THREADS = 16  # they wait for the disk, not for the processor


def absent(folder: Path, names: Sequence[str]) -> list[int]:
    """Positions of names without a file.

    Args:
        folder: that the names are relative to.
        names: with forward slashes; those that lead out of the folder are not looked at.

    Returns:
        Sorted positions. A folder, or a link to nothing, is no file.
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        places[name.rpartition("/")[0]].append(i)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda place: _absent_in(folder, place, names, places[place]), places)
        return sorted(i for share in found for i in share if not leaves_folder(names[i]))


def _absent_in(folder: Path, place: str, names: Sequence[str], positions: Sequence[int]) -> list[int]:
    listed = _files_of(os.path.join(folder, place)) if len(positions) >= _LISTED_FROM else frozenset()
    # A disk may take a name in another case or Unicode form than it lists it, so what is not listed is asked for.
    return [i for i in positions if names[i][len(place) :].lstrip("/") not in listed and not _is_file(folder, names[i])]


def _files_of(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):
        return frozenset()


def _is_file(folder: Path, name: str) -> bool:
    try:
        return os.path.isfile(os.path.join(folder, name))
    except ValueError:  # a null byte
        return False
