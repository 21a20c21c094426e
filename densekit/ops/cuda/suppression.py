"""Greedy suppression on a GPU: an operator around the kernels of ``suppression_kernels.py``, and what they compute.

B images, n boxes an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from densekit.ops import boxes as box_ops
from densekit.ops.cuda import trial

MOST_BOXES = 32_768
"""Of a run: the bits of who hits whom take 128 MiB an image then."""


def suppress(boxes: Tensor, valid: Tensor, groups: Tensor | None, parts: Sequence[int], threshold: float) -> Tensor:
    """Keep the boxes that no better kept box overlaps by more than ``threshold``.

    Args:
        boxes: [B, n, 4] float32, best first within each part.
        valid: [B, n] bool: the others are not kept; they must be empty, so that they overlap nothing.
        groups: [B, n] int64: boxes of different groups ignore one another; None: all are of one.
        parts: lengths of neighbouring runs of boxes that ignore one another, at most ``MOST_BOXES`` each.
        threshold: IoU.

    Returns:
        [B, n] bool.
    """
    return cast(Tensor, torch.ops.densekit.suppress(boxes, valid, groups, list(parts), threshold))


def works(device: torch.device) -> bool:
    """Whether ``suppress`` may be taken on a device, see ``trial.py``."""
    return trial.works("suppression", device, agrees)


def reference(boxes: Tensor, valid: Tensor, groups: Tensor | None, parts: Sequence[int], threshold: float) -> Tensor:
    """What ``suppress`` computes, box by box."""
    kept = torch.zeros_like(valid)
    hits = box_ops.iou(boxes, boxes) > threshold
    for image in range(len(boxes)):
        for first, length in zip([sum(parts[:i]) for i in range(len(parts))], parts):
            for box in range(first, first + length):
                better = kept[image, first:box] & hits[image, box, first:box]
                if groups is not None:
                    better = better & (groups[image, first:box] == groups[image, box])
                kept[image, box] = valid[image, box] & ~better.any()
    return kept


def agrees(device: torch.device) -> bool:
    """Whether the kernels keep what the reference keeps of some chains of boxes on a device."""
    left = torch.rand(1, 140, generator=torch.Generator().manual_seed(0)) * 280
    boxes = torch.stack([left, left * 0, left + 10, left * 0 + 10], -1)
    valid, groups = torch.arange(140)[None] % 7 != 3, torch.arange(140)[None] % 2
    boxes = torch.where(valid[..., None], boxes, 0.0)
    found = suppress(boxes.to(device), valid.to(device), groups.to(device), [100, 40], 0.3)
    return torch.equal(found.cpu(), reference(boxes, valid, groups, [100, 40], 0.3))


# Not by torch.library.custom_op: the first call of what that makes imports torch's compiler.
torch.library.define(
    "densekit::suppress", "(Tensor boxes, Tensor valid, Tensor? groups, SymInt[] parts, float threshold) -> Tensor"
)


@torch.library.impl("densekit::suppress", "default")
def _suppress(boxes: Tensor, valid: Tensor, groups: Tensor | None, parts: list[int], threshold: float) -> Tensor:
    from densekit.ops.cuda import suppression_kernels

    return suppression_kernels.suppress(boxes, valid, groups, parts, threshold)


@torch.library.register_fake("densekit::suppress")  # type: ignore[untyped-decorator]
def _(boxes: Tensor, valid: Tensor, groups: Tensor | None, parts: list[int], threshold: float) -> Tensor:
    return torch.empty_like(valid)
