"""The ``joint`` data set: the same images with labels of several kinds, such as boxes and masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.data.images.read import MAX_PIXELS
from densekit.data.loading.sampling import draw_seed, sample_random
from densekit.data.transforms.pipeline import Pipeline
from densekit.registry import DATASETS
from densekit.types import Classes, Dataset, DensekitError, Sample, Task

_OF_A_TASK: dict[Task, tuple[str, ...]] = {
    "detection": ("boxes", "labels", "crowd", "instances"),
    "segmentation": ("mask", "truth"),
    "classification": ("target",),
}
"""What of a sample belongs to a task."""


class JointDataset:
    """Images that several data sets have labels for, addressed by (epoch, index).

    An image is told by its file. What one of the data sets alone has is left out.

    Args:
        parts: data sets of different tasks; that of boxes, or the first, reads the images and names them.
        transforms: that the parts have too; applied to image and labels of all kinds together.
        seed: of the run; every draw comes from (seed, epoch, index).

    Attributes:
        parts: by task. task, classes: those of the one that reads the images.

    Raises:
        DensekitError: two parts of a task, no common image, or transforms that mix images.
    """

    def __init__(self, parts: Sequence[Any], *, transforms: Pipeline, seed: int) -> None:
        # Metrics of boxes look images up by the id that the file of the boxes gives.
        first_boxes = sorted(parts, key=lambda part: part.task != "detection")
        self.parts: dict[Task, Any] = {part.task: part for part in first_boxes}
        if len(self.parts) < len(parts):
            tasks = ", ".join(part.task for part in parts)
            raise DensekitError(f"labels of an image are one of a kind, not {tasks}; leave one of them out")
        self.task: Task = next(iter(self.parts))
        if transforms.mixes:
            raise DensekitError(
                f"{', '.join(transforms.mixes)} can't mix images that have labels of several kinds; leave it out"
            )
        for part in list(self.parts.values())[1:]:
            part.read_image = dataclasses.replace(part.read_image, blank=True)
        self.transforms, self.seed = transforms, seed
        self._rows = _common(list(self.parts.values()))

    @property
    def _first(self) -> Any:
        return self.parts[self.task]

    @property
    def classes(self) -> Classes:
        """Of the part that reads the images."""
        classes: Classes = self._first.classes
        return classes

    @property
    def read_image(self) -> Any:
        """How the images are read."""
        return self._first.read_image

    @read_image.setter
    def read_image(self, reader: Any) -> None:
        getattr(self._first, "inner", self._first).read_image = reader

    @property
    def max_objects(self) -> int | None:
        """The most boxes that any image has; None where no part has boxes."""
        boxes = self.parts.get("detection")
        return None if boxes is None else boxes.max_objects

    @property
    def notes(self) -> list[str]:
        """Those of the parts, and how many images were left out."""
        lost = max(len(part) for part in self.parts.values()) - len(self)
        left_out = [f"{lost} images have labels of one kind alone and are left out: give them in a set of their own"]
        return [*(note for part in self.parts.values() for note in part.notes), *(left_out if lost else ())]

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, index: int) -> Path:
        """The image file at ``index``."""
        path: Path = self._first.path(self._rows[index][0])
        return path

    def image_id(self, index: int) -> int | str:
        """What the first part calls the image."""
        image_id: int | str = self._first.image_id(self._rows[index][0])
        return image_id

    def annotated_size(self, index: int) -> tuple[int, int]:
        """(height, width) that the first part gives."""
        size: tuple[int, int] = self._first.annotated_size(self._rows[index][0])
        return size

    def missing_files(self) -> list[Path]:
        """Image and mask files that are not there, each once."""
        sources = [getattr(part, "source", part) for part in self.parts.values()]
        return list(dict.fromkeys(path for source in sources for path in source.missing_files()))

    def sample(self, epoch: int, index: int) -> Sample:
        """Read, decode and transform one image with all its labels.

        Raises:
            DensekitError: a file is missing or damaged, or the parts give the image different sizes.
        """
        random = sample_random(self.seed, epoch, index)
        whole, *others = [part.read(row) for part, row in zip(self.parts.values(), self._rows[index])]
        for task, other in zip(list(self.parts)[1:], others):
            if other.original_size != whole.original_size:
                sizes = " and ".join(f"{s.original_size[1]} x {s.original_size[0]}" for s in (whole, other))
                raise DensekitError(f"{self.path(index)}: its labels are for {sizes} pixels; make them of one size")
            whole = dataclasses.replace(whole, **{name: getattr(other, name) for name in _OF_A_TASK[task]})
        return self.transforms(dataclasses.replace(whole, seed=draw_seed(random)), random)

    def aspect_ratios(self) -> npt.NDArray[np.float32] | None:
        """Those of the first part that knows them."""
        for place, part in enumerate(self.parts.values()):
            ratios: npt.NDArray[np.float32] | None = part.aspect_ratios()
            if ratios is not None:
                return ratios[[rows[place] for rows in self._rows]]
        return None


def parts_of(data: Dataset) -> dict[Task, Dataset]:
    """The data sets with labels of each task that a data set is made of: itself, but for a joint one."""
    parts: dict[Task, Dataset] = data.parts if isinstance(data, JointDataset) else {data.task: data}
    return parts


def _common(parts: Sequence[Any]) -> list[tuple[int, ...]]:
    """The rows in each part of the images that all have, in the order of the first."""
    places = [{part.path(row).resolve(): row for row in range(len(part))} for part in parts]
    first, *others = places
    rows = [(row, *(other[path] for other in others)) for path, row in first.items() if all(path in o for o in others)]
    if not rows:
        shown = " and ".join(str(next(iter(place), "nothing")) for place in places)
        raise DensekitError(f"no image file has labels of all kinds: {shown}; let all of labels name the same files")
    return rows


@DATASETS.register
def joint(
    *,
    labels: tuple[dict[str, Any], ...],
    transforms: Pipeline | None = None,
    seed: int = 0,
    training: bool = False,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    instances: bool = False,
) -> JointDataset:
    """Several data sets over the same image files, as one with labels of several kinds.

    Args:
        labels: data sets, each as it would stand alone; an image is told by its file.
        transforms: applied to an image and all its labels.
        seed: see ``JointDataset``.
        training: see the parts.
        channels: see the parts.
        max_pixels: see the parts.
        instances: see the parts.
    """
    pipeline = transforms or Pipeline(())
    parts = []
    for place, spec in enumerate(labels):
        if "name" not in spec:
            raise DensekitError(f"labels[{place}]: a data set needs a name, such as {{name: coco, ...}}")
        part = DATASETS.build(
            str(spec["name"]),
            {key: value for key, value in spec.items() if key != "name"},
            path=f"labels[{place}]",
            transforms=pipeline,
            seed=seed,
            training=training,
            channels=channels,
            max_pixels=max_pixels,
            instances=instances,
        )
        if not hasattr(part, "read"):
            raise DensekitError(f"labels[{place}]: {spec['name']!r} can't be joined with others; use coco or masks")
        parts.append(part)
    if len(parts) < 2:
        raise DensekitError("labels: give at least two data sets; one alone needs no joint")
    return JointDataset(parts, transforms=pipeline, seed=seed)
