"""What keeps a prediction from depending on its neighbours in the batch: each image on a canvas of its own.

A batch is padded to its largest image. What lies in that padding is not what a network sees beside an image alone:
there every convolution begins anew with zeros, while biases, norms and what is convolved from the image fill the
padding of a batch, and come back at the image's edge. Anchors there compete for the places of the first stage, poolings
and attention over the whole map count it. So predictions are made for images of one canvas at a time: the image's own
size, padded as it is alone, whatever stands beside it.

B images of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.types import Batch, BoxTargets, Classification, Detections, Level, Predictions, Segmentation, Targets

Rows = list[int]


def split(batch: Batch, stride: int, levels: Sequence[Level]) -> list[tuple[Rows, Batch]]:
    """The batch by canvas, without waiting for its device.

    Args:
        batch: any.
        stride: sides of a canvas are multiples of this.
        levels: of the stored maps, where the batch brings some.

    Returns:
        For each canvas the places of its images in the batch, and a batch of them that is no larger than the canvas;
        the batch itself where all have the same.
    """
    canvases: dict[tuple[int, int], Rows] = {}
    for row, (height, width) in enumerate(batch.numbers(batch.sizes)):
        canvas = (_padded(height, batch.pad_to, stride), _padded(width, batch.pad_to, stride))
        canvases.setdefault(canvas, []).append(row)
    parts = []
    for canvas, rows in canvases.items():
        alone = len(canvases) == 1 and batch.images.shape[2] <= canvas[0] and batch.images.shape[3] <= canvas[1]
        parts.append((rows, batch if alone else _part(batch, rows, canvas, {level.name: level for level in levels})))
    return parts


def _padded(side: int, *multiples: int) -> int:
    for multiple in multiples:
        side = -(-side // multiple) * multiple
    return side


def join(parts: Sequence[tuple[Rows, Predictions]]) -> Predictions:
    """The predictions of all parts in the order of the batch."""
    if len(parts) == 1:
        return parts[0][1]
    whole = [predictions for _, predictions in parts]
    places = [place for rows, _ in parts for place in rows]
    back = sorted(range(len(places)), key=places.__getitem__)
    if all(isinstance(one, Segmentation) for one in whole):
        lists = [[m for one in whole for m in getattr(one, name)] for name in ("probabilities", "masks")]
        return Segmentation(*([values[i] for i in back] for values in lists))
    if all(isinstance(one, Classification) for one in whole):
        return Classification(*(_ordered(whole, name, back) for name in ("probabilities", "labels")))
    assert all(isinstance(one, Detections) for one in whole), "one head gives one kind of predictions"
    names = [f.name for f in dataclasses.fields(Detections) if getattr(whole[0], f.name) is not None]
    return Detections(**{name: _ordered(whole, name, back) for name in names})


def mean(parts: Sequence[tuple[Rows, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The losses of all parts, each weighted by its images."""
    count = sum(len(rows) for rows, _ in parts)
    if len(parts) == 1:
        return parts[0][1]
    return {
        name: torch.stack([losses[name] * (len(rows) / count) for rows, losses in parts]).sum(0) for name in parts[0][1]
    }


def _ordered(whole: Sequence[Predictions], name: str, back: Rows) -> Tensor:
    """[B, ...] one attribute of all parts, padded to one shape; by slices, since indices would have to be copied."""
    values: list[Tensor] = [getattr(one, name) for one in whole]
    most = max(value.shape[1] for value in values) if values[0].dim() > 1 else 0
    single = [one for value in values for one in torch.split(_longer(value, most), 1)]
    return torch.cat([single[i] for i in back])


def _longer(values: Tensor, count: int) -> Tensor:
    """[b, n, ...] -> [b, count, ...], padded with zeros; other shapes stay."""
    spare = count - values.shape[1] if values.dim() > 1 else 0
    return F.pad(values, [0, 0] * (values.dim() - 2) + [0, spare]) if spare else values


def alone(batch: Batch, row: int) -> Batch:
    """One image, a batch of its own at its own size; it brings no stored maps."""
    height, width = batch.numbers(batch.sizes)[row]
    return _part(dataclasses.replace(batch, maps=None), [row], (height, width), {})


def _part(batch: Batch, rows: Rows, canvas: tuple[int, int], levels: dict[str, Level]) -> Batch:
    height, width = canvas
    take = _taker(rows)
    sizes, original_sizes = take(batch.sizes), take(batch.original_sizes)
    both = ((sizes, batch.sizes), (original_sizes, batch.original_sizes))
    host = tuple((mine, [batch.numbers(theirs)[row] for row in rows]) for mine, theirs in both)
    return Batch(
        images=take(batch.images[..., :height, :width]),
        sizes=sizes,
        original_sizes=original_sizes,
        ids=[batch.ids[row] for row in rows],
        seeds=take(batch.seeds),
        targets=None if batch.targets is None else _targets(batch.targets, take, canvas),
        truth=None if batch.truth is None else [batch.truth[row] for row in rows],
        maps=None if batch.maps is None else _maps(batch.maps, take, canvas, levels),
        pad_to=batch.pad_to,
        heads=batch.heads,
        data_set=batch.data_set,
        host=host,
    )


def _taker(rows: Rows) -> Callable[[Tensor], Tensor]:
    """Some rows of a tensor; by slices, since indices would have to be copied to the device."""
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return lambda values: values[rows[0] : rows[0] + len(rows)]
    return lambda values: torch.cat([values[row : row + 1] for row in rows])


def _targets(targets: Targets, take: Callable[[Tensor], Tensor], canvas: tuple[int, int]) -> Targets:
    boxes, masks, labels = targets.boxes, targets.masks, targets.labels
    return Targets(
        boxes=None if boxes is None else _boxes(boxes, take),
        masks=None if masks is None else take(masks[..., : canvas[0], : canvas[1]]),
        labels=None if labels is None else take(labels),
    )


def _boxes(boxes: BoxTargets, take: Callable[[Tensor], Tensor]) -> BoxTargets:
    masks = boxes.masks
    if masks is not None:  # the pixels stay where they are: each image's cuts say where its own begin
        masks = dataclasses.replace(masks, starts=take(masks.starts), cuts=take(masks.cuts))
    return BoxTargets(take(boxes.boxes), take(boxes.labels), take(boxes.crowd), take(boxes.valid), masks)


def _maps(
    maps: dict[str, Tensor], take: Callable[[Tensor], Tensor], canvas: tuple[int, int], levels: dict[str, Level]
) -> dict[str, Tensor]:
    return {
        name: take(values[..., : canvas[0] // levels[name].stride, : canvas[1] // levels[name].stride])
        for name, values in maps.items()
    }
