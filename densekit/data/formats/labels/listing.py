"""Files below a folder, and which of them a list of names means."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from densekit.data.images.names import FileNames
from densekit.data.images.read import IMAGE_SUFFIXES
from densekit.files import read_list
from densekit.types import DensekitError, nearest

ROLES = {
    **{"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"},
    **{"training": "train", "dev": "val"},
}
"""What splits are called as folders and lists, and what they are."""


IMAGES = "an image a line"
"""What a list of images holds."""


def files_below(folder: Path, endings: frozenset[str] | str, *, deep: bool = True) -> list[str]:
    """Names of the files with such endings, relative to the folder, sorted; hidden ones are passed over.

    Args:
        folder: where to look.
        endings: lower case, with the dot.
        deep: in subfolders too.
    """
    wanted = frozenset({endings}) if isinstance(endings, str) else endings
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")] if deep else []
        below = os.path.relpath(place, folder).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        found += [
            prefix + n for n in names if not n.startswith(".") and os.path.splitext(n)[1].lower() in wanted
        ]  # fmt: skip
    return sorted(found)


def images_below(folder: Path, *, deep: bool = True) -> list[str]:
    """Names of the image files below a folder."""
    return files_below(folder, IMAGE_SUFFIXES, deep=deep)


def left_aside(source: Path, why: str, images: Iterable[str], used: Iterable[str]) -> list[str]:
    """A line on the images that no label is for, where others have some."""
    known = set(used)
    others = [name for name in images if name not in known]
    if not known or not others:
        return []
    return [f"{source}: {len(others)} images {why} and are left aside: {', '.join(others[:3])}"]


def inner_folder(folder: Path, *names: str) -> Path | None:
    """The first of the subfolders of such a name, whatever its case; None where there is none."""
    if not folder.is_dir():
        return None
    inner = {entry.name.lower(): Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()}
    return next((inner[name.lower()] for name in names if name.lower() in inner), None)


def role_folders(folder: Path) -> Iterator[tuple[str, Path]]:
    """The subfolders that are called as splits are, with the split that each one is."""
    entries = os.scandir(folder) if folder.is_dir() else ()
    inner = {entry.name.lower(): Path(entry.path) for entry in entries if entry.is_dir()}
    for name, role in ROLES.items():
        if name in inner:
            yield role, inner[name]


def role_of(name: str) -> str | None:
    """``train``, ``val`` or ``test``, where a name holds such a word."""
    return next((ROLES[word] for word in re.findall("[a-z]+", name.lower()) if word in ROLES), None)


def listed(source: Path, names: Sequence[str]) -> list[int]:
    """Which files a text file means, one a line.

    Args:
        source: the list; a line is the name of an image, with or without its folder and ending. Blank lines and those
            that begin with # are skipped, as is what stands behind a name (as in Pascal VOC's lists).
        names: of all files, with an ending of images.

    Returns:
        Positions in ``names``, in the order of the list.

    Raises:
        DensekitError: the list can't be read or is empty, or a line means no file or several.
    """
    lines = read_list(source, IMAGES)
    places = {name: i for i, name in enumerate(names)}
    files = FileNames(names)
    chosen: dict[int, None] = {}
    wrong = []
    for line in lines:
        meant = [line] if line in places else files.meant_by(line) or files.meant_by(line.split()[0])
        if len(meant) == 1:
            chosen[places[meant[0]]] = None
        else:
            wrong.append((line, meant))
    if wrong:
        line, meant = wrong[0]
        why = f"may be {meant[0]!r} or {meant[1]!r}; write its folder too" if meant else "is not there"
        hint = "" if meant else f"; {nearest(line, names)}"
        more = f" ({len(wrong)} lines of {len(lines)} are like this)" if len(wrong) > 1 else ""
        raise DensekitError(f"{source}: {line!r} {why}{more}{hint}")
    return list(chosen)
