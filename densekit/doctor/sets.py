"""What there is to examine behind a path: a COCO json, images with masks, a folder of images, or a config's splits."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from densekit import config as configs
from densekit.data.images import IMAGE_SUFFIXES, MAX_PIXELS
from densekit.data.mask_files import MaskCode, read_classes
from densekit.data.masks import MaskFolder
from densekit.doctor.coco_rows import CocoRows, ImageRow, read_rows
from densekit.doctor.defects import Defect
from densekit.doctor.file_lists import left_out_files, list_files
from densekit.doctor.mask_checks import MaskQuestion
from densekit.doctor.mask_sets import mask_code, mask_questions
from densekit.errors import DensekitError, nearest
from densekit.registry import DATASETS

SPLITS = ("train", "val", "valid", "validation", "test")
"""Names of folders and json files that are taken for splits of one data set."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image file; ``row`` is its entry where a json names it."""

    path: Path
    row: ImageRow | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) that the json gives."""
        return None if self.row is None else (self.row.width, self.row.height)


@dataclasses.dataclass(slots=True)
class Split:
    """One data set: what is learned from, or tested on.

    Attributes:
        name: such as ``train``; empty where there is one alone.
        rows: of its COCO json.
        images: files to look at.
        masks: files to look at.
        defects: found on the way.
        max_pixels: a larger image is not decoded.
        chosen: names of the categories that the config chooses; None: all.
    """

    name: str
    rows: CocoRows | None = None
    images: list[ImageEntry] = dataclasses.field(default_factory=list)
    masks: list[MaskQuestion] = dataclasses.field(default_factory=list)
    defects: list[Defect] = dataclasses.field(default_factory=list)
    max_pixels: int = MAX_PIXELS
    chosen: tuple[str, ...] | None = None


def find_splits(path: Path, images: Path | None = None) -> tuple[list[Split], configs.Config | None]:
    """What is behind a path, and the config where it is one.

    Args:
        path: a COCO json, a config (yaml) or a run's folder, a folder with ``images`` and ``masks`` or ``annotations``,
            a folder of masks (with ``images``), or a folder of images.
        images: the image folder of a json or of masks; None: where such folders mostly are.

    Raises:
        DensekitError: there is nothing of that kind.
    """
    if images is not None and not images.is_dir():
        raise DensekitError(f"--images: there is no folder {images}; correct the path")
    if path.is_dir():
        if images is None and (path / "config.yaml").is_file():
            return _of_config(path / "config.yaml")
        return _of_folder(path, images), None
    if not path.is_file():
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        hint = nearest(path.name, beside) if beside else "give a COCO json, a config, or a folder"
        raise DensekitError(f"{path}: there is no such file or folder; {hint}")
    if path.suffix.lower() in (".yaml", ".yml"):
        if images is not None:
            raise DensekitError(f"--images is for a json or masks; {path} names its image folders itself")
        return _of_config(path)
    return [coco_split("", path, images)], None


def coco_split(name: str, path: Path, images: Path | None, max_pixels: int = MAX_PIXELS) -> Split:
    """A COCO json and its images."""
    rows = read_rows(path)
    rows.folder = images if images is not None else _guessed_folder(rows)
    split = Split(name, rows, max_pixels=max_pixels)
    if rows.folder is None:
        if rows.images:
            message = "the image folder is not beside it under a usual name; the files were not looked at"
            split.defects.append(Defect("images_not_found", str(path), message, source=str(path)))
        return split
    first = {id(image) for image in rows.images_by_id.values()}
    for image in rows.images:
        place = rows.place(image)
        if place is not None and id(image) in first:
            split.images.append(ImageEntry(place, image))
    return split


def _guessed_folder(rows: CocoRows) -> Path | None:
    """The folder, of those where images mostly are, that holds the most of the first images."""
    above = rows.path.resolve().parent
    stem = rows.path.stem
    places = [above / "images", above.parent / "images", above, above.parent, above.parent / "images" / stem]
    best, most = None, 0
    for place in places:
        names = CocoRows(rows.path, {}, place)
        held = sum(1 for i in rows.images[:50] if (p := names.place(i)) is not None and os.path.isfile(p))
        if held > most:
            best, most = place, held
    return best


def _of_folder(path: Path, images: Path | None) -> list[Split]:
    inner = path / "images"
    if images is not None:
        return [_mask_split("", images, path, _code(path))]
    if inner.is_dir() and (path / "masks").is_dir():
        return [_mask_split(n, inner / n, path / "masks" / n, _code(path)) for n in _names(path / "masks", inner)]
    if inner.is_dir() and (path / "annotations").is_dir():
        files = sorted((path / "annotations").glob("*.json"))
        named = [f for f in files if f.stem in SPLITS]
        if named or files:
            return [coco_split(f.stem, f, inner) for f in named or files[:1]]
    splits = [_image_split(n, path / n) for n in _names(path)]
    if not any(split.images for split in splits):
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DensekitError(f"{path}: no image found ({endings}); give a json, a config, or a folder with images")
    return splits


def _image_split(name: str, folder: Path, max_pixels: int = MAX_PIXELS) -> Split:
    """Images alone."""
    images = [ImageEntry(path) for path in list_files(folder)]
    return Split(name, images=images, defects=left_out_files(folder), max_pixels=max_pixels)


def _names(*folders: Path) -> list[str]:
    """Splits that all of the folders have as subfolders; one without a name where they have none."""
    found = [n for n in SPLITS if all((folder / n).is_dir() for folder in folders)]
    return found or [""]


def _code(folder: Path) -> MaskCode | None:
    """Classes from the ``classes.txt`` of a mask set; None where it has none."""
    for place in (folder, folder.parent, folder.parent.parent):
        if (place / "classes.txt").is_file():
            return MaskCode(read_classes(place / "classes.txt"))
    return None


def _mask_split(
    name: str,
    images: Path,
    masks: Path,
    code: MaskCode | None,
    image_suffix: str | None = None,
    mask_suffix: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Split:
    split = Split(name, max_pixels=max_pixels)
    questions, split.defects = mask_questions(images, masks, image_suffix, mask_suffix, code, max_pixels)
    split.masks = questions
    split.images = [ImageEntry(q.image) for q in questions if q.image is not None]
    return split


def _of_config(path: Path) -> tuple[list[Split], configs.Config]:
    config = configs.load(path)
    splits = []
    for name in ("train", "val", "test"):
        part = getattr(config.data, name)
        if part is not None:
            splits.append(_of_part(name, part, config.data.max_pixels, str(path)))
    return splits, config


def _of_part(name: str, part: configs.Part, max_pixels: int, source: str) -> Split:
    """The split that a data set of a config stands for; what cannot be built is a defect."""
    try:
        return _read_part(name, part, max_pixels)
    except (DensekitError, KeyError, TypeError, ValueError) as error:
        message = str(error) if str(error).startswith("data.") else f"data.{name}: {error}"
        return Split(name, defects=[Defect("data_set_unusable", source, message, source=source)])


def _read_part(name: str, part: configs.Part, max_pixels: int) -> Split:
    options = part.options
    folder = Path(options["images"]) if "images" in options else None
    if folder is not None and not folder.is_dir():
        raise DensekitError(f"data.{name}.images: there is no folder {folder}; correct the path")
    if folder is not None and part.name in ("coco", "coco_masks"):
        split = coco_split(name, Path(options["annotations"]), folder, max_pixels)
        split.chosen = tuple(options["classes"]) if options.get("classes") else None
        return split
    if folder is not None and part.name == "image_folder":
        return _image_split(name, folder, max_pixels)
    if folder is not None and part.name == "masks" and options.get("list") is None and "fraction" not in options:
        suffixes = options.get("image_suffix"), options.get("mask_suffix")
        return _mask_split(name, folder, Path(options["masks"]), mask_code(options), *suffixes, max_pixels)
    return _built(name, part, max_pixels)


def _built(name: str, part: configs.Part, max_pixels: int) -> Split:
    """Any other data set: opened as training does; of masks, the pairs that it chose."""
    built = DATASETS.build(part.name, part.options, path=f"data.{name}", max_pixels=max_pixels)
    source = getattr(built, "source", None)
    split = Split(name, max_pixels=max_pixels)
    if isinstance(source, MaskFolder):
        places = [(source.mask_path(i), source.image_path(i)) for i in range(len(source))]
        split.masks = [MaskQuestion(mask, image, source.code, max_pixels) for mask, image in places]
        split.images = [ImageEntry(image) for _, image in places]
    return split
