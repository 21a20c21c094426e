"""One update of the weights: forward, backward, guard, update, average.

The step asks the host nothing on a GPU: whether the loss was finite is decided on the device (the fused optimiser
skips the update) and read one step later. Every random draw is a function of (seed, step, micro-batch, rank), so a
resumed run needs no generator states.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from densekit.engine.compiled import Compiled
from densekit.engine.distributed import World, mean_over_ranks
from densekit.engine.freezing import Freezing
from densekit.engine.loss_scale import LossScale
from densekit.engine.loss_weights import LossWeights
from densekit.engine.optim import AveragedModel, Schedule, set_rate
from densekit.errors import DensekitError
from densekit.memory import describe_batch, is_out_of_memory
from densekit.model import DenseModel
from densekit.precision import Precision, autocast, why_not
from densekit.set_statistics import NormStatistics
from densekit.types import Batch


def seed_step(seed: int, step: int, micro: int, rank: int) -> None:
    """Make dropout, stochastic depth and the like a pure function of where the run is."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, micro, rank]).generate_state(1)[0]))


@dataclasses.dataclass(slots=True)
class StepResult:
    """What one step gave; tensors stay on the device until someone reads them.

    Attributes:
        losses: each loss, averaged over the micro-batches and the ranks.
        norm: of the gradient, before clipping.
        bad: scalar, 1 where the loss or gradient was not finite on any rank: the update was skipped; else 0.
        batches: what went in, kept so that a bad step can be written down.
        step: its number.
        weights: what the losses of the heads were multiplied by, where that is learned.
    """

    losses: dict[str, Tensor]
    norm: Tensor
    bad: Tensor
    batches: Sequence[Batch]
    step: int
    weights: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class TrainStep:
    """Callable that does one step.

    Args:
        model: gives losses for a batch.
        optimizer: fused SGD or AdamW.
        schedule: factor of the learning rate at a step.
        world: ranks; with several the model is wrapped in DDP.
        seed: of the run.
        precision: of the forward pass.
        clip: largest norm of the gradient; None does not clip.
        average: averaged weights to keep, or None.
        freezing: what rests at which step; None lets all learn from the start.
        weights: what the losses of a head are multiplied by; None: nothing.
        fixed_norms: norms that are as in evaluation.
        compiled: the model with its forward and losses compiled; None runs it plain.
        skip_limit: how many steps that are not finite may be skipped. From the first one beyond on no update is
            applied, so that the weights stay as they were before it until someone looks at ``StepResult.bad``.
    """

    def __init__(
        self,
        model: DenseModel,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        world: World,
        seed: int,
        precision: Precision = "fp32",
        clip: float | None = None,
        average: AveragedModel | None = None,
        freezing: Freezing | None = None,
        weights: LossWeights | None = None,
        fixed_norms: Sequence[nn.Module] = (),
        compiled: Compiled | None = None,
        skip_limit: int = 0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.world = world
        self.seed = seed
        self.precision: Precision = precision
        self.clip = clip
        self.average = average
        self.freezing = freezing
        self.weights = weights or LossWeights()
        self.fixed_norms = fixed_norms
        self.skip_limit = skip_limit
        self.scaler = LossScale(world.device, enabled=precision == "fp16")
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._alone: nn.Module = model if compiled is None else compiled
        self.runner = _over_ranks(self._alone) if world.size > 1 else self._alone
        self._statistics = _running_statistics(model)
        self._skipped = torch.zeros((), device=world.device)

    def __call__(self, batches: Sequence[Batch], step: int) -> StepResult:
        """Update the weights from the micro-batches of this rank.

        Raises:
            DensekitError: out of memory, with what was in the batch and which settings to change.
        """
        self.begin(step)
        set_rate(self.optimizer, self.schedule(step))
        self.optimizer.zero_grad(set_to_none=True)
        before = self._flat_statistics()
        try:
            losses = self._learn(batches, step, before)
            norm = self._gradient_norm()
            bad, stay = self._judge(losses, norm)
            weights = self.weights.learned()
            self._update(losses, norm, stay)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory(batches, self.world.device) from None
        self._settle_statistics(before, stay)
        if self.average is not None:
            self.average.update(step, skip=stay)
        return StepResult(losses, norm, bad, batches, step, weights)

    def begin(self, step: int) -> None:
        """Put the model into training mode, but for what rests at a step."""
        self.model.train()
        if self.freezing is not None and self.freezing.apply(step) and self.world.size > 1:
            self.runner = _over_ranks(self._alone)  # DDP waits for the gradients that there were when it was made
        for norm in self.fixed_norms:
            norm.train(False)

    @property
    def model_to_use(self) -> DenseModel:
        """The averaged model where there is one, else the trained one: what is evaluated and saved as best."""
        return self.model if self.average is None else self.average.model

    def rate(self, step: int) -> float:
        """The largest learning rate of a parameter group at a step."""
        return max(float(group["base_lr"]) for group in self.optimizer.param_groups) * self.schedule(step)

    def resume_skipped(self, count: int) -> None:
        """Take over how many steps were skipped before this process began."""
        self._skipped.fill_(float(count))

    def _learn(self, batches: Sequence[Batch], step: int, before: Tensor) -> dict[str, Tensor]:
        """Losses and gradients; anew and plain where the compiler fails at the backward pass, which it meets last."""
        try:
            return self._backward(batches, step)
        except RuntimeError as error:
            if not (isinstance(self._alone, Compiled) and self._alone.give_way(error)):
                raise
        self.optimizer.zero_grad(set_to_none=True)
        self._settle_statistics(before, torch.ones_like(self._skipped))
        return self._backward(batches, step)

    def _backward(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        shares, weights = head_shares(self.model, batches), self.weights.current()
        self.weights.begin()
        for micro, batch in enumerate(batches):
            seed_step(self.seed, step, micro, self.world.rank)
            last = micro == len(batches) - 1
            ddp = isinstance(self.runner, DistributedDataParallel)
            syncs = contextlib.nullcontext() if last or not ddp else self.runner.no_sync()  # type: ignore[operator]
            with syncs, self.model.using(batch):
                with autocast(self.precision, self.world.device):
                    losses: dict[str, Tensor] = self.runner(batch)
                parts = head_losses(self.model, losses, shares)
                self.weights.observe(parts, self.scaler.factor)
                total = total_loss(parts, weights)
                if ddp and last:
                    total = total + _nothing_of(self.model, batch)
                self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            for name, value in losses.items():
                part = value.detach().float() / _of_head(self.model, name, shares)
                sums[name] = sums[name] + part if name in sums else part
        self._let_rest(shares)
        # A loss that is not finite on one rank is so in the mean: all ranks judge alike.
        return dict(zip(sums, mean_over_ranks(torch.stack(list(sums.values()))).unbind()))

    def _let_rest(self, shares: Mapping[str, int]) -> None:
        """A head that no micro-batch trained stays as it is, whatever decay and momentum it has."""
        for name, count in shares.items():
            if not count:
                for parameter in self.model.heads[name].parameters():
                    parameter.grad = None

    def _gradient_norm(self) -> Tensor:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = self.scaler.unscale(torch.nn.utils.get_total_norm(gradients))
        if self.clip is not None:  # the share that is left is that of the scaled gradients too
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        return norm

    def _judge(self, losses: dict[str, Tensor], norm: Tensor) -> tuple[Tensor, Tensor]:
        """Whether this step is bad, and whether the weights must stay: bad, or one bad step too many before it."""
        finite = torch.isfinite(torch.stack(list(losses.values()))).all()
        # With fp16 an overflowing gradient is part of the search for the scale, not a fault.
        finite = finite if self.scaler.enabled else finite & torch.isfinite(norm)
        bad = (~finite).float()
        stay = torch.maximum(bad, (self._skipped > self.skip_limit).float())
        self._skipped += bad
        return bad, stay

    def _update(self, losses: Mapping[str, Tensor], norm: Tensor, stay: Tensor) -> None:
        overflow = (~torch.isfinite(norm)).float()
        rests = torch.maximum(stay, overflow)
        factor = self.scaler.factor if self.scaler.enabled else None
        if self.world.device.type == "mps":  # no fused optimiser there
            if not bool(rests):
                for gradient in (p.grad for p in self.parameters if factor is not None and p.grad is not None):
                    gradient.div_(factor)
                self.optimizer.step()
        else:
            # A fused optimiser leaves weights and state as they are where found_inf is 1, decided on the device, and
            # takes the factor out of the gradients.
            self.optimizer.found_inf = rests  # type: ignore[attr-defined]
            self.optimizer.grad_scale = factor  # type: ignore[attr-defined]
            self.optimizer.step()
        if self.weights.learns:
            self.weights.update(head_losses(self.model, losses), self.scaler.factor, rests)
        self.scaler.update(overflow, stay)

    def _flat_statistics(self) -> Tensor:
        return torch.cat([buffer.flatten() for buffer in self._statistics]) if self._statistics else torch.zeros(0)

    @torch.no_grad()
    def _settle_statistics(self, before: Tensor, stay: Tensor) -> None:
        """Batch-norm statistics: as before a skipped step, else the mean over the ranks, the same on each."""
        if not self._statistics:
            return
        settled = torch.where(stay > 0, before, mean_over_ranks(self._flat_statistics()))
        parts = torch.split(settled, [buffer.numel() for buffer in self._statistics])
        torch._foreach_copy_(self._statistics, list(parts))


def head_shares(model: DenseModel, batches: Sequence[Batch]) -> dict[str, int]:
    """How many of the micro-batches each head learns from."""
    learning = [model.learning(batch) for batch in batches]
    return {name: sum(name in names for names in learning) for name in model.heads}


def head_losses(
    model: DenseModel, losses: Mapping[str, Tensor], shares: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """The sum of the losses of each head that has some.

    Args:
        model: names the losses.
        losses: of a micro-batch, or of a step.
        shares: micro-batches of the step that each head learns from, whose mean counts; None: of a step.
    """
    parts = {}
    for head in model.heads:
        own = [value.float() for name, value in losses.items() if name.startswith(model.prefix(head))]
        if own:
            total = torch.stack(own).sum()
            parts[head] = total if shares is None else total / shares[head]
    return parts


def total_loss(parts: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
    """What a micro-batch adds to the loss of a step.

    Args:
        parts: of the heads that learn from it.
        weights: of the heads; 1 where one is not named.
    """
    return torch.stack([part * weights.get(head, 1.0) for head, part in parts.items()]).sum()


def _of_head(model: DenseModel, loss: str, values: Mapping[str, int]) -> int:
    return next(value for head, value in values.items() if loss.startswith(model.prefix(head)))


def _nothing_of(model: DenseModel, batch: Batch) -> Tensor | float:
    """0, as a function of the weights of the heads that do not learn from a batch: DDP waits for every gradient."""
    resting = [head for name, head in model.heads.items() if name not in model.learning(batch)]
    return sum((p.float().sum() * 0 for head in resting for p in head.parameters() if p.requires_grad), 0.0)


def _over_ranks(runner: nn.Module) -> nn.Module:
    """Average the gradients over the ranks."""
    # 1x1 kernels have the same layout under two sets of strides; the copy that torch warns of costs nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(runner, gradient_as_bucket_view=True)


def _running_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass in training changes."""
    return [
        buffer
        for module in model.modules()
        if isinstance(module, NormStatistics)
        or (isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]


def _out_of_memory(batches: Sequence[Batch], device: torch.device) -> DensekitError:
    remedies = ["raise train.accumulate", "set train.checkpoint_backbone=true", "lower train.batch_size"]
    remedies.append("lower the size in data.train_transforms")
    remedies += ["set train.precision=bf16"] if why_not("bf16", device) is None else []
    return DensekitError(
        f"out of memory in a training step on a batch of {describe_batch(batches[0])}; {', or '.join(remedies)}"
    )
