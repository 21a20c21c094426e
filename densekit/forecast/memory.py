"""How much memory the training steps of a config take, on a device that need not be there."""

from __future__ import annotations

import dataclasses
import sys

from densekit import machine
from densekit.config import Config
from densekit.engine.distributed import World
from densekit.forecast.disk import sizes_of
from densekit.forecast.loading import Look, batch_of
from densekit.forecast.trace import Trace, trace
from densekit.model import DenseModel
from densekit.precision import Precision
from densekit.types import Batch

FRAGMENTED = 1.5 if sys.platform == "linux" else 1.0
"""How much more room glibc's heap takes than tensors at their peak, since its holes are never quite of the size that is
asked for next: 1.48, 1.49 and 1.51 in the three networks that it was fitted to."""

KERNELS = 20 * 2**20
"""Bytes of oneDNN's own programs, which it writes for each shape of a convolution."""

CUDA_CONTEXT, CUDA_ROUNDING = 600 * 2**20, 1.05
"""What CUDA and cuDNN take beside tensors, and how much more torch's allocator takes than was asked for: guesses."""


@dataclasses.dataclass(frozen=True, slots=True)
class Study:
    """What does not change between variants of a config.

    Attributes:
        model: as it was built.
        look: at its images.
        world: ranks, and the device.
        precision: of the forward pass.
        process: bytes of this process without the model.
        held: bytes of the model in it.
        elsewhere: whether the run is planned for a GPU that is not here; it is traced as on the CPU.
    """

    model: DenseModel
    look: Look
    world: World
    precision: Precision
    process: int
    held: int
    elsewhere: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether the device has memory of its own."""
        return self.elsewhere or self.world.device.type != "cpu"

    def images(self, config: Config) -> int:
        """Of a micro-batch of this rank."""
        return max(1, config.train.batch_size // config.train.accumulate // self.world.size)

    def batch(self, config: Config) -> Batch:
        """A micro-batch of this rank with the largest images that were seen."""
        return batch_of(config, self.look, self.images(config))

    def trace(self, config: Config) -> Trace:
        """The steps of a config; one with several micro-batches takes two, since gradients then stay in between."""
        parts = min(2, config.train.accumulate)
        return trace(config, self.model, self.batch(config), self.world, self.precision, parts=parts)

    def memory(self, config: Config) -> int:
        """Bytes at the peak of a step: of a GPU's memory, or of this process."""
        return self.at_peak(self.trace(config))

    def at_peak(self, traced: Trace) -> int:
        """Likewise of steps that were traced."""
        if self.on_gpu:
            return round(CUDA_ROUNDING * traced.peak) + CUDA_CONTEXT
        return self.process + KERNELS + round(FRAGMENTED * traced.peak)

    def fixed(self, config: Config) -> int:
        """Bytes that no smaller batch would spare."""
        held = sizes_of(self.model, config.train).memory
        return CUDA_CONTEXT + held if self.on_gpu else self.process + KERNELS + round(FRAGMENTED * held)


def study(
    config: Config, model: DenseModel, look: Look, world: World, precision: Precision, *, elsewhere: bool = False
) -> Study:
    """Begin a study, before anything else takes memory."""
    held = sizes_of(model, config.train).model
    return Study(model, look, world, precision, round((machine.memory_in_use() or 0.0) * 2**30) - held, held, elsewhere)
