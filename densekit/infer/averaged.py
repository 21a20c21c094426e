"""Test-time augmentation of several heads: one pass of the backbone a flipped or scaled copy, whatever the heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from densekit.infer.augmented import Flip, MeanMasks, check_augmentation, check_pixels, joined, views, without_padding
from densekit.infer.augmented_boxes import MergedBoxes, nms_threshold, padded
from densekit.infer.merging import Found
from densekit.model import DenseModel
from densekit.types import Batch, Detections, Predictions, Segmentation


@torch.inference_mode()
def predict_averaged(
    model: DenseModel,
    batch: Batch,
    *,
    flips: Sequence[Flip],
    scales: Sequence[float],
    heads: Sequence[str] | None = None,
) -> dict[str, Predictions]:
    """What several heads find over every flip at every scale: boxes merged, probabilities averaged.

    Args:
        model: in evaluation mode.
        batch: on the model's device.
        flips: see ``predict_augmented``.
        scales: likewise.
        heads: names of detectors and segmenters; None: all.

    Returns:
        By head, as ``detect_augmented`` and ``predict_augmented`` give it.

    Raises:
        DensekitError: as ``check_augmentation``, or the batch brings stored maps.
    """
    check_augmentation(flips, scales)
    check_pixels(batch)
    names = list(model.heads) if heads is None else list(heads)
    boxes: dict[str, list[Found]] = {}
    masks: dict[str, list[Segmentation]] = {}
    for part in without_padding(batch):
        merged, means = _empty(model, part, names)
        for flip, view in views(part, flips, scales):
            for head, found in model.predict_all(view, names).items():
                if isinstance(found, Detections):
                    merged[head].add(flip, found)
                else:
                    assert isinstance(found, Segmentation)
                    means[head].add(flip, found)
        for head, own in merged.items():
            boxes.setdefault(head, []).extend(own.result())
        for head, mean in means.items():
            masks.setdefault(head, []).append(mean.result())
    return {head: padded(boxes[head]) if head in boxes else joined(masks[head]) for head in names}


def _empty(model: DenseModel, part: Batch, names: Sequence[str]) -> tuple[dict[str, MergedBoxes], dict[str, MeanMasks]]:
    detectors = [head for head in names if model.head(head).task == "detection"]
    sizes = part.numbers(part.original_sizes)
    return (
        {head: MergedBoxes(sizes, nms_threshold(model, head)) for head in detectors},
        {head: MeanMasks(model.class_ids(head)) for head in names if head not in detectors},
    )
