"""All COCO jsons of a folder, each a split by the name of its file or folder, and how they belong together.

Read are the jsons of the folder, of its ``annotations``, of its subfolders (Roboflow writes
``train/_annotations.coco.json`` beside the images), and of their ``annotations`` (CVAT).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from densekit.data.formats.coco.layouts import jsons_of
from densekit.data.formats.labels.listing import ROLES, role_of
from densekit.doctor.coco.rows import CocoRows, read_rows
from densekit.doctor.split import Split, split_of_rows

SPLITS = tuple(ROLES)
"""Names of folders and json files that are taken for splits of one data set."""

_OTHER = "no COCO json"
_SHOWN = 5  # names of files that were left out


def json_splits(folder: Path, images: Path | None) -> tuple[list[Split], list[str]]:
    """A split for each COCO json, and lines on the other jsons.

    Args:
        folder: where to look.
        images: the image folder of all of them; None: guessed for each.
    """
    read: dict[Path, CocoRows] = {}
    others: defaultdict[str, list[str]] = defaultdict(list)
    for path in jsons_of(folder):
        rows = read_rows(path)
        reason = _no_set(rows.content) if rows.content else _no_object(rows)
        if reason == _OTHER and path.parent.name != "annotations":
            continue  # any file of any program
        if reason:
            others[reason].append(path.relative_to(folder).as_posix())
        else:
            read[path] = rows
    names = _names(folder, list(read))
    again = _again({names[path]: rows for path, rows in read.items()})
    default = folder / "images" if (folder / "images").is_dir() else None
    splits = []
    for path, rows in read.items():
        if names[path] in again:
            others[again[names[path]]].append(path.relative_to(folder).as_posix())
            continue
        split = split_of_rows(names[path], rows, images)
        if rows.folder is None and default is not None:
            split = split_of_rows(names[path], read_rows(path), default)
        splits.append(split)
    return splits, [_left_out(reason, files) for reason, files in others.items()]


def jsons_left_out(folder: Path, reason: str) -> list[str]:
    """A line on the jsons in a folder's ``annotations``, of which none is examined."""
    files = sorted(path.relative_to(folder).as_posix() for path in (folder / "annotations").glob("*.json"))
    return [_left_out(reason, files)] if files else []


def family_of(name: str) -> str:
    """What a name has beside the word that says the role: ``instances`` of ``instances_train2017``."""
    words = re.findall("[a-z]+", name.lower())
    return " ".join(word for word in words if word not in ROLES) if role_of(name) else name


def families(splits: Sequence[Split]) -> Iterable[list[Split]]:
    """Splits that are parts of one data set, whose classes must agree."""
    found: defaultdict[str, list[Split]] = defaultdict(list)
    for split in splits:
        found[family_of(split.name)].append(split)
    return found.values()


def image_groups(splits: Sequence[Split]) -> dict[str, list[Path]]:
    """Image files that must not occur in another group as well, by role or by name.

    A split without a role that has all images of another one, or whose images are all in another one, is that one
    annotated anew: it is in no group.
    """
    groups: dict[str, dict[Path, None]] = {}
    for split in splits:
        group = groups.setdefault(role_of(split.name) or split.name, {})
        group.update(dict.fromkeys(entry.path for entry in split.images))
    kept: dict[str, list[Path]] = {}
    for name, own in groups.items():
        others = [
            set(files)
            for other, files in groups.items()
            if other != name and files and (role_of(other) or other in kept)
        ]
        nested = any(set(own) <= files or files <= set(own) for files in others)
        if role_of(name) or not nested:
            kept[name] = list(own)
    return kept


def _no_set(content: dict[str, Any]) -> str | None:
    """Why a json object is no COCO set with objects; None where it is one."""
    if not isinstance(content.get("images"), list):
        return _OTHER
    annotations = content.get("annotations")
    if not isinstance(annotations, list):
        return "images without annotations"
    first = annotations[0] if annotations and isinstance(annotations[0], dict) else {}
    if "caption" in first:
        return "captions, no objects"
    return "panoptic segments" if "segments_info" in first else None


def _no_object(rows: CocoRows) -> str | None:
    """Why a file without content is no COCO set; None where it cannot be read, which is a defect to be told."""
    try:
        json.loads(rows.path.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError):
        return None
    return _OTHER


def _names(folder: Path, paths: Sequence[Path]) -> dict[Path, str]:
    """The name of the file, or of its subfolder where it is the only json there."""
    inner = {path: _subfolder(folder, path) for path in paths}
    return {
        path: path.stem if not sub else sub if list(inner.values()).count(sub) == 1 else f"{sub}/{path.stem}"
        for path, sub in inner.items()
    }


def _subfolder(folder: Path, path: Path) -> str:
    parts = path.relative_to(folder).parts[:-1]
    return "" if not parts or parts[0] == "annotations" else parts[0]


def _again(sets: dict[str, CocoRows]) -> dict[str, str]:
    """Sets that only annotate anew the images of those that are named as splits are, with the reason."""
    plain = [name for name in sets if name in SPLITS]
    known = {image.file_name for name in plain for image in sets[name].images}
    reason = f"the images of {', '.join(plain)} again"
    return {
        name: reason
        for name, rows in sets.items()
        if name not in plain and rows.images and all(image.file_name in known for image in rows.images)
    }


def _left_out(reason: str, files: Sequence[str]) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return f"not examined ({reason}): {', '.join(files[:_SHOWN])}{more}; give a json by its path to examine it"
