"""The ``features`` data set: another data set's targets, and stored feature maps in place of its pixels.

The other data set draws, resizes and mirrors as ever, but on a blank image; the pipeline then looks up the stored maps
of the view that was drawn. So a batch is the same as with pixels, target by target, and no image file is decoded.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from densekit.data.feature_store import FeatureStore
from densekit.data.images.read import MAX_PIXELS, ImageReader
from densekit.data.transforms.mixing import Pool
from densekit.data.transforms.pipeline import Pipeline
from densekit.data.transforms.resize import HorizontalFlip, Resize, VerticalFlip
from densekit.errors import DensekitError
from densekit.registry import DATASETS
from densekit.types import Dataset, Sample

_VIEW = {(False, False): "none", (True, False): "horizontal", (False, True): "vertical", (True, True): "both"}


class StoredMaps(Pipeline):
    """A pipeline that moves boxes and masks, and takes maps from a store where the image would be.

    Args:
        pipeline: one ``Resize`` or none, then flips, each at most once.
        store: holds every view that the flips can draw.
        where: where the pipeline stands in the config, for messages.

    Raises:
        DensekitError: a transform that stored maps can't follow, or a store made with another one or without a view.
    """

    def __init__(self, pipeline: Pipeline, store: FeatureStore, where: str = "transforms") -> None:
        super().__init__((), path=where)
        self.specs, self.stages = pipeline.specs, pipeline.stages
        self.pipeline = pipeline
        self.store, self.where = store, where
        resize, views = stored_transform(pipeline, where)
        made = store.manifest["recipe"]["transform"]
        if made != resize:
            raise DensekitError(
                f"{where}: {store.path} was exported with the transform {made or 'none'}, the config has "
                f"{resize or 'none'}; export again, or use the same transform"
            )
        if missing := [view for view in views if view not in store.views]:
            raise DensekitError(
                f"{where}: its flips draw the view {missing[0]!r}, but {store.path} holds {', '.join(store.views)}; "
                f"export with --flips {' '.join(v for v in views if v != 'none')}, or remove the flip"
            )
        self.levels = store.backbone_levels
        if not self.levels:
            raise DensekitError(f"{store.path} holds {', '.join(store.levels)} and no map of the backbone; export some")

    def __call__(self, sample: Sample, random: np.random.Generator, pool: Pool | None = None) -> Sample:
        """Move boxes and mask as the pixels would be, and attach the maps.

        Raises:
            DensekitError: the store has no maps of this image, or maps of another size.
        """
        flipped = {HorizontalFlip: False, VerticalFlip: False}
        for stage in self.stages:
            if isinstance(stage, Resize):
                size = stage.largest(sample.original_size)
                blank = np.broadcast_to(np.uint8(0), (*size, sample.image.shape[2]))
                sample = stage(dataclasses.replace(sample, image=blank), random, sample.original_size)
            else:
                assert isinstance(stage, HorizontalFlip | VerticalFlip), "stored_transform lets nothing else pass"
                moved = stage(sample, random)
                flipped[type(stage)] = moved is not sample  # a flip that is not drawn returns its input
                sample = moved
        features = self.store[sample.id, _VIEW[flipped[HorizontalFlip], flipped[VerticalFlip]]]
        if features.size != sample.image.shape[:2]:
            raise DensekitError(
                f"{self.store.path}: image {sample.id!r} was exported at {features.size[1]} x {features.size[0]}, now "
                f"it comes at {sample.image.shape[1]} x {sample.image.shape[0]} (width x height); export again"
            )
        maps = {level: features[level.name] for level in self.levels}
        mask = None if sample.mask is None else np.ascontiguousarray(sample.mask)
        blank = np.broadcast_to(np.uint8(0), sample.image.shape)  # flips may have given the zeros memory of their own
        return dataclasses.replace(sample, image=blank, mask=mask, maps=maps)

    def reduction(self, size: tuple[int, int]) -> int:
        """1: no pixel is decoded."""
        return 1


def stored_transform(pipeline: Pipeline, where: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What of a pipeline is done to the images before they are exported, and the views that its flips draw.

    Returns:
        The spec of ``Resize`` in a list, or an empty one; and views, ``none`` first.

    Raises:
        DensekitError: another transform, a size that is drawn, or a ``Resize`` behind a flip.
    """
    resize: list[dict[str, Any]] = []
    across, down = False, False
    for position, (stage, spec) in enumerate(zip(pipeline.stages, pipeline.specs)):
        if isinstance(stage, Resize) and not stage.is_random and position == 0:
            resize = [spec]
        elif isinstance(stage, HorizontalFlip) and not across:
            across = True
        elif isinstance(stage, VerticalFlip) and not down:
            down = True
        else:
            raise DensekitError(
                f"{where}[{position}]: stored features can't follow {spec['name']}; they take one Resize to one size "
                f"first, then HorizontalFlip and VerticalFlip; remove it"
            )
    return resize, [name for (x, y), name in _VIEW.items() if x <= across and y <= down]


@DATASETS.register
def features(
    *,
    store: Path,
    data: dict[str, Any],
    transforms: Pipeline | None = None,
    seed: int = 0,
    training: bool = False,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    instances: bool = False,
) -> Dataset:
    """Stored feature maps of a frozen backbone, with the targets of another data set.

    Args:
        store: the feature store, written by ``tools/export_features.py``.
        data: the data set whose images were exported, as a config names it: its boxes, masks and labels are used.
        transforms: ``Resize`` as exported, and flips whose views were exported.
        seed: of the run.
        training: see the other data set.
        channels: image channels.
        max_pixels: see the other data set.
        instances: see the other data set.
    """
    if not isinstance(data.get("name"), str) or data["name"] == "features":
        raise DensekitError("data: name the data set whose images were exported, such as {name: coco, images: ...}")
    where = "data.train_transforms" if training else "data.eval_transforms"
    stored = StoredMaps(transforms or Pipeline(()), FeatureStore(store), where)
    built: Dataset = DATASETS.build(
        data["name"],
        {key: value for key, value in data.items() if key != "name"},
        path="data",
        transforms=stored,
        seed=seed,
        training=training,
        channels=channels,
        max_pixels=max_pixels,
        instances=instances,
    )
    _read_pixels(built, False)
    return built


def store_of(dataset: Dataset) -> FeatureStore | None:
    """The store that a data set takes its maps from; None where it gives pixels."""
    transforms = getattr(dataset, "transforms", None)
    return transforms.store if isinstance(transforms, StoredMaps) else None


def pixels_of(dataset: Dataset) -> Dataset:
    """The same data set with the pixels that its stored maps were made from: the same draws, the same targets."""
    transforms = getattr(dataset, "transforms", None)
    if not isinstance(transforms, StoredMaps):
        return dataset
    twin = copy.copy(dataset)
    twin.transforms = transforms.pipeline  # type: ignore[attr-defined]  # checked above
    _read_pixels(twin, True)
    return twin


def _read_pixels(dataset: Dataset, yes: bool) -> None:
    """Whether a data set reads its image files, or looks at their sizes alone."""
    reader = getattr(dataset, "read_image", None)
    if isinstance(reader, ImageReader):
        dataset.read_image = dataclasses.replace(reader, blank=not yes)  # type: ignore[attr-defined]  # seen above
