"""Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407): the plain mean of weights along the way.

The mean of weights has no batch-norm statistics: those of each set of weights belong to its own activations. So they
are computed anew from training images before the mean is used (section 3.2 there).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from densekit.engine.distributed import World, mean_over_ranks
from densekit.engine.optim import AveragedModel
from densekit.engine.step import seed_step
from densekit.model import DenseModel
from densekit.precision import Precision, autocast
from densekit.types import Batch


class EqualAverage(AveragedModel):
    """The mean of a model's weights at chosen moments, in a copy that can be evaluated; before the first the weights.

    How many weights the mean holds follows from the step, so there is no count to save. Buffers are the model's own of
    the last moment.

    Args:
        model: what to average.
        start: updates of the weights before the first that counts.
        every: updates from one to the next.
    """

    def __init__(self, model: DenseModel, *, start: int, every: int) -> None:
        super().__init__(model, decay=0.0)
        self.start, self.every = start, every
        self._weights: tuple[list[Tensor], list[Tensor]] = list(self.model.parameters()), list(model.parameters())
        self._buffers = list(self.model.buffers()), list(model.buffers())

    def holds_several(self, step: int) -> bool:
        """Whether it is the mean of more than one model's weights after so many updates."""
        return step >= self.start + self.every

    @torch.no_grad()
    def update(self, step: int, skip: Tensor | None = None) -> None:
        """Take in the model after update number ``step`` (0-based), where its moment has come.

        After a step that was skipped the model holds the weights before it: these count then, whatever ``skip`` says.
        """
        since = step + 1 - self.start
        if since > 0 and since % self.every:
            return
        mine, theirs = self._weights
        if since <= 0:
            torch._foreach_copy_(mine, theirs)
        else:
            torch._foreach_lerp_(mine, theirs, 1 / (since // self.every + 1))
        torch._foreach_copy_(*self._buffers)


@torch.no_grad()
def renew_statistics(
    average: DenseModel,
    learned: DenseModel,
    batches: Iterable[Batch],
    *,
    step: int,
    seed: int,
    precision: Precision,
    world: World,
) -> None:
    """Compute batch norm's statistics anew: the mean over some batches of the training set, and over the ranks.

    Args:
        average: whose statistics to compute.
        learned: the model in training: what rests there keeps its statistics here.
        batches: this rank's.
        step: decides the random numbers, with ``seed``.
        seed: of the run.
        precision: of the forward pass.
        world: ranks.
    """  # fmt: skip
    modes = [module.training for module in average.modules()]
    for own, other in zip(average.modules(), learned.modules()):
        own.training = other.training
    norms = [m for m in average.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
    norms = [norm for norm in norms if norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    statistics = _of_all_sets(average, norms)
    before = [[buffer.clone() for buffer in buffers] for buffers in statistics]
    for norm in norms:
        norm.momentum = None  # the plain mean over the batches that a norm sees
    for mean, variance, seen in statistics:
        mean.zero_(), variance.fill_(1), seen.zero_()
    for micro, batch in enumerate(batches if norms else ()):
        seed_step(seed, step, micro, world.rank)
        with average.using(batch), autocast(precision, world.device):
            average(batch.to(world.device))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    for buffers, old in zip(statistics, before):
        any_batch = bool(buffers[2])  # else they stay as they were
        for buffer, value in zip(buffers[:2], old):
            buffer.copy_(mean_over_ranks(buffer) if any_batch else value)
    for own, mode in zip(average.modules(), modes):
        own.training = mode


def _of_all_sets(model: DenseModel, norms: Sequence[nn.modules.batchnorm._NormBase]) -> list[list[Tensor]]:
    """Mean, variance and number of batches of each norm, and of each data set where it has its own."""
    apart = model.statistics
    turns = [contextlib.nullcontext] if apart is None else [functools.partial(apart.use, name) for name in apart.sets]
    found: dict[int, list[Tensor]] = {}
    for turn in turns:
        with turn():
            for norm in norms:
                own = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
                found[id(norm.running_mean)] = [buffer for buffer in own if buffer is not None]
    return list(found.values())
