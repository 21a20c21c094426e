"""Images as a set: defects of its files, how most of them are stored, and which are stored in another way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from densekit.data.images.read import leaves_folder
from densekit.doctor.defects import Defect
from densekit.doctor.images.checks import Look
from densekit.doctor.sets import Split

_KINDS = {"grey": "image_grey", "palette": "image_palette", "alpha": "image_alpha"}
_ALL_OF_THEM = {**_KINDS, "grey": "images_grey"}
_FOLDERS = 50  # in which lost images are looked for


def image_defects(split: Split, looks: dict[Path, Look], channels: int | None) -> Iterator[Defect]:
    """Defects of a set's image files, and how they are stored.

    Args:
        split: whose files they are.
        looks: by file.
        channels: that the model takes; None: not known.
    """
    of_files = list(_of_files(split, looks))
    missing = [d for d in of_files if d.code == "image_missing"]
    if missing and split.rows is not None:
        yield from _together(missing, len(split.images), split)
        of_files = [d for d in of_files if d.code != "image_missing"]
    yield from of_files
    kinds = [looks[entry.path].kind for entry in split.images]
    usual = _usual(split, looks)
    if usual in _ALL_OF_THEM and not (usual == "grey" and channels == 1):
        folder = str(split.images[0].path.parent)
        yield Defect(_ALL_OF_THEM[usual], folder, f"{kinds.count(usual)} of {len(kinds)} files are stored as {usual}")


def _usual(split: Split, looks: dict[Path, Look]) -> str:
    """How most files of a set are stored."""
    kinds = [looks[entry.path].kind for entry in split.images]
    return max(sorted(set(kinds) - {""}), key=kinds.count, default="")


def _elsewhere(folder: Path, name: str) -> str:
    """Where an image may be that is not in its folder."""
    inner = sorted(p for p in folder.iterdir() if p.is_dir())[:_FOLDERS] if folder.is_dir() else []
    for place in (folder.parent, folder.parent.parent, *inner):
        if os.path.isfile(place / name):
            return f"it lies under {place}"
    if os.path.isfile(folder / Path(name).name):
        return "the folder holds its name without the folders before it"
    return "they are not in the folders around it either"


def _of_files(split: Split, looks: dict[Path, Look]) -> Iterator[Defect]:
    """Defects of each file, and how it is stored where most are stored in another way."""
    source = str(split.rows.path) if split.rows is not None else ""
    usual = _usual(split, looks)
    for entry in split.images:
        found = looks[entry.path]
        row = -1 if entry.row is None else entry.row.row
        picture = entry.path if found.size is not None else None
        for code, message in found.problems:
            yield Defect(code, str(entry.path), message, None, source, picture, row=row)
        if found.kind != usual and found.kind in _KINDS:
            message = f"it is stored as {found.kind}, most files of the set as {usual}"
            yield Defect(_KINDS[found.kind], str(entry.path), message, None, source, picture, row=row)


def _together(missing: Sequence[Defect], images: int, split: Split) -> list[Defect]:
    """One finding where none of a file's images is there: then the folder is wrong, not each name."""
    rows = split.rows
    if len(missing) < max(images, 2) or rows is None or rows.folder is None:
        return list(missing)
    first = missing[0]
    name = next(i.file_name for i in rows.images if i.row == first.row)
    hint = "" if leaves_folder(name) else f"; {_elsewhere(rows.folder, name)}"
    message = f"none of its {images} images is there, such as {first.file}{hint}"
    return [Defect("images_missing", first.source, message, source=first.source)]
