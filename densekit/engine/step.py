"""One update of the weights: forward, backward, guard, update, average.

The step asks the host nothing on a GPU: whether the loss was finite is decided on the device (the fused optimiser
skips the update) and read one step later. Every random draw is a function of (seed, step, micro-batch, rank), so a
resumed run needs no generator states.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from densekit.engine.distributed import World, any_rank
from densekit.engine.optim import AveragedModel, Schedule, set_rate
from densekit.errors import DensekitError
from densekit.model import DenseModel
from densekit.types import Batch

Precision = Literal["fp32", "bf16", "fp16"]


def choose_precision(asked: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """The arithmetic of the step: ``auto`` takes bf16 where the hardware has matrix units for it, else fp32.

    Raises:
        DensekitError: fp16 on the CPU, where its range makes training fail.
    """
    if asked == "fp16" and device.type == "cpu":
        raise DensekitError("train.precision: fp16 does not train on the CPU; use bf16 or fp32")
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Mixed precision for the forward pass."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def seed_step(seed: int, step: int, micro: int, rank: int) -> None:
    """Make dropout, stochastic depth and the like a pure function of where the run is."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, micro, rank]).generate_state(1)[0]))


@dataclasses.dataclass(slots=True)
class StepResult:
    """What one step gave; tensors stay on the device until someone reads them.

    Attributes:
        losses: each loss, averaged over the micro-batches of this rank.
        norm: of the gradient, before clipping.
        bad: scalar, above 0 where the loss or gradient was not finite: the update was skipped.
        batches: what went in, kept so that a bad step can be written down.
        step: its number.
    """

    losses: dict[str, Tensor]
    norm: Tensor
    bad: Tensor
    batches: Sequence[Batch]
    step: int


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
        compiled: compile forward and losses with ``torch.compile``.
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
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.world = world
        self.seed = seed
        self.precision: Precision = precision
        self.clip = clip
        self.average = average
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=precision == "fp16")
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        runner: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
        self.runner = DistributedDataParallel(runner, gradient_as_bucket_view=True) if world.size > 1 else runner
        self._stuck = torch.zeros((), device=world.device)

    def __call__(self, batches: Sequence[Batch], step: int) -> StepResult:
        """Update the weights from the micro-batches of this rank.

        Raises:
            DensekitError: out of memory, with what was in the batch and which settings to change.
        """
        self.model.train()
        set_rate(self.optimizer, self.schedule(step))
        self.optimizer.zero_grad(set_to_none=True)
        try:
            losses = self._backward(batches, step)
        except RuntimeError as error:
            raise _out_of_memory(error, batches) from error
        norm = self._gradient_norm()
        bad = self._bad(losses, norm)
        self._update(bad)
        if self.average is not None:
            self.average.update(step, skip=bad)
        return StepResult(losses, norm, bad, batches, step)

    @property
    def model_to_use(self) -> DenseModel:
        """The averaged model where there is one, else the trained one: what is evaluated and saved as best."""
        return self.model if self.average is None else self.average.model

    def rate(self, step: int) -> float:
        """The learning rate of the first parameter group at a step."""
        return float(self.optimizer.param_groups[0]["base_lr"]) * self.schedule(step)

    def forgive(self) -> None:
        """Let updates go on after a bad step that the caller has dealt with."""
        self._stuck.zero_()

    def _backward(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for micro, batch in enumerate(batches):
            seed_step(self.seed, step, micro, self.world.rank)
            last = micro == len(batches) - 1
            ddp = isinstance(self.runner, DistributedDataParallel)
            with self.runner.no_sync() if ddp and not last else contextlib.nullcontext():  # type: ignore[operator]
                with autocast(self.precision, self.world.device):
                    losses: dict[str, Tensor] = self.runner(batch)
                total = torch.stack([v.float() for v in losses.values()]).sum() / len(batches)
                self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            for name, value in losses.items():
                part = value.detach().float() / len(batches)
                sums[name] = sums[name] + part if name in sums else part
        return sums

    def _gradient_norm(self) -> Tensor:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True) / self.scaler.get_scale()
        if self.clip is not None:
            # The scale of fp16 stays in the gradients until the optimiser takes it out, so it stays in the limit too.
            scaled = norm * self.scaler.get_scale()
            limit = self.clip * self.scaler.get_scale()
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, scaled, foreach=True)
        return norm

    def _bad(self, losses: dict[str, Tensor], norm: Tensor) -> Tensor:
        finite = torch.isfinite(torch.stack(list(losses.values()))).all()
        # With fp16 an overflowing gradient is part of the search for the scale, not a fault.
        finite = finite if self.scaler.is_enabled() else finite & torch.isfinite(norm)
        if self.world.size > 1 and self.world.device.type == "cpu":
            finite = torch.tensor(not any_rank(not bool(finite)))
        self._stuck = torch.maximum(self._stuck, (~finite).float())
        return self._stuck.clone()

    def _update(self, bad: Tensor) -> None:
        if self.scaler.is_enabled():
            if not bool(bad):
                self.scaler.step(self.optimizer)
                self.scaler.update()
            return
        # A fused optimiser leaves weights and state as they are where found_inf is 1, decided on the device.
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()


def describe_batch(batch: Batch) -> str:
    """One line on what is in a batch, for messages."""
    shape = " x ".join(str(n) for n in batch.images.shape)
    boxes = batch.targets.boxes if batch.targets else None
    objects = f", up to {boxes.boxes.shape[1]} boxes an image" if boxes is not None else ""
    return f"{shape} pixels{objects}, images {', '.join(str(i) for i in batch.ids[:8])}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory ran out, on a GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _out_of_memory(error: RuntimeError, batches: Sequence[Batch]) -> Exception:
    if not is_out_of_memory(error):
        return error
    return DensekitError(
        f"out of memory in a training step on a batch of {describe_batch(batches[0])}; lower train.batch_size or raise "
        f"train.accumulate, lower the size in data.train_transforms, or set train.precision=bf16"
    )
