"""A data set of images with masks, wherever the masks come from; how often each class occurs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from densekit.data.images.header import read_header
from densekit.data.images.read import MAX_PIXELS, ImageReader
from densekit.data.loading.sampling import draw_seed, sample_random
from densekit.data.sampling.occurrences import Occurrences
from densekit.data.transforms.mixing import Pool
from densekit.data.transforms.pipeline import Pipeline
from densekit.types import IGNORE, Classes, DensekitError, Sample, Task

Labels = npt.NDArray[np.uint8]


class MaskSource(Protocol):
    """Where images and masks come from."""

    classes: Classes

    def __len__(self) -> int: ...

    def image_id(self, index: int) -> int | str:
        """The data set's own id."""
        ...

    def image_path(self, index: int) -> Path:
        """The image file."""
        ...

    def mask(self, index: int) -> Labels:
        """[H, W] labels or [K, H, W] layers, as the file has them."""
        ...

    def mask_name(self, index: int) -> str:
        """Where the mask stands, for messages."""
        ...

    def aspect_ratios(self) -> npt.NDArray[np.float32] | None:
        """Width / height where known without decoding."""
        ...


class SegmentationDataset:
    """Images and masks, addressed by (epoch, index).

    The mask has the image's size as it is stored or, where the image's EXIF tag turns it, as it is shown; a mask whose
    pixels are all ignored is a sample like any other: it adds nothing to the loss.

    Args:
        source: of images and masks.
        transforms: applied to every sample; None: images at their own size.
        seed: of the run; every draw comes from (seed, epoch, index).
        training: False keeps the untouched mask as ``truth``.
        channels: image channels to give.
        max_pixels: a larger image or mask is refused before it is decoded.
    """

    task: Task = "segmentation"

    def __init__(
        self,
        source: MaskSource,
        *,
        transforms: Pipeline | None = None,
        seed: int = 0,
        training: bool = False,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.source = source
        self.classes = source.classes
        self.transforms = transforms or Pipeline(())
        self.seed, self.training = seed, training
        self.read_image = ImageReader(channels, max_pixels)
        self._occurrences: Occurrences | None = None

    @property
    def notes(self) -> list[str]:
        """One line for each kind of thing that the source reads although it is written otherwise, or leaves out."""
        return list(getattr(self.source, "notes", ()))

    def __len__(self) -> int:
        return len(self.source)

    def path(self, index: int) -> Path:
        """The image file at ``index``."""
        return self.source.image_path(index)

    def image_id(self, index: int) -> int | str:
        """The data set's own id."""
        return self.source.image_id(index)

    def sample(self, epoch: int, index: int) -> Sample:
        """Read, decode and transform one image and its mask.

        Raises:
            DensekitError: a file is missing or damaged, the two differ in size, or the mask holds a value of no class.
        """
        random = sample_random(self.seed, epoch, index)
        sample = dataclasses.replace(self.read(index), seed=draw_seed(random))
        return self.transforms(sample, random, Pool(len(self), epoch, self.classes, self.read))

    def read(self, index: int) -> Sample:
        """One image with its annotations, before the transforms."""
        mask = self.source.mask(index)
        size = (int(mask.shape[-2]), int(mask.shape[-1]))
        return Sample(
            image=self._image(index, size),
            id=self.source.image_id(index),
            original_size=size,
            seed=0,
            mask=mask,
            truth=None if self.training else mask,
        )

    def occurrences(self) -> Occurrences:
        """Which classes occur in which images; every mask is read for it, once."""
        if self._occurrences is None:
            labels = [_occurring(self.source.mask(index), len(self.classes)) for index in range(len(self))]
            images = np.repeat(np.arange(len(self)), [len(found) for found in labels])
            self._occurrences = Occurrences(len(self), images, np.concatenate(labels))
        return self._occurrences

    def aspect_ratios(self) -> npt.NDArray[np.float32] | None:
        """Width / height of each image where known without decoding."""
        return self.source.aspect_ratios()

    def seen_sizes(self) -> npt.NDArray[np.int64] | None:
        """[len, 2] (height, width) of each image after the transforms, if these draw nothing; None where not known."""
        file = getattr(self.source, "file", None)
        return None if file is None else self.transforms.sizes(file.sizes)

    def annotated_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the mask."""
        shape = self.source.mask(index).shape
        return int(shape[-2]), int(shape[-1])

    def _image(self, index: int, size: tuple[int, int]) -> npt.NDArray[Any]:
        path = self.source.image_path(index)
        try:
            return self.read_image(path, size=size, reduce=self.transforms.reduction(size))
        except DensekitError:
            found = _size(path)
            if found is None or found == size:
                raise
        raise DensekitError(
            f"{path}: the image is {found[1]} x {found[0]} and its mask {self.source.mask_name(index)} is {size[1]} x "
            f"{size[0]} (width x height); an image and its mask need the same size"
        )


def _occurring(mask: Labels, classes: int) -> npt.NDArray[np.int64]:
    """The classes of which a mask has a pixel."""
    if mask.ndim == 3:
        return np.flatnonzero((mask == 1).any((1, 2)))
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1)[: min(classes, IGNORE)])


def class_counts(dataset: SegmentationDataset, progress: Iterable[int] | None = None) -> npt.NDArray[np.int64]:
    """How many pixels each class has, in the untouched masks.

    Args:
        dataset: read mask by mask.
        progress: the indices to read; None: all of them.

    Returns:
        [K + 1]; the last number counts ignored pixels. Of layers, each counts its own ones.
    """
    classes = len(dataset.classes)
    counts = np.zeros(classes + 1, np.int64)
    for index in range(len(dataset)) if progress is None else progress:
        mask = dataset.source.mask(index)
        if mask.ndim == 2:
            found = np.bincount(mask.ravel(), minlength=IGNORE + 1)
            counts += np.append(found[:classes], found[IGNORE] if classes <= IGNORE else 0)
        else:
            counts[:classes] += (mask == 1).sum((1, 2))
            counts[classes] += (mask == IGNORE).sum()
    return counts


def balanced_weights(counts: npt.NDArray[np.int64], power: float = 0.5) -> list[float]:
    """Class weights for the losses: (mean frequency / frequency) ** power, 1 on average over the classes that occur.

    Args:
        counts: [K] pixels by class.
        power: 1 weighs all classes alike however rare; 0.5 goes half the way, which rare labels' noise needs.

    Returns:
        K weights; 0 for a class without a pixel.
    """
    known = counts > 0
    if not known.any():
        raise DensekitError("no pixel belongs to any class; check the masks and the classes")
    weights = np.where(known, (counts[known].mean() / np.maximum(counts, 1)) ** power, 0.0)
    return [float(w) for w in weights / weights[known].mean()]


def _size(path: Path) -> tuple[int, int] | None:
    """(height, width) of an image file, turned by its EXIF tag; None where it can't be told."""
    if path.suffix.lower() == ".npy":
        try:
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
        except Exception:  # of a damaged header numpy raises whatever Python's own parser does
            return None
        return (int(shape[0]), int(shape[1])) if len(shape) in (2, 3) else None
    try:
        header = read_header(path.read_bytes())
    except OSError:
        return None
    if header is None:
        return None
    return header.turned_size
