"""The ``coco`` data set: a folder of images and a COCO json, for detection of boxes or of instances."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from densekit.data.formats.coco.file import CocoFile
from densekit.data.formats.coco.images import CocoImages
from densekit.data.formats.coco.instances import Boxes, check_masks, instances_of
from densekit.data.formats.coco.merge import open_annotations
from densekit.data.images.read import MAX_PIXELS, ImageReader
from densekit.data.loading.sampling import draw_seed, sample_random
from densekit.data.sampling.occurrences import Occurrences
from densekit.data.transforms.geometry import xywh_to_xyxy
from densekit.data.transforms.instances import boxes_from_masks
from densekit.data.transforms.mixing import Pool
from densekit.data.transforms.pipeline import Pipeline
from densekit.registry import DATASETS
from densekit.types import Classes, Sample, Task


class CocoDataset:
    """Images and their boxes, addressed by (epoch, index).

    Args:
        folder: the images; ``file_name`` in the json is relative to it and may not leave it.
        file: the annotations.
        transforms: applied to every sample; None: images at their own size.
        seed: of the run; every draw comes from (seed, epoch, index).
        channels: image channels to give.
        max_pixels: a larger image is refused before it is decoded.
        instances: give the masks of the objects too.
        boxes: see ``Boxes``.

    Attributes:
        ids_are_positions: a class is told by its name; its id says nothing beside it.
    """

    task: Task = "detection"
    ids_are_positions: bool = False

    def __init__(
        self,
        folder: Path,
        *,
        file: CocoFile,
        transforms: Pipeline | None = None,
        seed: int = 0,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
        instances: bool = False,
        boxes: Boxes = "annotated",
    ) -> None:
        self.files = CocoImages(folder, file)
        self.file = file
        self.transforms = transforms or Pipeline(())
        self.seed = seed
        self.read_image = ImageReader(channels, max_pixels)
        self.instances, self.boxes = instances, boxes
        self._reads_masks = instances or boxes == "from_masks" or self.transforms.pastes_masks
        self._mask_notes = check_masks(file, boxes) if self._reads_masks else []

    @property
    def classes(self) -> Classes:
        """The categories of the file."""
        return self.file.classes

    @property
    def folder(self) -> Path:
        """The images."""
        return self.files.folder

    @property
    def notes(self) -> list[str]:
        """See ``CocoImages``; and which objects have no mask, where masks are asked for."""
        return [*self.files.notes, *self._mask_notes]

    def missing_files(self) -> list[Path]:
        """See ``CocoImages``."""
        return self.files.missing_files()

    @property
    def max_objects(self) -> int:
        """The most boxes that any image has, after the transforms."""
        return self.transforms.most_objects(self.file.max_objects)

    def __len__(self) -> int:
        return len(self.file)

    def path(self, index: int) -> Path:
        """The image file at ``index``.

        Raises:
            DensekitError: the name leaves the image folder.
        """
        return self.files.path(index)

    def image_id(self, index: int) -> int | str:
        """The id in the json."""
        return self.file.image_id(index)

    def sample(self, epoch: int, index: int) -> Sample:
        """Read, decode and transform one image; the same (epoch, index) always gives the same sample.

        Raises:
            DensekitError: the image is missing, damaged, too large or of another size than the json says.
        """
        random = sample_random(self.seed, epoch, index)
        sample = dataclasses.replace(self.read(index), seed=draw_seed(random))
        sample = self.transforms(sample, random, Pool(len(self), epoch, self.classes, self.read))
        if self.boxes == "from_masks":
            sample = boxes_from_masks(sample)
        return sample if self.instances else dataclasses.replace(sample, instances=None)

    def annotated_size(self, index: int) -> tuple[int, int]:
        """(height, width) that the json gives."""
        return int(self.file.sizes[index, 0]), int(self.file.sizes[index, 1])

    def aspect_ratios(self) -> npt.NDArray[np.float32]:
        """[len] width / height, from the json."""
        return (self.file.sizes[:, 1] / self.file.sizes[:, 0]).astype(np.float32)

    def occurrences(self) -> Occurrences:
        """Which classes occur in which images; a crowd is nothing to learn from."""
        chosen = ~np.asarray(self.file.crowd, np.bool_)
        return Occurrences(len(self), self.file.owners[chosen], np.asarray(self.file.labels)[chosen])

    def seen_sizes(self) -> npt.NDArray[np.int64]:
        """[len, 2] (height, width) of each image after the transforms, if these draw nothing."""
        return self.transforms.sizes(self.file.sizes)

    def read(self, index: int) -> Sample:
        """One image with its annotations, before the transforms."""
        size = self.annotated_size(index)
        rows = self.file.annotations(index)
        return Sample(
            image=self.read_image(self.path(index), size=size, reduce=self.transforms.reduction(size)),
            id=self.file.image_id(index),
            original_size=size,
            seed=0,
            boxes=xywh_to_xyxy(self.file.boxes[rows], self.file.sizes[index]),
            labels=np.array(self.file.labels[rows], np.int64),
            crowd=np.array(self.file.crowd[rows], np.bool_),
            instances=instances_of(self.file, index) if self._reads_masks else None,
        )


@DATASETS.register
def coco(
    *,
    images: Path,
    annotations: Path | tuple[Path, ...],
    classes: tuple[str, ...] | None = None,
    on_bad_box: Literal["error", "drop"] = "error",
    boxes: Boxes = "annotated",
    transforms: Pipeline | None = None,
    seed: int = 0,
    training: bool = False,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    instances: bool = False,
) -> CocoDataset:
    """Images and boxes of a COCO json, or of several.

    Args:
        images: the image folder.
        annotations: the json file, or a list of several as one data set: see ``coco_merge``.
        classes: names of the categories to use, in label order; None: all, by id.
        on_bad_box: a box without area, with NaN, or outside its image is an error, or dropped.
        boxes: those of the file, or, ``from_masks``, those around the masks after the transforms.
        transforms: see ``CocoDataset``.
        seed: see ``CocoDataset``.
        training: detection looks at the same data either way.
        channels: see ``CocoDataset``.
        max_pixels: see ``CocoDataset``.
        instances: give the masks of the objects too; the program asks for them where a head learns masks.
    """
    file = open_annotations(annotations, on_bad_box=on_bad_box, classes=classes)
    return CocoDataset(
        images,
        file=file,
        transforms=transforms,
        seed=seed,
        channels=channels,
        max_pixels=max_pixels,
        instances=instances,
        boxes=boxes,
    )
