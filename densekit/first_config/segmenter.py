"""The settings of a segmenter, wherever its masks come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densekit.first_config.plan import Plan, colour, look_at, own_size
from densekit.first_config.wishes import Wishes


def segmenter(
    parts: dict[str, dict[str, Any]],
    files: dict[Path, str],
    lines: list[str],
    classes: Sequence[str],
    images: Sequence[Path],
    wishes: Wishes,
    *,
    layers: bool = False,
) -> Plan:
    """A plan for masks.

    Args:
        parts: data sets.
        files: to be written.
        lines: on what was found.
        classes: names.
        images: that are learned from.
        wishes: what is not left to the rule.
        layers: whether a pixel may have several classes.
    """
    channels, sizes = look_at(images)
    size = wishes.size or own_size(sizes, 512, 1024)
    return Plan(
        parts=parts,
        files=files,
        lines=lines,
        classes=classes,
        count=len(images),
        channels=channels,
        size=size,
        head={"name": wishes.head or "unet", **({"mode": "multilabel"} if layers else {})},
        train_transforms=[
            {"name": "ScaleJitter", "size": [size, size], "scale": [0.75, 1.5]},
            {"name": "HorizontalFlip", "p": 0.5},
            *colour(channels),
        ],
        eval_transforms=[{"name": "Resize", "long": size}] if wishes.size or (sizes.max(1) > size).any() else [],
        learning_rate=(7e-4, 1e-3),
        metric="mIoU",
    )
