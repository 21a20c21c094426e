"""What there is to examine behind a path: a COCO json, images with masks, a folder of images, or a config's splits."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from densekit import config as configs
from densekit.config_file import read_yaml
from densekit.data.formats.labelme import is_labelme
from densekit.data.formats.masks.files import MaskCode, read_classes
from densekit.data.formats.masks.masks import MaskFolder
from densekit.data.images.read import IMAGE_SUFFIXES, MAX_PIXELS
from densekit.doctor.coco.sets import SPLITS, json_splits, jsons_left_out
from densekit.doctor.defects import Defect
from densekit.doctor.file_lists import left_out_files, list_files
from densekit.doctor.labels import FORMATS, label_split, label_splits, unread
from densekit.doctor.masks.checks import MaskQuestion
from densekit.doctor.masks.sets import mask_code, mask_questions
from densekit.doctor.split import ImageEntry as ImageEntry
from densekit.doctor.split import Split as Split
from densekit.doctor.split import coco_split
from densekit.errors import DensekitError, nearest
from densekit.registry import DATASETS


@dataclasses.dataclass(slots=True)
class Found:
    """What is behind a path.

    Attributes:
        splits: data sets.
        left_out: one line for each file, or kind of files, that may be meant to be one too and was not examined.
        config: where the path is one.
    """

    splits: list[Split]
    left_out: list[str] = dataclasses.field(default_factory=list)
    config: configs.Config | None = None


def sets_of(path: Path) -> list[str]:
    """The data sets of a config, or of a run's folder, by name; none where the path is something else, or has one."""
    file = path / "config.yaml" if path.is_dir() else path
    if file.suffix.lower() not in (".yaml", ".yml") or not file.is_file():
        return []
    tree = read_yaml(file)  # YOLO's data.yaml is no config
    return [name for name in configs.load(file).sets if name] if {"model", "data"} <= tree.keys() else []


def find_splits(path: Path, images: Path | None = None, name: str | None = None) -> Found:
    """What is behind a path.

    Args:
        path: a COCO json, a config (yaml) or a run's folder, a folder with ``images`` and ``masks``, a folder with COCO
            jsons in it or in its subfolders, a folder, ``data.yaml`` or table of another format of labels, a folder of
            masks (with ``images``), or a folder of images.
        images: the image folder of a json or of masks; None: where such folders mostly are.
        name: which data set of a config; None: the first head's.

    Raises:
        DensekitError: there is nothing of that kind.
    """
    if images is not None and not images.is_dir():
        raise DensekitError(f"--images: there is no folder {images}; correct the path")
    if path.is_dir():
        if images is None and (path / "config.yaml").is_file():
            return _of_config(path / "config.yaml", name)
        return _of_folder(path, images)
    if not path.is_file():
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        hint = nearest(path.name, beside) if beside else "give a COCO json, a config, or a folder"
        raise DensekitError(f"{path}: there is no such file or folder; {hint}")
    if path.suffix.lower() in (".yaml", ".yml"):
        if images is not None:
            raise DensekitError(f"--images is for a json or masks; {path} names its image folders itself")
        found = Found(*label_splits(path))
        return found if found.splits else _of_config(path, name)
    if path.suffix.lower() == ".csv" and images is None:
        return Found(*label_splits(path))
    return Found([coco_split("", path, images)])


def _of_folder(path: Path, images: Path | None) -> Found:
    inner = path / "images"
    if images is None and inner.is_dir() and (path / "masks").is_dir():
        names = _names(path / "masks", inner)
        splits = [_mask_split(n, inner / n, path / "masks" / n, _code(path)) for n in names]
        return Found(splits, jsons_left_out(path, "masks are, where a folder has them"))
    found = Found(*json_splits(path, images))
    if any(split.rows is not None and split.rows.content for split in found.splits):
        return found
    if images is None and (labels := Found(*label_splits(path))).splits:
        broken = [s for s in found.splits if s.rows is not None and not is_labelme(s.rows.path)]
        return Found([*labels.splits, *broken], labels.left_out)
    if found.splits:
        return found
    if images is not None:
        found.splits = [_mask_split("", images, path, _code(path))]
        return found
    found.splits = [_image_split(n, path / n) for n in _names(path)]
    if not any(split.images for split in found.splits):
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DensekitError(f"{path}: no image found ({endings}); give a json, a config, or a folder with images")
    found.splits[0].defects += unread(path)
    return found


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
            return MaskCode(read_classes(place / "classes.txt"), ignore_given=False)
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


def _of_config(path: Path, name: str | None) -> Found:
    config = configs.load(path)
    if name is not None:
        config = config.of_heads(config.heads_of(name)).of_set(name)
    found = Found([], config=config)
    for split in ("train", "val", "test"):
        part = getattr(config.data, split)
        if part is not None:
            found.splits += _of_part(split, part, config.data.max_pixels, str(path), config.place)
    return found


def _of_part(name: str, part: configs.Part, max_pixels: int, source: str, place: str) -> list[Split]:
    """The splits that a data set of a config stands for, one a json; what cannot be built is a defect."""
    try:
        if part.name == "joint":
            parts = [configs.Part(**one) for one in part.options["labels"]]
            return [s for one in parts for s in _of_part(f"{name}: {one.name}", one, max_pixels, source, place)]
        if part.name in ("coco", "coco_masks") and "images" in part.options:
            return _read_jsons(name, part, max_pixels)
        if part.name in FORMATS:
            return [label_split(name, part.name, part.options, max_pixels)[0]]
        return [_read_part(name, part, max_pixels)]
    except (DensekitError, KeyError, TypeError, ValueError) as error:
        message = str(error) if str(error).startswith("data.") else f"data.{name}: {error}"
        message = f"{place}{message.removeprefix('data')}"
        return [Split(name, defects=[Defect("data_set_unusable", source, message, source=source)])]


def _images_of(name: str, part: configs.Part) -> Path | None:
    folder = Path(part.options["images"]) if "images" in part.options else None
    if folder is not None and not folder.is_dir():
        raise DensekitError(f"data.{name}.images: there is no folder {folder}; correct the path")
    return folder


def _read_jsons(name: str, part: configs.Part, max_pixels: int) -> list[Split]:
    folder, given = _images_of(name, part), part.options["annotations"]
    splits = []
    for path in map(Path, given if isinstance(given, list | tuple) else [given]):
        split = coco_split(
            f"{name}: {path.stem}" if isinstance(given, list | tuple) else name, path, folder, max_pixels
        )
        split.chosen = tuple(part.options["classes"]) if part.options.get("classes") else None
        splits.append(split)
    return splits


def _read_part(name: str, part: configs.Part, max_pixels: int) -> Split:
    options, folder = part.options, _images_of(name, part)
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
