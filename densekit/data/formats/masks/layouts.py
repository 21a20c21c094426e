"""How images and their masks lie in folders: two folders, or one; splits inside them, above them or in their names."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from densekit.data.formats.labels.listing import ROLES, files_below, images_below, inner_folder, role_folders, role_of
from densekit.data.formats.labels.records import Found
from densekit.data.formats.masks.files import MASK_SUFFIXES
from densekit.data.formats.masks.matching import LOSSY, MASK_WORDS, Matched, by_pixels, match
from densekit.data.images.read import IMAGE_SUFFIXES
from densekit.types import DensekitError

_OBJECTS = ("object", "instance", "inst", "panoptic", "depth")  # other things than classes that are drawn like masks
_MOST_FOLDERS = 8  # that are compared with one another
_SOME = 0.25  # of a folder's images that are called masks

Folders = tuple[Path, Path]
"""Of images and of masks."""


def recognise(folder: Path) -> Found | None:
    """Images and masks; each split has the options ``images`` and ``masks``, and Pascal VOC's a ``list``.

    Raises:
        DensekitError: folders called masks hold JPEGs, or several could be the masks.
    """
    splits = _by_folders(folder) or _by_names(folder)
    if splits:
        return _found(splits)
    one = _one_set(_inside(folder)) or _one_folder(folder)
    if one is None:
        return None
    images, masks = one
    lists = _voc_lists(folder) if masks.name == "SegmentationClass" else {}
    if lists:
        options = {role: {"images": images, "masks": masks, "list": path} for role, path in lists.items()}
        return Found("masks", dict(options), task="segmentation")
    inner = dict(role_folders(images)), dict(role_folders(masks))
    roles = [role for role in dict.fromkeys(ROLES.values()) if role in inner[0] and role in inner[1]]
    return _found({role: (inner[0][role], inner[1][role]) for role in roles} or {"": one})


def _found(splits: dict[str, Folders]) -> Found:
    order = [role for role in dict.fromkeys(("", *ROLES.values())) if role in splits]
    options = {role: {"images": splits[role][0], "masks": splits[role][1]} for role in order}
    return Found("masks", dict(options), task="segmentation")


def _by_folders(folder: Path) -> dict[str, Folders]:
    """Splits that are folders with images and masks inside."""
    found: dict[str, Folders] = {}
    for role, place in role_folders(folder):
        one = _one_set(_inside(place)) or _one_folder(place)
        if one is not None:
            found.setdefault(role, one)
    return found


def _by_names(folder: Path) -> dict[str, Folders]:
    """Splits by the names of folders that lie side by side: ``train``, ``train_labels``, ``val``, ``val_labels``."""
    by_role: defaultdict[str, list[Path]] = defaultdict(list)
    for place in _inside(folder):
        if role := role_of(place.name):
            by_role[role].append(place)
    found = {role: one for role, places in by_role.items() if (one := _one_set(places)) is not None}
    return found if "train" in found else {}


def _inside(folder: Path) -> list[Path]:
    """The subfolders that hold images, or masks."""
    places = sorted(Path(e.path) for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    return [place for place in places if _has_images(place)]


def _has_images(folder: Path) -> bool:
    return any(
        os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        for _, _, names in os.walk(folder, followlinks=True)
        for name in names
    )


def _one_set(places: list[Path]) -> Folders | None:
    """The folder of images and the one of masks, of some that lie side by side."""
    named = [place for place in places if MASK_WORDS.search(place.name)]
    others = [place for place in places if place not in named]
    if not named or not others:
        named = others = places
    if len(places) < 2 or len(places) > _MOST_FOLDERS:
        return None
    tried: list[tuple[bool, int, Folders]] = []
    for masks in named:
        for images in others:
            if images != masks and (pairs := _pairs(images, masks, by_name=named != others).pairs):
                whole = not any(word in masks.name.lower() for word in _OBJECTS)
                tried.append((whole, len(pairs), (images, masks)))
    return max(tried, key=lambda one: one[:2])[2] if tried else None


def _pairs(images: Path, masks: Path, *, by_name: bool) -> Matched:
    """Pairs of two folders; by their pixels where names of folders don't say which are the masks."""
    if by_name and not files_below(masks, MASK_SUFFIXES) and (lossy := images_below(masks)):
        raise DensekitError(_lossy(masks, lossy))
    found = match(images, masks)
    if found.pairs and not by_name and not by_pixels(images, masks, found.pairs):
        return Matched([], found.images, found.masks)
    return found


def _one_folder(folder: Path) -> Folders | None:
    if match(folder, folder).pairs:
        return folder, folder
    names = images_below(folder, deep=False)
    lossy = [name for name in names if MASK_WORDS.search(name) and name.lower().endswith(tuple(LOSSY))]
    if names and _SOME <= len(lossy) / len(names) < 1:
        raise DensekitError(_lossy(folder, lossy))
    return None


def _lossy(folder: Path, names: list[str]) -> str:
    return (
        f"{folder / names[0]}: masks as {os.path.splitext(names[0])[1]} ({len(names)} files) have lost which pixel is "
        f"what class; save them as PNG"
    )


def _voc_lists(folder: Path) -> dict[str, Path]:
    """Pascal VOC's lists of images with masks."""
    sets = inner_folder(folder, "ImageSets")
    place = None if sets is None else inner_folder(sets, "Segmentation")
    files = sorted(place.glob("*.txt")) if place is not None else []
    return {role: path for path in files if (role := role_of(path.stem))}
