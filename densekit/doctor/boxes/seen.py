"""Objects as training sees them: a sample of the images goes through the transforms, without its pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.data.loading.sampling import sample_random
from densekit.data.transforms.mixing import Pool
from densekit.data.transforms.pipeline import Pipeline
from densekit.doctor.boxes.boxes import judge
from densekit.doctor.coco.rows import CocoRows, ImageRow
from densekit.doctor.defects import Box
from densekit.types import Classes, Sample

_MOST = 500
"""Images that are looked at; of more, every second or third and so on."""


def seen_boxes(rows: CocoRows, transforms: Sequence[Mapping[str, Any]], channels: int = 3) -> npt.NDArray[np.float64]:
    """[n, 4] (x1, y1, x2, y2) of objects in the pixels that the model learns from.

    Args:
        rows: of the training set.
        transforms: of training, as the config has them.
        channels: of the images.

    Raises:
        DensekitError: wrong transforms, or some that can't take these images.
    """
    pipeline = Pipeline(transforms, path="data.train_transforms").moving()
    images = _with_boxes(rows)

    def blank(index: int) -> Sample:
        image, boxes = images[index]
        size, corners = (image.height, image.width), np.array(boxes, np.float32)
        corners[:, 2:] += corners[:, :2]
        return Sample(
            np.broadcast_to(np.uint8(0), (*size, channels)),
            id=image.id,
            original_size=size,
            seed=0,
            boxes=np.clip(corners, 0, [size[1], size[0]] * 2).astype(np.float32),
            labels=np.zeros(len(boxes), np.int64),
            crowd=np.zeros(len(boxes), np.bool_),
        )

    pool = Pool(len(images), 0, Classes((), ()), blank)
    chosen = range(0, len(images), -(-len(images) // _MOST) or 1)
    found = [pipeline(blank(i), sample_random(0, 0, i), pool).boxes for i in chosen]
    return np.concatenate([np.zeros((0, 4)), *(boxes for boxes in found if boxes is not None)])


def _with_boxes(rows: CocoRows) -> list[tuple[ImageRow, list[Box]]]:
    """Images with the boxes that training would use."""
    found: dict[int | str, list[Box]] = {}
    for annotation in rows.annotations:
        image = rows.images_by_id.get(annotation.image_id)
        if image is not None and not annotation.crowd:
            verdict = judge(annotation.box, image.width, image.height)
            if verdict is None or verdict[0] in ("box_off_by_one", "box_partly_outside"):
                found.setdefault(image.id, []).append(annotation.box)
    return [(rows.images_by_id[key], boxes) for key, boxes in found.items()]
