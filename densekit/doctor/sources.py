"""What there is to examine behind a path: a COCO json, images with masks, a folder of images, or a run's config."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from densekit.config import Config, Part, load
from densekit.data.images import IMAGE_SUFFIXES, MAX_PIXELS, inside, leaves_folder
from densekit.data.mask_files import MASK_SUFFIXES, MaskCode, read_classes
from densekit.data.masks import MaskFolder
from densekit.doctor.reader import CocoContent, ImageEntry, read_coco
from densekit.doctor.report import Defect
from densekit.errors import DensekitError
from densekit.registry import DATASETS
from densekit.types import IGNORE

SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "test", "testing")
"""Names of folders at the top of a data set that are taken for splits."""


@dataclasses.dataclass(slots=True)
class Item:
    """An image of a split.

    Attributes:
        name: as the annotations or the folder give it.
        path: None where it leaves the image folder and must not be opened.
        entry: its entry in the COCO file. mask: its mask file. label: its class folder.
    """

    name: str
    path: Path | None
    entry: ImageEntry | None = None
    mask: Path | None = None
    label: str | None = None


@dataclasses.dataclass(slots=True)
class Split:
    """One data set.

    Attributes:
        name: such as ``train``; empty where there is only one.
        source: annotation file or folder, for messages.
        items: its images.
        coco: its annotation file, where it has one.
        code: what the values of its masks mean, where that is known.
        defects: what was found while it was put together.
    """

    name: str
    source: Path
    items: list[Item]
    coco: CocoContent | None = None
    code: MaskCode | None = None
    defects: list[Defect] = dataclasses.field(default_factory=list)

    @property
    def title(self) -> str:
        """What is examined, in one line."""
        of = f"{self.name}: " if self.name else ""
        count = f", {len(self.coco.annotations)} annotations" if self.coco else ""
        masks = ", masks" if any(item.mask for item in self.items) else ""
        return f"{of}{self.source}: {len(self.items)} images{count}{masks}"


@dataclasses.dataclass(slots=True)
class Sources:
    """All splits behind a path, and the config where it is one."""

    splits: list[Split]
    config: Config | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def channels(self) -> int:
        """Image channels that the model takes."""
        return self.config.model.channels if self.config else 3

    @property
    def max_pixels(self) -> int:
        """The most pixels that an image may have."""
        return self.config.data.max_pixels if self.config else MAX_PIXELS


def find_sources(paths: Sequence[Path], images: Path | None) -> Sources:
    """Find what there is to examine.

    Args:
        paths: COCO files of different splits, or one config, one folder of images, or one folder that holds ``images``
            and ``masks`` (and ``classes.txt``).
        images: image folder of COCO files; None takes ``images`` beside the file or beside its folder, or its folder.

    Raises:
        DensekitError: a path that is none of these.
    """
    for path in paths:
        if not path.exists():
            raise DensekitError(f"{path}: there is no such file or folder; give a COCO json, a folder or a config")
    if all(path.suffix.lower() == ".json" and path.is_file() for path in paths):
        return _from_json(paths, images)
    if len(paths) > 1:
        raise DensekitError("several paths must all be COCO json files; give one folder or config, or list it in one")
    if images is not None:
        raise DensekitError(f"--images goes with a COCO json, but {paths[0]} is none; leave it out")
    if paths[0].is_dir():
        return Sources(_from_folder(paths[0]))
    if paths[0].suffix.lower() in (".yaml", ".yml"):
        return _from_config(paths[0])
    raise DensekitError(f"{paths[0]}: give a COCO json, a folder with images, or a config (.yaml)")


def coco_split(name: str, path: Path, folder: Path) -> Split:
    """The split of a COCO file; names that leave the image folder are reported and never opened."""
    split = Split(name, path, [], coco=read_coco(path))
    assert split.coco is not None
    for entry in split.coco.images:
        item = Item(entry.name, None, entry=entry)
        try:
            item.path = inside(folder, entry.name, path)
        except (DensekitError, OSError, ValueError):
            is_link = not leaves_folder(entry.name)
            message = f"{'is a link out of' if is_link else 'leads out of'} {folder}; it was not opened"
            split.defects.append(Defect("image-outside-folder", entry.name, message))
        split.items.append(item)
    return split


def _from_json(paths: Sequence[Path], images: Path | None) -> Sources:
    found = Sources([])
    for path in paths:
        folder = images or _beside(path)
        if not folder.is_dir():
            raise DensekitError(f"--images {folder}: there is no such folder; give the folder of the images")
        if images is None:
            found.notes.append(f"images are looked for in {folder} (--images gives another folder)")
        found.splits.append(coco_split(path.stem if len(paths) > 1 else "", path, folder))
    return found


def _beside(path: Path) -> Path:
    """The image folder of a COCO file, guessed."""
    candidates = (path.parent / "images", path.parent.parent / "images", path.parent)
    return next(folder for folder in candidates if folder.is_dir())


def _from_folder(folder: Path) -> list[Split]:
    images, masks = folder / "images", folder / "masks"
    if images.is_dir() and masks.is_dir():
        names = folder / "classes.txt"
        code = MaskCode(read_classes(names)) if names.is_file() else None
        whole = paired_split("", images, masks, code)
    else:
        files = sorted(files_below(folder, IMAGE_SUFFIXES))
        if not files:
            raise DensekitError(f"{folder}: there is no image in it; give a COCO json, a folder with images, a config")
        whole = Split("", folder, [Item(name, folder / name) for name in files])
    splits = _by_top_folder(whole)
    for split in splits:
        _label_by_folder(split)
    return splits


def paired_split(
    name: str, images: Path, masks: Path, code: MaskCode | None, image_suffix: str | None = None,
    mask_suffix: str | None = None,
) -> Split:  # fmt: skip
    """Images and masks of two folders, paired by the part of the name that they share; what stays alone is reported."""
    split = Split(name, images, [], code=code)
    found = {_stem(f, image_suffix): f for f in sorted(files_below(images, image_suffix or IMAGE_SUFFIXES))}
    partners = {_stem(f, mask_suffix): f for f in sorted(files_below(masks, mask_suffix or MASK_SUFFIXES))}
    for stem, file in found.items():
        mask = partners.pop(stem, None)
        split.items.append(Item(file, images / file, mask=None if mask is None else masks / mask))
        if mask is None:
            split.defects.append(Defect("mask-missing", file, f"{masks} has no mask of it", image=images / file))
    for file in partners.values():
        split.defects.append(Defect("mask-without-image", str(masks / file), f"{images} has no image of it"))
    return split


def files_below(folder: Path, ending: str | frozenset[str]) -> Iterator[str]:
    """Files below a folder that end so, relative to it; hidden ones are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in names:
            fits = name.endswith(ending) if isinstance(ending, str) else os.path.splitext(name)[1].lower() in ending
            if fits and not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _stem(name: str, suffix: str | None) -> str:
    return name.removesuffix(suffix) if suffix else os.path.splitext(name)[0]


def _by_top_folder(whole: Split) -> list[Split]:
    """One split for each folder at the top, where all images lie in such that are named like splits."""
    tops = {item.name.split("/")[0] for item in whole.items if "/" in item.name}
    flat = any("/" not in item.name for item in whole.items)
    if flat or len(tops) < 2 or not all(top.lower() in SPLIT_FOLDERS for top in tops):
        return [whole]
    splits = []
    for top in sorted(tops, key=lambda t: SPLIT_FOLDERS.index(t.lower())):
        items = [item for item in whole.items if item.name.startswith(f"{top}/")]
        splits.append(Split(top, whole.source / top, items, code=whole.code))
    splits[0].defects = whole.defects
    return splits


def _label_by_folder(split: Split) -> None:
    """Take the folders of images without masks for their classes, where each image lies in one of several."""
    places = {len(Path(item.name).parts) for item in split.items}
    below = 1 if split.name else 0
    labels = [Path(item.name).parts[below] for item in split.items if len(Path(item.name).parts) > below + 1]
    if min(places, default=0) > below + 1 and len(set(labels)) > 1 and not any(item.mask for item in split.items):
        for item, label in zip(split.items, labels):
            item.label = label


def _from_config(path: Path) -> Sources:
    config = load(path)
    found = Sources([], config)
    for name in ("train", "val", "test"):
        part: Part | None = getattr(config.data, name)
        if part is None:
            continue
        split = _configured(name, part, config, found.notes)
        if split is None:
            found.notes.append(f"data.{name}: {part.name!r} holds no image files to examine")
        else:
            found.splits.append(split)
    return found


def _configured(name: str, part: Part, config: Config, notes: list[str]) -> Split | None:
    """The split of a data set in a config; paths that are missing are the user's mistake and raise."""
    options, given = part.options, DATASETS.options(part.name)
    for key in ("images", "annotations", "masks"):
        if key in given and not Path(str(options.get(key, ""))).exists():
            raise DensekitError(f"data.{name}.{key}: {options.get(key)} does not exist; correct the path in the config")
    if part.name in ("coco", "coco_masks"):
        return coco_split(name, Path(options["annotations"]), Path(options["images"]))
    if part.name == "masks":
        return _configured_masks(name, options, config, notes)
    if part.name == "image_folder":
        folder = Path(options["images"])
        split = Split(name, folder, [Item(f, folder / f) for f in sorted(files_below(folder, IMAGE_SUFFIXES))])
        for item in split.items:
            item.label = item.name.split("/")[0] if "/" in item.name else None
        return split
    return None


def _configured_masks(name: str, options: dict[str, Any], config: Config, notes: list[str]) -> Split:
    """As training pairs them; where it refuses to, by name alone."""
    images = Path(options["images"])
    try:
        built = DATASETS.build("masks", options, path=f"data.{name}", max_pixels=config.data.max_pixels)
        source: MaskFolder = built.source
        items = [Item(p.image, images / p.image, mask=source.masks / p.mask) for p in source.pairs]
        return Split(name, images, items, code=source.code)
    except DensekitError as error:
        notes.append(f"data.{name}: training would stop: {error}")
    classes = options.get("classes")
    known = read_classes(Path(classes) if isinstance(classes, str) else classes) if classes else None
    code = MaskCode(known, tuple(options.get("ignore", (IGNORE,)))) if known and "colors" not in options else None
    return paired_split(
        name, images, Path(options["masks"]), code, options.get("image_suffix"), options.get("mask_suffix")
    )
