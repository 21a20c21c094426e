"""The data set over a layout: images and boxes as those of a COCO json are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from densekit.data.formats.coco.coco import CocoDataset
from densekit.data.formats.coco.instances import Boxes
from densekit.data.formats.labels.columns import open_layout
from densekit.data.formats.labels.records import Layout
from densekit.data.images.read import MAX_PIXELS
from densekit.data.transforms.pipeline import Pipeline


def labelled_images(
    layout: Layout,
    *,
    on_bad_box: Literal["error", "drop"] = "error",
    classes: Sequence[str] | None = None,
    transforms: Pipeline | None = None,
    seed: int = 0,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    instances: bool = False,
    boxes: Boxes = "annotated",
) -> CocoDataset:
    """Images and boxes of a layout.

    Args:
        layout: files to read.
        on_bad_box: see ``open_layout``.
        classes: see ``open_layout``.
        transforms: see ``CocoDataset``.
        seed: see ``CocoDataset``.
        channels: see ``CocoDataset``.
        max_pixels: see ``CocoDataset``.
        instances: see ``CocoDataset``.
        boxes: see ``CocoDataset``.
    """
    file = open_layout(layout, on_bad_box=on_bad_box, classes=classes)
    data = CocoDataset(
        layout.root,
        file=file,
        transforms=transforms,
        seed=seed,
        channels=channels,
        max_pixels=max_pixels,
        instances=instances,
        boxes=boxes,
    )
    data.ids_are_positions = layout.names is None
    return data
