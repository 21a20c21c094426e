"""How programs lay out COCO jsons: COCO's own folders, Roboflow's, CVAT's, Label Studio's, and where the images are."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from densekit.data.formats.coco.parse import parse_coco
from densekit.data.formats.labels.listing import ROLES, role_of
from densekit.data.formats.labels.records import Found
from densekit.data.images.names import other_spellings
from densekit.data.images.read import leaves_folder
from densekit.types import DensekitError

_END = 1 << 16  # bytes of a json's head and tail by which it is told
_TRIED = 50  # names by which the image folder is told
_FIRST_KEYS = (b"info", b"licenses", b"images", b"annotations", b"categories", b"type")
_OTHER_KINDS = ("captions", "keypoints", "panoptic", "stuff", "image_info")


def recognise(folder: Path) -> Found | None:
    """COCO jsons in a folder, in its ``annotations``, in its subfolders, or in the ``annotations`` of these."""
    jsons = [path for path in jsons_of(folder) if is_coco(path)]
    if not jsons:
        return None
    chosen, others = _without_other_kinds(jsons)
    by_role: defaultdict[str, list[Path]] = defaultdict(list)
    for path in chosen:
        by_role[_role(folder, path)].append(path)
    notes = [f"{path}: labels of another kind, left aside" for path in others]
    if "" in by_role and len(by_role) > 1:
        notes += [f"{path}: neither train, val nor test by its name, left aside" for path in by_role.pop("")]
    splits = {}
    for role, paths in sorted(by_role.items(), key=lambda item: list(ROLES.values()).index(item[0] or "train")):
        annotations: Any = paths[0] if len(paths) == 1 else tuple(paths)
        splits[role] = {"images": image_folder(paths[0], role), "annotations": annotations}
    return Found("coco", splits, tuple(notes))


def of_file(path: Path) -> Found:
    """One json as a data set of one split."""
    return Found("coco", {"": {"images": image_folder(path), "annotations": path}})


def jsons_of(folder: Path) -> Iterator[Path]:
    """The jsons in a folder, in its ``annotations``, in its subfolders, and in the ``annotations`` of these."""
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != "annotations")
    for place in [folder, folder / "annotations", *(q for p in inner for q in (p, p / "annotations"))]:
        if place.is_dir():
            yield from sorted(p for p in place.glob("*.json") if p.is_file() and not p.name.startswith("."))


def is_coco(path: Path) -> bool:
    """Whether head and tail of a json are those of a COCO set."""
    with path.open("rb") as file:
        head = file.read(_END)
        file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
        text = head + file.read(_END)
    first = re.match(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(\w+)"', head)
    if first is None or first[1] not in _FIRST_KEYS or re.search(rb'"shapes"\s*:', head):
        return False
    return re.search(rb'"(?:annotations|categories|images)"\s*:\s*\[', text) is not None


def _without_other_kinds(jsons: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Jsons of objects, and those that their names call something else, where any are left."""
    others = [p for p in jsons if any(kind in p.stem for kind in _OTHER_KINDS)]
    chosen = [p for p in jsons if p not in others]
    return (chosen, others) if chosen else (list(jsons), [])


def _role(folder: Path, path: Path) -> str:
    """``train``, ``val`` or ``test`` by the name of the file, or of its folder; empty where neither says so."""
    names = (path.stem, *path.relative_to(folder).parts[:-1])
    return next((role for name in names if (role := role_of(name))), "")


def image_folder(path: Path, role: str = "") -> Path:
    """The folder, of those where images mostly are, that has the most of a json's first images.

    Raises:
        DensekitError: the json cannot be read, or none of these folders has any.
    """
    names = parse_coco(path, labelled=False).images.file_names
    best = guessed_folder(path, names, role)
    if best is None:
        raise DensekitError(
            f"{path}: its images, such as {(names or ['none'])[0]!r}, are not beside it, nor in images/; put them there"
        )
    return best if path.is_absolute() else Path(os.path.relpath(best))


def guessed_folder(path: Path, names: Sequence[str], role: str = "") -> Path | None:
    """The folder, of those where images mostly are, that has the most of the first images that a json names.

    Args:
        path: the json.
        names: of its images.
        role: of the json.
    """
    names = names[:_TRIED]
    above = path.absolute().parent
    tails = dict.fromkeys([re.sub("^instances_", "", path.stem), path.stem, role])
    inner = [base / tail for base in (above.parent / "images", above.parent) for tail in tails if tail]
    near = [above / "images", above.parent / "images", *inner, above, above.parent]
    near = [place for place in dict.fromkeys(near) if place.is_dir()]
    inside = [name for name in names if not leaves_folder(name)]
    held = {place: sum(os.path.isfile(place / name) for name in inside) for place in near}
    if not any(held.values()):
        held = {place: len(other_spellings(place, names, outside=True)) for place in near}
    best = max(held, key=lambda place: held[place], default=None)
    return best if best is not None and held[best] else None
