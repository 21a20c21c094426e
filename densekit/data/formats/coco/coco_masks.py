"""The ``coco_masks`` data set: the polygons and run lengths of a COCO json drawn into semantic masks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from densekit.data.formats.coco.file import CocoFile
from densekit.data.formats.coco.images import CocoImages
from densekit.data.formats.coco.merge import open_annotations
from densekit.data.formats.coco.rle import decode_runs
from densekit.data.formats.segmentation import Labels, SegmentationDataset
from densekit.data.images.read import MAX_PIXELS
from densekit.data.transforms.pipeline import Pipeline
from densekit.registry import DATASETS
from densekit.types import IGNORE, Classes, DensekitError


class CocoMasks:
    """Masks drawn from annotations: the largest first, so that what is small lies on top of what is large.

    Args:
        folder: the images.
        file: the annotations.
        background: name of the class of all pixels that no annotation covers; None: they are ignored. Its id is 0, or
            one more than the largest category id where 0 is taken.
        crowd: whether regions of many objects belong to their class or are ignored.
        layers: a layer of 0 and 1 per category instead of one class a pixel.
        max_pixels: a larger image is refused before its mask is drawn.
    """

    def __init__(
        self,
        folder: Path,
        *,
        file: CocoFile,
        background: str | None,
        crowd: Literal["class", "ignore"],
        layers: bool,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.files = CocoImages(folder, file)
        self.file, self.crowd, self.layers = file, crowd, layers
        self.max_pixels = max_pixels
        self.offset = 0 if background is None or layers else 1
        self.fill = 0 if self.offset else IGNORE
        self.classes = _with_background(file.classes, background) if self.offset else file.classes
        if not 1 <= len(self.classes) <= IGNORE:
            raise DensekitError(
                f"{file.path}: masks hold 1 to {IGNORE} classes, not {len(self.classes)}; choose some by classes"
            )

    def __len__(self) -> int:
        return len(self.file)

    def image_id(self, index: int) -> int | str:
        """The id in the file."""
        return self.file.image_id(index)

    def image_path(self, index: int) -> Path:
        """The image file; its name may not leave the folder."""
        return self.files.path(index)

    def missing_files(self) -> list[Path]:
        """See ``CocoImages``."""
        return self.files.missing_files()

    @property
    def folder(self) -> Path:
        """The images."""
        return self.files.folder

    @property
    def notes(self) -> list[str]:
        """See ``CocoImages``."""
        return self.files.notes

    def mask_name(self, index: int) -> str:
        """The annotations, for messages."""
        return f"in {self.file.path}"

    def aspect_ratios(self) -> npt.NDArray[np.float32]:
        """[len] width / height, from the json."""
        return (self.file.sizes[:, 1] / self.file.sizes[:, 0]).astype(np.float32)

    def mask(self, index: int) -> Labels:
        """Draw the annotations of an image.

        Raises:
            DensekitError: an annotation has no segmentation, or one that breaks the format.
        """
        height, width = (int(side) for side in self.file.sizes[index])
        if height * width > self.max_pixels:
            raise DensekitError(
                f"{self.file.path}: image {self.image_id(index)!r}: {width} x {height} pixels is over the limit of "
                f"{self.max_pixels}; correct its size, or raise max_pixels"
            )
        layers = len(self.classes) if self.layers else 1
        drawn = np.full((layers, height, width), 0 if self.layers else self.fill, np.uint8)
        rows = self.file.annotations(index)
        order = np.argsort(-self.file.areas[rows], kind="stable") + rows.start
        for annotation in order.tolist():
            label = int(self.file.labels[annotation])
            ignored = self.crowd == "ignore" and bool(self.file.crowd[annotation])
            value = IGNORE if ignored else 1 if self.layers else label + self.offset
            drawn[label if self.layers else 0][self._region(index, annotation)] = value
        return drawn if self.layers else drawn[0]

    def _region(self, image: int, annotation: int) -> npt.NDArray[np.bool_]:
        runs = self.file.runs(image, annotation)
        if runs is None:
            raise DensekitError(
                f"{self.file.source(annotation)}: annotation {self.file.annotation_id(annotation)!r}: "
                "it has no segmentation; correct or remove it"
            )
        return decode_runs(runs, *map(int, self.file.sizes[image]))


@DATASETS.register
def coco_masks(
    *,
    images: Path,
    annotations: Path | tuple[Path, ...],
    classes: tuple[str, ...] | None = None,
    background: str | None = "background",
    crowd: Literal["class", "ignore"] = "class",
    multi_label: bool = False,
    on_bad_box: Literal["error", "drop"] = "error",
    transforms: Pipeline | None = None,
    seed: int = 0,
    training: bool = False,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
) -> SegmentationDataset:
    """Images and semantic masks of a COCO json.

    Args:
        images: the image folder.
        annotations: the json file, or a list of several: see ``coco_merge``; polygons, run lengths and compressed run
            lengths.
        classes: names of the categories to use, in label order; None: all, by id. What the others cover is background.
        background: name of the class of all pixels that nothing covers; null ignores them.
        crowd: regions of many objects count as their class, or are ignored.
        multi_label: one layer per category, so that objects may overlap; without background.
        on_bad_box: an annotation whose box has no area, NaN, or lies outside its image is an error, or dropped.
        transforms: see ``SegmentationDataset``.
        seed: see ``SegmentationDataset``.
        training: see ``SegmentationDataset``.
        channels: see ``SegmentationDataset``.
        max_pixels: see ``SegmentationDataset``.
    """
    file = open_annotations(annotations, on_bad_box=on_bad_box, classes=classes)
    source = CocoMasks(images, file=file, background=background, crowd=crowd, layers=multi_label, max_pixels=max_pixels)
    return SegmentationDataset(
        source, transforms=transforms, seed=seed, training=training, channels=channels, max_pixels=max_pixels
    )


def _with_background(classes: Classes, name: str | None) -> Classes:
    assert name is not None
    if name in classes.names:
        raise DensekitError(f"background: {name!r} is a category of the file too; give another name, or null")
    value = max(classes.ids) + 1 if 0 in classes.ids else 0
    return Classes((name, *classes.names), (value, *classes.ids))
