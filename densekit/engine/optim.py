"""Optimisers, parameter groups, learning-rate schedules, averaged weights."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from densekit.model import DenseModel

Kind = TypeVar("Kind", bound=type[Optimizer])
Schedule = Callable[[int], float]
"""Factor of the learning rate at a step (0-based); a pure function, so there is no state to save."""


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    backbone_lr: float = 1.0,
    norm_decay: bool = False,
    layer_decay: float = 1.0,
    stages: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """At most two groups for the heads and two for the backbone, or for each of its stages: decayed or not.

    Args:
        model: parameters whose name begins with ``backbone.`` belong to the backbone.
        lr: base learning rate, kept in each group as ``base_lr``.
        weight_decay: for weights of two dimensions and more.
        backbone_lr: multiplier for the backbone; 0 freezes it.
        norm_decay: decay norms and biases (one dimension) too.
        layer_decay: the last stage of the backbone learns at this part of the rate, the one before at its square ...
        stages: of the backbone's parameters, see ``stages_of``; None takes one rate for the whole backbone.
    """
    groups: dict[tuple[bool, int, bool], dict[str, Any]] = {}
    count = max(stages.values()) + 1 if stages else 0
    for name, parameter in model.named_parameters():
        in_backbone = name.startswith("backbone.")
        if in_backbone and backbone_lr == 0:
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        decayed = norm_decay or parameter.dim() > 1
        stage = stages[name.removeprefix("backbone.")] if in_backbone and stages else count
        rate = lr * (backbone_lr if in_backbone else 1.0) * layer_decay ** (count - stage)
        group = groups.setdefault(
            (in_backbone, stage, decayed),
            {"params": [], "lr": rate, "base_lr": rate, "weight_decay": weight_decay if decayed else 0.0},
        )
        group["params"].append(parameter)
    return list(groups.values())


def _uncompiled(kind: Kind) -> Kind:
    """The same optimiser without what torch wraps around its methods to keep its compiler out of them.

    The first call of such a method imports the whole compiler, 3 seconds, and the optimiser is never compiled here.
    """
    names = ("add_param_group", "zero_grad", "step", "state_dict", "load_state_dict")
    methods = {name: torch.no_grad()(inspect.unwrap(getattr(kind, name))) for name in names}
    return cast(Kind, type(kind.__name__, (kind,), methods))


class _AdamWInPlace(torch.optim.AdamW):
    """AdamW whose fused kernel gets tensors with channels last as they lie in memory.

    On the CPU torch's kernel walks through memory and takes no notice of strides. It copies a gradient with channels
    last on each step without need; one that lies in another order than its weight would go to the wrong numbers. SGD
    keeps what it is given here as its state, so it stays torch's own; autograd gives weight and gradient one order.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex = cast(bool, super()._init_group(group, *lists))  # type: ignore[no-untyped-call]
        weights, gradients, *averages = lists[:4]
        for i, weight in enumerate(weights):
            if weight.dim() == 4 and not weight.is_contiguous():
                for tensors in (weights, gradients, *averages):
                    tensors[i] = tensors[i].permute(0, 2, 3, 1)
            gradients[i] = gradients[i].contiguous()
        return has_complex


_SGD, _AdamW = _uncompiled(torch.optim.SGD), _uncompiled(_AdamWInPlace)


def make_optimizer(
    name: Literal["sgd", "adamw"],
    groups: list[dict[str, Any]],
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Optimizer:
    """SGD with momentum or AdamW, fused but on mps.

    Fused is one kernel for all parameters, and it can skip a step that has a non-finite gradient without asking the
    host (see ``step.py``).
    """
    fused = all(parameter.device.type != "mps" for group in groups for parameter in group["params"])
    if name == "sgd":
        optimizer = _SGD(groups, lr=groups[0]["lr"], momentum=momentum, nesterov=nesterov, fused=fused)
        # The same as torch's own start, but torch leaves the buffers uninitialised where the first step is skipped.
        for parameter in (p for group in groups if momentum for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return _AdamW(groups, lr=groups[0]["lr"], betas=betas, fused=fused)


def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Go on with an optimiser's saved state; which kernels run it is for this device to say, not for the one before."""
    groups = [
        {**saved, "fused": own["fused"]}
        for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def make_schedule(
    name: Literal["constant", "step", "cosine", "poly"],
    steps: int,
    *,
    warmup: int = 0,
    warmup_start: float = 0.001,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
    power: float = 0.9,
    end: float = 0.0,
    steps_per_epoch: int = 1,
) -> Schedule:
    """The factor of the learning rate as a function of the step.

    Args:
        name: constant, step (``gamma`` at each milestone), cosine (Loshchilov and Hutter 2017, eq. 5, one period),
            poly ((1 - t) ** ``power``).
        steps: length of the run.
        warmup: steps of linear warm-up.
        warmup_start: first factor of the warm-up.
        milestones: fractions of the run, or epochs where above 1.
        gamma: factor at each milestone.
        power: of the polynomial.
        end: last factor of cosine and poly.
        steps_per_epoch: turns milestones in epochs into steps.
    """
    marks = [m * steps if m <= 1 else m * steps_per_epoch for m in milestones]

    def factor(step: int) -> float:
        ramp = 1.0 if step >= warmup else warmup_start + (1.0 - warmup_start) * step / warmup
        t = min(1.0, max(0.0, (step - warmup) / max(1, steps - warmup)))
        if name == "step":
            return ramp * gamma ** sum(step >= m - 1e-9 for m in marks)
        if name == "cosine":
            return ramp * (end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * t)))
        if name == "poly":
            return float(ramp * (end + (1.0 - end) * (1.0 - t) ** power))
        return ramp

    return factor


def held(schedule: Schedule, start: int, factor: float, *, anneal: int = 0) -> Schedule:
    """A schedule that from a step on goes to ``factor``, along a cosine of ``anneal`` steps, and stays there."""

    def factor_at(step: int) -> float:
        if step < start:
            return schedule(step)
        t = min(1.0, (step - start) / anneal) if anneal else 1.0
        return factor + (schedule(start) - factor) * 0.5 * (1.0 + math.cos(math.pi * t))

    return factor_at


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Give every group its base learning rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


class AveragedModel:
    """Exponential moving average of a model's weights (Polyak averaging), in a copy that can be evaluated.

    The decay is min(decay, (1 + step) / (10 + step)), so early averages are not held back by the random start.

    Args:
        model: what to average.
        decay: 0..1, such as 0.999.
    """

    def __init__(self, model: DenseModel, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self._pairs = self._floating(model)
        self._others = [
            (mine, theirs)
            for mine, theirs in zip(self.model.state_dict().values(), model.state_dict().values())
            if not mine.is_floating_point()
        ]

    def _floating(self, model: DenseModel) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [
            (mine, theirs)
            for mine, theirs in zip(self.model.state_dict().values(), model.state_dict().values())
            if mine.is_floating_point()
        ]
        return [m for m, _ in pairs], [t for _, t in pairs]

    @torch.no_grad()
    def update(self, step: int, skip: Tensor | None = None) -> None:
        """Move the average towards the model after update number ``step`` (0-based).

        Args:
            step: decides the decay.
            skip: scalar, 1 where the step was skipped and the average must stay; read on the device. The model must
                hold finite numbers then too: ``TrainStep`` has put them back.
        """
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self._pairs
        change = torch._foreach_sub(theirs, mine)  # a few launches on a GPU, however many weights there are
        torch._foreach_mul_(change, weight if skip is None else weight * (1 - skip))
        torch._foreach_add_(mine, change)
        for own, other in self._others:
            own.copy_(other)
