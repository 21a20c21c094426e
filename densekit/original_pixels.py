"""Predictions on the images of a batch, brought to the pixels of their files and to the ids of their data set.

B images, K classes, H, W size.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.types import Batch, Detections, Segmentation


def detections_of_files(found: Detections, batch: Batch, ids: Tensor) -> Detections:
    """Boxes in the pixels of the files.

    Args:
        found: in the pixels of the batch, with 0-based labels.
        batch: it.
        ids: [K] of the classes.
    """
    scale = (batch.original_sizes / batch.sizes).flip(-1).repeat(1, 2).to(found.boxes)  # [B, 4]: x, y, x, y
    limit = batch.original_sizes.flip(-1).repeat(1, 2).to(found.boxes)
    boxes = torch.minimum(found.boxes * scale[:, None], limit[:, None])
    return dataclasses.replace(found, boxes=boxes, labels=ids[found.labels.long()])


def masks_of_files(found: Segmentation, batch: Batch, ids: Tensor) -> Segmentation:
    """Probabilities and masks in the pixels of the files; see ``detections_of_files``."""
    probabilities, masks = [], []
    for p, mask, size in zip(found.probabilities, found.masks, batch.numbers(batch.original_sizes)):
        multi_label = mask.dim() == 3
        if list(p.shape[-2:]) != size:
            p = F.interpolate(p[None], size=size, mode="bilinear", align_corners=False)[0]
            # max, not argmax: the same labels, and 50 times faster over the first dimension on the CPU.
            mask = (p >= 0.5).to(torch.uint8) if multi_label else p.max(0).indices
        probabilities.append(p)
        masks.append(mask if multi_label else ids[mask.long()])
    return Segmentation(probabilities, masks)
