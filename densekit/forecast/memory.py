"""How much memory the training steps of a config take, on a device that need not be there."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from densekit import machine
from densekit.config import Config
from densekit.engine.distributed import World
from densekit.forecast.disk import sizes_of
from densekit.forecast.steps import Part, Seen, steps_of
from densekit.forecast.trace import Trace, trace
from densekit.model import DenseModel
from densekit.precision import Precision

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
        seen: its data sets, and a look at each.
        world: ranks, and the device.
        precision: of the forward pass.
        process: bytes of this process without the model.
        held: bytes of the model in it.
        elsewhere: whether the run is planned for a GPU that is not here; it is traced as on the CPU.
    """

    model: DenseModel
    seen: Sequence[Seen]
    world: World
    precision: Precision
    process: int
    held: int
    elsewhere: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether the device has memory of its own."""
        return self.elsewhere or self.world.device.type != "cpu"

    def steps(self, config: Config) -> list[list[Part]]:
        """The kinds of steps of a config, see ``steps_of``."""
        return steps_of(config, self.seen, self.world)

    def trace(self, config: Config) -> Trace:
        """The steps of a config; one with several micro-batches takes two, since gradients then stay in between."""
        times = min(2, config.train.accumulate)
        kinds = [[part.batch for part in parts for _ in range(times)] for parts in self.steps(config)]
        return trace(config, self.model, kinds, self.world, self.precision)

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
    config: Config,
    model: DenseModel,
    seen: Sequence[Seen],
    world: World,
    precision: Precision,
    *,
    elsewhere: bool = False,
) -> Study:
    """Begin a study, before anything else takes memory."""
    held = sizes_of(model, config.train).model
    return Study(model, seen, world, precision, round((machine.memory_in_use() or 0.0) * 2**30) - held, held, elsewhere)
