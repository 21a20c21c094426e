"""Which samples make which batch: pure functions of (seed, step), the same whatever the number of ranks and workers.

An epoch is a shuffle of all images cut into batches; the few that do not fill a last batch sit that epoch out. Where
images are to be repeated, each comes as often as its number says on average, rounded up or down as the epoch draws. The
global batch of a step is fixed first, then each rank takes its slice.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.types import DensekitError

Address = tuple[int, int]
"""(epoch, index) of a sample."""


def sample_random(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator that all draws for one sample come from."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, index])))


def draw_seed(random: np.random.Generator) -> int:
    """A random number for ``Sample.seed``."""
    return int(random.integers(2**63 - 1))


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The batches of training.

    Args:
        count: samples in the data set.
        batch_size: images in a global batch.
        seed: of the run.
        ratios: [count] width / height: batches are made of images wider than high, or of the others, as far as they go;
            None: any images.
        repeats: [count] how often an epoch shows each image, on average; None: once.
    """

    count: int
    batch_size: int
    seed: int
    ratios: npt.NDArray[np.float32] | None = None
    repeats: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise DensekitError("the data set holds no images to train on; check its paths")
        if self.batch_size < 1:
            raise DensekitError(f"a batch of {self.batch_size} images cannot be made; give at least 1")

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one epoch, at least 1."""
        return max(1, self.length // self.batch_size)

    @functools.cached_property
    def length(self) -> int:
        """Samples in one epoch; those that fill no batch are among them."""
        return epoch_length(self.count, self.repeats)

    @property
    def rounds(self) -> int:
        """Epochs that make a batch where it is larger than one."""
        return max(1, -(-self.batch_size // self.length))

    @functools.cached_property
    def copies(self) -> int:
        """Epochs of addresses that an epoch takes, so that an image that it shows twice is drawn anew."""
        return 1 if self.repeats is None else int(self.repeats.max()) + 1

    def epochs(self, steps: int) -> float:
        """Epochs of addresses in so many batches."""
        return steps / self.batches_per_epoch * self.rounds * self.copies

    def batch(self, step: int) -> list[Address]:
        """The samples of the global batch of a step, counted from 0."""
        epoch, position = divmod(step, self.batches_per_epoch)
        start = position * self.batch_size
        rows = _order(self, epoch) if self.rounds == 1 else self._several(epoch)
        return [(int(e), int(i)) for e, i in rows[start : start + self.batch_size]]

    def slice(self, step: int, rank: int, world_size: int) -> list[Address]:
        """The part of the global batch that a rank takes."""
        if self.batch_size % world_size:
            raise DensekitError(f"{self.batch_size} images cannot be shared by {world_size} ranks; make it a multiple")
        share = self.batch_size // world_size
        return self.batch(step)[rank * share : (rank + 1) * share]

    def _several(self, epoch: int) -> npt.NDArray[np.int64]:
        """A batch larger than an epoch: several epochs' worth, so that no two samples have the same address."""
        return np.concatenate([_order(self, epoch * self.rounds + r) for r in range(self.rounds)])


def epoch_length(count: int, repeats: npt.NDArray[np.float64] | None) -> int:
    """Samples in an epoch of so many images; the same in every epoch."""
    return count if repeats is None else max(1, int(repeats.sum()))


@functools.lru_cache(maxsize=4)
def _order(plan: BatchPlan, epoch: int) -> npt.NDArray[np.int64]:
    """[length, 2] the addresses of an epoch in the order of its batches."""
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([plan.seed, epoch])))
    addresses = _members(plan, epoch, random)
    return addresses[_shuffled(plan, addresses[:, 1], random)]


def _members(plan: BatchPlan, epoch: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """[length, 2] the addresses of an epoch, the images in their order.

    Systematic sampling: the images, in a drawn order, lie along a line, each as long as its number of repeats, and a
    comb of unit distance, whose first tooth is drawn, picks them. So each is shown as often as its number says on
    average, rounded up or down, and all epochs are of one length.
    """
    if plan.repeats is None:
        times = np.ones(plan.count, np.int64)
    else:
        order = random.permutation(plan.count)
        ends = np.cumsum(plan.repeats[order])
        ends *= plan.length / ends[-1]
        ends[-1] = plan.length
        times = np.empty(plan.count, np.int64)
        times[order] = np.diff(np.floor(ends + random.random()).astype(np.int64), prepend=0)
    images = np.repeat(np.arange(plan.count), times)
    copy = np.arange(len(images)) - np.repeat(np.cumsum(times) - times, times)
    return np.stack((epoch * plan.copies + copy, images), 1)


def _shuffled(plan: BatchPlan, images: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """[length] places of samples of the given images, in the order of an epoch's batches."""
    shuffled = random.permutation(len(images))
    if plan.ratios is None or plan.rounds > 1:
        return shuffled
    wide = plan.ratios[images[shuffled]] >= 1
    groups = [shuffled[wide], shuffled[~wide]]
    full = [g[: len(g) // plan.batch_size * plan.batch_size].reshape(-1, plan.batch_size) for g in groups]
    rest = np.concatenate([g[f.size :] for g, f in zip(groups, full)])
    random.shuffle(rest)
    mixed = rest[: len(rest) // plan.batch_size * plan.batch_size].reshape(-1, plan.batch_size)
    batches = random.permutation(np.concatenate([*full, mixed]))
    return np.concatenate([batches.ravel(), rest[mixed.size :]])


def eval_batches(
    count: int, batch_size: int, rank: int, world_size: int, like: npt.NDArray[Any] | None = None
) -> list[list[int]]:
    """A rank's batches of an evaluation, every sample once over the ranks.

    The batches do not depend on the number of ranks (they are dealt out whole), so neither do the predictions.

    Args:
        count: samples in the data set.
        batch_size: images in a batch.
        rank: which rank's.
        world_size: number of ranks.
        like: [count] numbers: images with the same or neighbouring ones are put together.
    """
    order = np.arange(count) if like is None else np.argsort(like, kind="stable")
    return [order[start : start + batch_size].tolist() for start in range(0, count, batch_size)][rank::world_size]
