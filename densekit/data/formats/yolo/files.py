"""Where a YOLO set has its images, their label files, and the names of its classes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from densekit.data.formats.labels.listing import (
    IMAGES,
    ROLES,
    images_below,
    inner_folder,
    listed,
    role_folders,
)
from densekit.data.images.read import IMAGE_SUFFIXES
from densekit.files import read_list, read_names
from densekit.types import DensekitError

_HEAD = 4096  # bytes by which a label file is told
_TRIED = 20  # images by which labels are told
_YAML = (".yaml", ".yml")
_NO_LABELS = frozenset({"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt", "labels.txt"})


def label_path(image: Path, *, must_exist: bool = True) -> Path | None:
    """The label file of an image: in ``labels`` where the image is in ``images``, else beside it.

    Returns:
        None where there is none; with ``must_exist=False`` where it would be.
    """
    beside = os.path.splitext(image)[0] + ".txt"  # text, not paths: there may be a million
    before, mark, after = beside.rpartition(f"{os.sep}images{os.sep}")
    places = [f"{before}{os.sep}labels{os.sep}{after}", beside] if mark else [beside]
    found = next((place for place in places if not must_exist or os.path.isfile(place)), None)
    return None if found is None else Path(found)


@dataclasses.dataclass(frozen=True)
class YoloFiles:
    """A set's files.

    Attributes:
        source: the ``data.yaml``, or the folder.
        root: folder that entries are relative to.
        splits: for each split its folders, lists and images.
        names: of the classes by number; None where nothing says them.
        keypoints: whether labels have keypoints.
    """

    source: Path
    root: Path
    splits: Mapping[str, tuple[Path, ...]]
    names: Mapping[int, str] | None
    keypoints: bool = False

    def images(self, split: str | None) -> list[Path]:
        """Image files of a split, or of all.

        Raises:
            DensekitError: there is no such split, or no image in it.
        """
        if split is not None and split not in self.splits:
            known = ", ".join(map(repr, self.splits)) or "none"
            raise DensekitError(f"{self.source}: there is no split {split!r}; it has {known}")
        if split is not None:
            entries: Iterable[Path] = self.splits[split]
        else:
            entries = [entry for several in self.splits.values() for entry in several] or [self._all]
        found = dict.fromkeys(path for entry in entries for path in self._images_of(entry))
        if not found:
            places = ", ".join(map(str, entries))
            raise DensekitError(f"{self.source}: there is no image in {places}; correct the paths")
        return list(found)

    def has_labels(self, split: str | None) -> bool:
        """Whether one of the first images of a split has a label file."""
        try:
            images = self.images(split)
        except (DensekitError, OSError):
            return False
        step = max(1, len(images) // _TRIED)
        return any(is_label(path) for image in images[::step] if (path := label_path(image)) is not None)

    @property
    def _all(self) -> Path:
        inner = self.root / "images"
        return inner if inner.is_dir() else self.root

    def _images_of(self, entry: Path) -> list[Path]:
        if entry.is_dir():
            return [entry / name for name in images_below(entry)]
        if entry.suffix.lower() in IMAGE_SUFFIXES:
            return [entry]
        if not entry.is_file():
            raise DensekitError(f"{self.source}: there is no folder or list {entry}; correct the path")
        return _listed_images(entry, self.root)


def _listed_images(source: Path, root: Path) -> list[Path]:
    """Images of a list file: by their path, or where this leads nowhere by its end, among those below the root."""
    found = [_existing(line, source.parent, root) for line in read_list(source, IMAGES)]
    if None not in found:
        return [path for path in found if path is not None]
    names = images_below(root)
    return [root / names[i] for i in listed(source, names)]


def _existing(line: str, *folders: Path) -> Path | None:
    return next((path for folder in folders if (path := folder / line).is_file()), None)


def is_label(path: Path) -> bool:
    """Whether the head of a text file is that of a label file: lines of numbers, a class first; or nothing."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    lines = head.splitlines()[: 3 if len(head) < _HEAD else 1]
    try:
        rows = [[float(word) for word in line.split()] for line in lines if line.strip()]
    except ValueError:
        return False
    return all(len(row) >= 2 and row[0] >= 0 and row[0] == int(row[0]) for row in rows)


def yaml_of(folder: Path) -> Path | None:
    """A YAML that describes a YOLO set, or the one of a folder; ``data.yaml`` where there are several."""
    if folder.suffix.lower() in _YAML and folder.is_file():
        return folder if _describes_a_set(folder) else None
    if not folder.is_dir():
        return None
    found = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in _YAML and _describes_a_set(p)]
    return next((p for p in found if p.stem.lower() in ("data", "dataset")), found[0] if found else None)


def _describes_a_set(path: Path) -> bool:
    try:
        content = _content(path)
    except DensekitError:
        return False
    return ("names" in content or "nc" in content) and any(role in content for role in ROLES)


def open_files(folder: Path) -> YoloFiles:
    """The files of a ``data.yaml``, or of a folder.

    Raises:
        DensekitError: the ``data.yaml`` cannot be read, or its names make no sense.
    """
    path = yaml_of(folder)
    if path is not None or folder.is_file():
        return _of_yaml(path or folder)
    images = inner_folder(folder, "images")
    places = {role: place / "images" for role, place in role_folders(folder) if (place / "images").is_dir()}
    if images is not None:
        places |= dict(role_folders(images))
    splits = {role: (place,) for role, place in places.items()}
    return YoloFiles(folder, folder, splits, _names_beside(folder))


def _of_yaml(path: Path) -> YoloFiles:
    content = _content(path)
    root = _root(path, content.get("path"))
    splits: dict[str, tuple[Path, ...]] = {}
    for key, role in ROLES.items():
        value = content.get(key)
        if value is None or role in splits:
            continue
        entries = value if isinstance(value, list) else [value]
        splits[role] = tuple(_entry(root, path, str(entry)) for entry in entries)
    return YoloFiles(path, root, splits, _names(path, content), "kpt_shape" in content)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise DensekitError(f"{path}: cannot be read as YAML ({first}); correct it") from None
    if not isinstance(content, dict):
        raise DensekitError(f"{path}: holds no keys and values; a data.yaml has names, train and val")
    return content


def _root(path: Path, given: Any) -> Path:
    """What ``path`` says, relative to the file; the file's folder where that is nowhere on this machine."""
    folder = path.absolute().parent
    for place in (folder / str(given), Path(str(given)).absolute()) if given else ():
        if place.is_dir():
            return place
    return folder


def _entry(root: Path, source: Path, text: str) -> Path:
    """A folder or list of a split; ``../train/images``, as Roboflow writes it, is looked for beside the file too."""
    folder = source.absolute().parent
    trimmed = text.removeprefix("../")
    for place in (root / text, folder / text, folder / trimmed, folder / Path(text).name):
        if place.exists() and place.resolve() != folder.resolve():
            return Path(os.path.normpath(place))
    return Path(os.path.normpath(root / text))


def _names(path: Path, content: Mapping[str, Any]) -> dict[int, str] | None:
    names = content.get("names")
    if names is None:
        return _names_beside(path.parent)
    if isinstance(names, dict):
        try:
            return {int(number): str(name) for number, name in sorted(names.items(), key=lambda item: int(item[0]))}
        except (TypeError, ValueError):
            raise DensekitError(f"{path}: names: {list(names)[:3]} are no numbers; write number: name") from None
    if not isinstance(names, list) or not names:
        raise DensekitError(f"{path}: names: {names!r} is neither a list nor a map of names; correct it"[:300])
    count = content.get("nc")
    if isinstance(count, int) and count != len(names):
        raise DensekitError(f"{path}: nc is {count}, but there are {len(names)} names; correct one of them")
    return dict(enumerate(map(str, names)))


def _names_beside(folder: Path) -> dict[int, str] | None:
    """Names from a text file, one a line: in the folder, in ``labels``, or above."""
    places = [folder, folder / "labels", folder.parent]
    for place in places:
        files = sorted(place.glob("*.names")) if place.is_dir() else []
        for path in [place / "classes.txt", *files]:
            if path.is_file():
                lines = [line.strip() for line in read_names(path)]
                return dict(enumerate(line for line in lines if line))
    return None


def is_no_label(path: str) -> bool:
    """Whether a text file beside labels is a list of names by what it is called."""
    return os.path.basename(path).lower() in _NO_LABELS
