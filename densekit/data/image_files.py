"""Images without annotations: files, folders and globs, for predictions and features."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densekit.data.images import IMAGE_SUFFIXES, MAX_PIXELS, read_image
from densekit.data.transforms import Pipeline
from densekit.errors import DensekitError
from densekit.types import Classes, Sample, Task


def list_images(inputs: Sequence[str | Path]) -> list[Path]:
    """The image files that the inputs name, without repeats: in the order given, each folder's and glob's sorted.

    Args:
        inputs: files (of any ending), folders (searched with their subfolders for image endings), or globs.

    Raises:
        DensekitError: an input that names nothing, or a folder without images.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        paths = _expand(Path(text))
        if not paths:
            endings = ", ".join(sorted(IMAGE_SUFFIXES))
            raise DensekitError(f"{text}: no image found; give image files, folders with images ({endings}) or globs")
        found.update(dict.fromkeys(paths))
    return list(found)


def _expand(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    return sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())


class ImageFiles:
    """A data set of plain images: nothing to learn from, something to predict on.

    Args:
        paths: the files.
        task: of the head that will look at them.
        classes: of the model.
        transforms: of the evaluation.
        channels: image channels.
        max_pixels: a larger image is refused before it is decoded.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        task: Task,
        classes: Classes,
        transforms: Pipeline,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.paths, self.task, self.classes = list(paths), task, classes
        self.transforms, self.channels, self.max_pixels = transforms, channels, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> npt.NDArray[np.generic]:
        """The untouched image [H, W, C], turned upright by its EXIF tag."""
        return read_image(self.paths[index], channels=self.channels, max_pixels=self.max_pixels)

    def recoloured(self, image: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """An untouched image in the colours of the evaluation, at its own size."""
        return self.transforms.recoloured(image)

    def sample(self, epoch: int, index: int) -> Sample:
        """One image, transformed as in evaluation; its id is its position in the list."""
        image = self.read(index)
        size = (int(image.shape[0]), int(image.shape[1]))
        return self.transforms(Sample(image, id=index, original_size=size, seed=0), np.random.default_rng(0))

    def aspect_ratios(self) -> None:
        """Not known before the images are decoded."""
        return None
