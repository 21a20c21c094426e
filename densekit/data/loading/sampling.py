"""Which samples make which batch: pure functions of (seed, step), the same whatever the number of ranks and workers.

An epoch is a shuffle of all images cut into batches; the few that do not fill a last batch sit that epoch out. The
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
    """

    count: int
    batch_size: int
    seed: int
    ratios: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise DensekitError("the data set holds no images to train on; check its paths")
        if self.batch_size < 1:
            raise DensekitError(f"a batch of {self.batch_size} images cannot be made; give at least 1")

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one epoch, at least 1."""
        return max(1, self.count // self.batch_size)

    @property
    def rounds(self) -> int:
        """Epochs of addresses that an epoch takes: more than one where a batch is larger than the data set."""
        return -(-self.batch_size // self.count) if self.count < self.batch_size else 1

    def epochs(self, steps: int) -> float:
        """Epochs of addresses in so many batches."""
        return steps / self.batches_per_epoch * self.rounds

    def batch(self, step: int) -> list[Address]:
        """The samples of the global batch of a step, counted from 0."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if self.count < self.batch_size:
            return self._repeated(epoch)
        start = position * self.batch_size
        return [(epoch, int(i)) for i in _order(self, epoch)[start : start + self.batch_size]]

    def slice(self, step: int, rank: int, world_size: int) -> list[Address]:
        """The part of the global batch that a rank takes."""
        if self.batch_size % world_size:
            raise DensekitError(f"{self.batch_size} images cannot be shared by {world_size} ranks; make it a multiple")
        share = self.batch_size // world_size
        return self.batch(step)[rank * share : (rank + 1) * share]

    def _repeated(self, epoch: int) -> list[Address]:
        """A batch larger than the data set: several epochs' worth, so that no two samples have the same address."""
        epochs = range(epoch * self.rounds, (epoch + 1) * self.rounds)
        addresses = [(e, int(i)) for e in epochs for i in _order(self, e)]
        return addresses[: self.batch_size]


@functools.lru_cache(maxsize=4)
def _order(plan: BatchPlan, epoch: int) -> npt.NDArray[np.int64]:
    """[count] the samples of an epoch in the order of its batches."""
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([plan.seed, epoch])))
    shuffled = random.permutation(plan.count)
    if plan.ratios is None or plan.count < plan.batch_size:
        return shuffled
    wide = plan.ratios[shuffled] >= 1
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
