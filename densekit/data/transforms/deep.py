"""What albumentations 2.0.8 does to images of more than 8 bits, which it takes as float32 in 0..1.

Most transforms take them as they take uint8. Two things differ:

* what is filled in (``fill``, ``drop_value``) is taken in the image's own units, 0..1, whatever the config says;
* some transforms work in 8 bits and come back as float32, with 256 values at most.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_FILLED = ("fill", "drop_value")


def with_fills_to_one(transforms: Sequence[Any]) -> list[Any]:
    """Copies of transforms that fill images in 0..1 with what the config says for 0..255."""
    copies = copy.deepcopy(list(transforms))
    for transform in leaves(copies):
        for name in _FILLED:
            value = getattr(transform, name, None)
            if isinstance(value, int | float):
                setattr(transform, name, value / 255)
            elif isinstance(value, Sequence) and not isinstance(value, str):
                setattr(transform, name, tuple(v / 255 for v in value))
    return copies


def in_eight_bits(transforms: Sequence[Any], channels: int) -> list[str]:
    """Names of the transforms that leave 256 values at most of an image of more than 8 bits, each once.

    Each one is tried on a smooth image: what it gives lies on whole numbers of 0..255, or it does not.
    """
    slope = np.linspace(0.1, 0.9, 64 * 64, dtype=np.float32).reshape(64, 64, 1)
    image = np.repeat(slope, channels, axis=2)
    return list(dict.fromkeys(type(t).__name__ for t in leaves(transforms) if _rounds(t, image)))


def _rounds(transform: Any, image: Any) -> bool:
    import albumentations

    if not isinstance(transform, albumentations.ImageOnlyTransform):
        return False
    once = copy.deepcopy(transform)
    once.p = 1.0
    compose = albumentations.Compose([once], p=1.0, seed=0)
    try:
        values = compose(image=image.copy())["image"] * 255
    except Exception:  # what it cannot take is told when it comes to an image
        return False
    return bool(np.abs(values - np.rint(values)).max() < 1e-3)


def leaves(transforms: Sequence[Any]) -> Iterator[Any]:
    """Every transform, also those inside of ``OneOf`` and its like."""
    import albumentations

    for transform in transforms:
        if isinstance(transform, albumentations.BaseCompose):
            yield from leaves(transform.transforms)
        else:
            yield transform
