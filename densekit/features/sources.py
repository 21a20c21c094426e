"""What is exported: a folder of images, a list of them, or any data set that a config can name; and given boxes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from densekit.data.images.files import list_images
from densekit.data.images.read import ImageReader
from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError
from densekit.files import read_list
from densekit.types import Sample

Boxes = npt.NDArray[np.float32]


class ImageSource(Protocol):
    """Images in a fixed order; every data set with ``image_id`` is one, if its transforms draw nothing.

    Attributes:
        transforms: what ``sample`` does to the pixels. Threads give their copies of the source a copy of these.
    """

    transforms: Pipeline

    def __len__(self) -> int: ...

    def image_id(self, index: int) -> int | str:
        """The image's id, without reading it."""
        ...

    def sample(self, epoch: int, index: int) -> Sample:
        """The image, resized, with its boxes where it has some."""
        ...


class NamedImages:
    """Plain image files; an image's id is its path relative to ``root``.

    Args:
        root: folder that the names are relative to.
        names: of the files.
        transforms: ``Resize`` or nothing.
        read_image: how the files are read.
        reduced: decode JPEGs at 1/2, 1/4 or 1/8 of their size where that is still no smaller than what ``transforms``
            makes of them: faster, and slightly other pixels. The data sets of a config always do so.
        notes: lines on files that were left out.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        *,
        transforms: Pipeline,
        read_image: ImageReader,
        reduced: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        self.root, self.names, self.reduced, self.notes = root, names, reduced, notes
        self.transforms, self.read_image = transforms, read_image

    def __len__(self) -> int:
        return len(self.names)

    def image_id(self, index: int) -> str:
        """The path relative to the root."""
        return self.names[index]

    def path(self, index: int) -> Path:
        """The image file at ``index``."""
        return self.root / self.names[index]

    def sample(self, epoch: int, index: int) -> Sample:
        """One image, resized.

        Raises:
            DensekitError: it is missing, damaged or too large.
        """
        name = self.names[index]
        size, reduce = None, 1
        if self.reduced:
            height, width = dataclasses.replace(self.read_image, blank=True)(self.root / name).shape[:2]
            size, reduce = (height, width), self.transforms.reduction((height, width))
        image = self.read_image(self.root / name, reduce=reduce)
        size = size or (int(image.shape[0]), int(image.shape[1]))
        return self.transforms(Sample(image, id=name, original_size=size, seed=0), np.random.default_rng(0))


def names_in_folder(folder: Path) -> tuple[list[str], str | None]:
    """The images of a folder and its subfolders, relative to it, sorted; and a line on other files, if there are some.

    Raises:
        DensekitError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DensekitError(f"--images {folder}: there is no such folder; give the folder that holds the images")
    listing = list_images([folder])
    return [path.relative_to(folder).as_posix() for path in listing.paths], listing.note()


def names_in_list(file: Path) -> list[str]:
    """The names in a text file, one a line; blank lines and those that begin with # are skipped.

    Raises:
        DensekitError: the file can't be read, names nothing, or one image twice.
    """
    names = read_list(file, "an image a line", option="--list")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DensekitError(f"--list {file}: {twice} stands twice; name each image once")
    return names


def read_boxes(file: Path) -> dict[int | str, Boxes]:
    """Boxes by image id, [n, 4] xyxy in the pixels of the files.

    Args:
        file: a json: COCO annotations, or a list of COCO results (``image_id`` and ``bbox`` [x, y, width, height]).

    Raises:
        DensekitError: it can't be read or is not of that form.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = content["annotations"] if isinstance(content, dict) else content
        found: dict[int | str, list[list[float]]] = {}
        for entry in entries:
            x, y, width, height = (float(v) for v in entry["bbox"])
            found.setdefault(_image_id(entry), []).append([x, y, x + width, y + height])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DensekitError(
            f"--boxes {file}: can't be read ({type(error).__name__}: {reason}); give COCO annotations or results"
        ) from None
    boxes = {image: np.array(rows, np.float32) for image, rows in found.items()}
    for image, rows in boxes.items():
        if not (np.isfinite(rows).all() and (rows[:, 2:] > rows[:, :2]).all()):
            raise DensekitError(f"--boxes {file}: image {image!r} has a box without area or with NaN; correct it")
    return boxes


def _image_id(entry: Mapping[str, Any]) -> int | str:
    image = entry["image_id"]
    if not isinstance(image, int | str):
        raise TypeError(f"image_id {image!r} is neither a number nor a name")
    return image
