"""Samples for transforms that mix images, and a data set of two for them to mix."""

from __future__ import annotations

import numpy as np

from densekit.data.transforms.mixing import Pool
from densekit.data.transforms.pipeline import Pipeline
from densekit.types import Classes, Instance, Sample

CLASSES = Classes(tuple("abcdef"), (10, 11, 12, 13, 14, 15))


def cut(mask: np.ndarray) -> Instance:
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return Instance(0, 0, np.zeros((0, 0), np.uint8))
    rows, columns = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
    return Instance(int(xs.min()), int(ys.min()), mask[rows, columns].astype(np.uint8))


def whole(one: Instance, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[one.y : one.y + one.mask.shape[0], one.x : one.x + one.mask.shape[1]] = one.mask
    return mask


def extent(mask: np.ndarray) -> list[float]:
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def discs(count: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """[count, H, W] bool, overlapping, none empty."""
    random = np.random.default_rng(seed)
    ys, xs = np.mgrid[: size[0], : size[1]]
    centres, radii = random.uniform((0, 0), size, (count, 2)), random.uniform(2, 10, count)
    return np.stack([(ys - y) ** 2 + (xs - x) ** 2 <= r**2 for (y, x), r in zip(centres, radii)])


def objects(masks: np.ndarray, seed: int, first_label: int = 0) -> Sample:
    """Tight boxes around masks, on noise."""
    image = np.random.default_rng(seed).integers(0, 255, (*masks.shape[1:], 3), np.uint8)
    return Sample(
        image,
        id=seed,
        original_size=masks.shape[1:],
        seed=0,
        boxes=np.array([extent(m) for m in masks], np.float32).reshape(-1, 4),
        labels=first_label + np.arange(len(masks)),
        crowd=np.zeros(len(masks), bool),
        instances=[cut(m) for m in masks],
    )


def mixed(spec: dict, sample: Sample, *others: Sample, seed: int = 0, epoch: int = 0, epochs: float | None = None):
    """A sample through one transform, which may draw any of the others."""
    pipeline = Pipeline([spec])
    pipeline.epochs = epochs
    pool = Pool(len(others), epoch, CLASSES, lambda i: others[i])
    return pipeline(sample, np.random.default_rng(seed), pool)
