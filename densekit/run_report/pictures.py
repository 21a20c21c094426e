"""Images for the report: what is true beside what was predicted, as JPEG in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from densekit import build
from densekit.build import Split
from densekit.data.loading.batching import collate
from densekit.infer.results import result_of
from densekit.infer.samples import panels, seen
from densekit.measured import Measured
from densekit.show.drawing import Image, side_by_side
from densekit.types import Dataset

PICTURE_BYTES = 10_000_000
"""Most that all pictures of a report take; in its text they are a third longer, and the rest is little beside them."""

_WIDEST = 1200
_NARROWEST = 64
_MOST_LOOKED_AT = 2000  # images whose ids are read from the samples themselves


class Picture(NamedTuple):
    """An image with its caption: ``group`` is ``worst`` or ``random``."""

    group: str
    image: int | str
    words: str
    jpeg: bytes


def pictures(measured: Measured, split: Split, count: int, worst: Sequence[tuple[int | str, str]]) -> list[Picture]:
    """The worst images and as many at random.

    Args:
        measured: the run.
        split: of its data.
        count: how many of each.
        worst: ids with words, the worst first.
    """
    data = build.pictured(measured.config, split, classes=measured.model.classes)
    places = _places(data)
    known = [(i, words) for i, words in worst if i in places]
    chosen = [("worst", *row) for row in known[:count]]
    rest = known[count:]
    for at in sorted(np.random.default_rng(0).permutation(len(rest))[:count].tolist()):
        chosen.append(("random", *rest[at]))
    return [
        Picture(group, image_id, words, jpeg)
        for (group, image_id, words), jpeg in zip(
            chosen, _drawn(measured, data, [places[image_id] for _, image_id, _ in chosen]), strict=True
        )
    ]


def _places(data: Dataset) -> dict[int | str, int]:
    """Where each image stands in the data set, by id."""
    sources: list[Any] = [data, getattr(data, "file", None), getattr(data, "source", None)]
    for source in sources:
        if hasattr(source, "image_id"):
            return {source.image_id(i): i for i in range(len(data))}
    return {data.sample(0, i).id: i for i in range(min(len(data), _MOST_LOOKED_AT))}


@torch.inference_mode()
def _drawn(measured: Measured, data: Dataset, indices: Sequence[int]) -> Iterator[bytes]:
    model: Any = measured.model.eval()
    share = PICTURE_BYTES // max(1, len(indices))
    for index in indices:
        sample = data.sample(0, index)
        batch = collate([sample])
        batch = dataclasses.replace(batch, original_sizes=batch.sizes)
        result = result_of(seen(sample), model.classes, model.predict(batch.to(model.mean.device)), 0)
        yield as_jpeg(side_by_side(panels(sample, result)), share)


def as_jpeg(picture: Image, most: int) -> bytes:
    """A picture made as small as it must be.

    Args:
        picture: [H, W, 3].
        most: bytes that it may take, wherever a narrow one can.
    """
    width = min(picture.shape[1], _WIDEST)
    while True:
        height = max(1, round(picture.shape[0] * width / picture.shape[1]))
        shown = picture
        if width < picture.shape[1]:
            shown = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        _, data = cv2.imencode(".jpg", np.ascontiguousarray(shown[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])
        if len(data) <= most or width <= _NARROWEST:
            return bytes(data)
        width = max(_NARROWEST, width * 3 // 4)
