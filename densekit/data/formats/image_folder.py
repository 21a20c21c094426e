"""The ``image_folder`` data set: one folder a class, for classification."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from densekit.data.column_store import Strings
from densekit.data.formats.labels.listing import images_below, listed, role_folders
from densekit.data.formats.labels.records import Found
from densekit.data.images.present import absent
from densekit.data.images.read import IMAGE_SUFFIXES, MAX_PIXELS, ImageReader
from densekit.data.loading.sampling import draw_seed, sample_random
from densekit.data.sampling.occurrences import Occurrences
from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError, nearest
from densekit.registry import DATASETS
from densekit.types import Classes, Sample, Task


class ImageFolder:
    """Images in one folder a class, subfolders included, in the order of their paths.

    An image's id is its path below ``folder``; a class's id is its label.

    Args:
        folder: holds the class folders.
        classes: names of the class folders to use, in label order; None: all, sorted.
        list: text file that names the images to use, by their paths below ``folder``; None: all.
        transforms: applied to every sample; None: images at their own size.
        seed: of the run; every draw comes from (seed, epoch, index).
        channels: image channels to give.
        max_pixels: a larger image is refused before it is decoded.

    Raises:
        DensekitError: no such folder, no class folder in it, or a class without images.
    """

    task: Task = "classification"
    ids_are_positions = True
    """A class is told by the name of its folder; its id says nothing beside it."""

    def __init__(
        self,
        folder: Path,
        *,
        classes: tuple[str, ...] | None = None,
        list: Path | None = None,
        transforms: Pipeline | None = None,
        seed: int = 0,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.folder = folder
        names = _class_folders(folder, classes)
        self.classes = Classes.named_in("classes", names, range(len(names)))
        self.transforms = transforms or Pipeline(())
        self.seed = seed
        self.read_image = ImageReader(channels, max_pixels)
        files = [_images_below(folder, name) for name in names]
        images = [file for of_class in files for file in of_class]
        labels = np.repeat(np.arange(len(names), dtype=np.int32), [len(of_class) for of_class in files])
        chosen = range(len(images)) if list is None else sorted(listed(list, images))
        self.names = Strings.pack([images[i] for i in chosen])
        self.labels = labels[chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """The image file at ``index``."""
        return self.folder / str(self.names[index])

    def missing_files(self) -> list[Path]:
        """The image files that are not there: links to nothing."""
        names = list(self.names)
        return [self.folder / names[i] for i in absent(self.folder, names)]

    def image_id(self, index: int) -> str:
        """The path below the folder."""
        return str(self.names[index])

    def sample(self, epoch: int, index: int) -> Sample:
        """Read, decode and transform one image; the same (epoch, index) always gives the same sample.

        Raises:
            DensekitError: the image is missing, damaged or too large.
        """
        random = sample_random(self.seed, epoch, index)
        image = self.read_image(self.path(index))
        sample = Sample(
            image,
            id=str(self.names[index]),
            original_size=(int(image.shape[0]), int(image.shape[1])),
            seed=draw_seed(random),
            target=int(self.labels[index]),
        )
        return self.transforms(sample, random)

    def occurrences(self) -> Occurrences:
        """The class of each image."""
        return Occurrences(len(self), np.arange(len(self)), self.labels)

    def aspect_ratios(self) -> None:
        """Not known before the images are decoded."""
        return None


def _class_folders(folder: Path, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DensekitError(f"{folder}: there is no such folder; give one that holds a folder for each class")
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise DensekitError(f"{folder}: there is no class folder in it; put the images of each class in a folder of it")
    for name in classes or ():
        if name not in found:
            raise DensekitError(f"classes: {folder} has no class folder {name!r}; {nearest(name, found)}")
    return tuple(found) if classes is None else classes


def _images_below(folder: Path, name: str) -> list[str]:
    """Paths below ``folder`` of the images of a class, sorted."""
    found = []
    for place, _, files in os.walk(folder / name, followlinks=True):
        below = os.path.relpath(place, folder).replace(os.sep, "/")
        found += [f"{below}/{file}" for file in files if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES]
    if not found:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DensekitError(f"{folder / name}: the class has no image ({endings}); remove the folder or name classes")
    return sorted(found)


def recognise(folder: Path) -> Found | None:
    """A folder a class, at least two of them, or such folders for each split; empty ones are left aside."""
    inner = {role: place for role, place in role_folders(folder) if len(_filled(place)[0]) > 1}
    splits = inner if "train" in inner else {"": folder}
    notes, options = list[str](), dict[str, dict[str, Any]]()
    for role, place in splits.items():
        filled, empty = _filled(place)
        if len(filled) < 2:
            return None
        options[role] = {"images": place, **({"classes": tuple(filled)} if empty else {})}
        if empty:
            notes.append(f"{place}: {len(empty)} folders without an image are left aside: {', '.join(empty[:3])}")
        if lonely := images_below(place, deep=False):
            notes.append(f"{place}: {len(lonely)} images in no folder of a class are left aside: {lonely[0]}")
    return Found("image_folder", options, tuple(notes), task="classification")


def _filled(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the subfolders that hold images, and of those that hold none."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    filled = [name for name in names if images_below(folder / name)]
    return filled, [name for name in names if name not in filled]


@DATASETS.register
def image_folder(
    *,
    images: Path,
    classes: tuple[str, ...] | None = None,
    list: Path | None = None,
    transforms: Pipeline | None = None,
    seed: int = 0,
    training: bool = False,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
) -> ImageFolder:
    """One folder a class.

    Args:
        images: the folder that holds the class folders.
        classes: names of the class folders to use, in label order; None: all, sorted.
        list: text file that names the images to use, one a line, by their paths below ``images``; None: all.
        transforms: see ``ImageFolder``.
        seed: see ``ImageFolder``.
        training: classification looks at the same data either way.
        channels: see ``ImageFolder``.
        max_pixels: see ``ImageFolder``.
    """
    return ImageFolder(
        images, classes=classes, list=list, transforms=transforms, seed=seed, channels=channels, max_pixels=max_pixels
    )
