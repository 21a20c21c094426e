"""Images without annotations: files, folders and globs, for predictions and features."""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from densekit.data.images.read import IMAGE_SUFFIXES, ImageReader
from densekit.data.images.web import is_web
from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError
from densekit.files import read_list
from densekit.types import Classes, Sample, Task

SIDE_FILES = frozenset({
    *(".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".md", ".html", ".pdf", ".log"),
    *(".py", ".ipynb", ".mat", ".zip", ".tar", ".gz", ".db", ".ini", ".cache"),
})  # fmt: skip
"""Endings of what lies beside images and nobody takes for one: labels, lists, archives."""


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    """Image files that were found.

    Attributes:
        paths: without repeats, in the order given, each folder's and glob's sorted.
        left_out: how many other files the folders hold, by ending; ``SIDE_FILES`` are not counted.
    """

    paths: list[Path]
    left_out: dict[str, int]

    def note(self) -> str | None:
        """One line on what was left out; None where that is nothing."""
        if not self.left_out:
            return None
        most = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        counts = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in most[:8])
        more = f" and {len(most) - 8} more endings" if len(most) > 8 else ""
        return (
            f"left out: {counts}{more}; folders are searched for {', '.join(sorted(IMAGE_SUFFIXES))}: convert the "
            f"others where they are images"
        )


def list_images(inputs: Sequence[str | Path]) -> Listing:
    """The image files that the inputs name.

    Args:
        inputs: files (of any ending), web addresses, lists of both (``.txt``, one a line), folders (searched with their
            subfolders for image endings; hidden files and folders, such as macOS's ``._*``, are passed over), or globs.

    Raises:
        DensekitError: an input that names nothing, or a folder without images.
    """
    found: dict[Path, None] = {}
    left_out: collections.Counter[str] = collections.Counter()
    for text in inputs:
        try:
            paths = [Path(text)] if is_web(text) else _expand(Path(text), left_out)
        except OSError as error:
            raise DensekitError(f"{text}: can't be looked at ({error.strerror}); correct the path") from None
        if not paths:
            endings = ", ".join(sorted(IMAGE_SUFFIXES))
            raise DensekitError(f"{text}: no image found; give image files, folders with images ({endings}) or globs")
        found.update(dict.fromkeys(paths))
    return Listing(list(found), dict(left_out))


def count_others(paths: Iterable[Path]) -> dict[str, int]:
    """How many files are no images by their ending, nor what lies beside images, by ending."""
    endings = (path.suffix.lower() for path in paths)
    return dict(collections.Counter(ending for ending in endings if ending not in IMAGE_SUFFIXES | SIDE_FILES))


def _expand(path: Path, left_out: collections.Counter[str]) -> list[Path]:
    if path.is_file():
        return _listed(path) if path.suffix.lower() == ".txt" else [path]
    if path.is_dir():
        files = sorted(_visible_files(path))
        left_out.update(count_others(files))
        return [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())


def _listed(file: Path) -> list[Path]:
    """Files that a list names, relative to it or else to the current folder; blank lines and ``#`` ones are skipped."""
    names = [Path(line) for line in read_list(file, "an image a line")]
    beside = [file.parent / name for name in names]
    return [
        name if is_web(name) or (name.exists() and not there.exists()) else there for there, name in zip(beside, names)
    ]


def _visible_files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder, onerror=_not_listed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            # A link to nothing is listed, so that someone is told.
            if not name.startswith(".") and (path.is_file() or path.is_symlink()):
                yield path


def _not_listed(error: OSError) -> NoReturn:
    raise DensekitError(f"{error.filename}: the folder can't be read ({error.strerror}); make it readable, or move it")


class ImageFiles:
    """A data set of plain images: nothing to learn from, something to predict on.

    Args:
        paths: the files.
        task: of the head that will look at them.
        classes: of the model.
        transforms: of the evaluation.
        read_image: how the files are read.
        ids: of the images where a data set gives them; None numbers the files from 1.
        sizes: [n, 2] (height, width) of the images where a data set gives them; they are then read as it reads them.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        task: Task,
        classes: Classes,
        transforms: Pipeline,
        read_image: ImageReader,
        ids: Sequence[int | str] | None = None,
        sizes: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.paths, self.task, self.classes = list(paths), task, classes
        self.transforms, self.read_image = transforms, read_image
        self._ids, self._sizes = ids, sizes

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """The image file at ``index``."""
        return self.paths[index]

    def image_id(self, index: int) -> int | str:
        """What the results call the image at ``index``."""
        return index + 1 if self._ids is None else self._ids[index]

    def read(self, index: int) -> npt.NDArray[np.generic]:
        """The untouched image [H, W, C], turned upright by its EXIF tag, or as its given size asks for."""
        return self.read_image(self.paths[index], size=self._size(index))

    def sample(self, epoch: int, index: int) -> Sample:
        """One image, transformed as in evaluation; its id is its position in the list."""
        size = self._size(index)
        if size is None:
            image = self.read(index)
            size = (int(image.shape[0]), int(image.shape[1]))
        else:
            image = self.read_image(self.paths[index], size=size, reduce=self.transforms.reduction(size))
        return self.transforms(Sample(image, id=index, original_size=size, seed=0), np.random.default_rng(0))

    def aspect_ratios(self) -> None:
        """Not known before the images are decoded."""
        return None

    def _size(self, index: int) -> tuple[int, int] | None:
        return None if self._sizes is None else (int(self._sizes[index, 0]), int(self._sizes[index, 1]))
