"""Run a step again that was not finite, and find where the first value arises that is not.

The bundle that ``guard.write_bundle`` left holds weights, batch, seed and precision: the step is the same to the bit on
the same device. On several ranks each wrote its own; losses that are normalised over the ranks differ a little here.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densekit.config import Config, parse
from densekit.engine import checkpoint
from densekit.engine.guard import unpack_batch
from densekit.engine.step import head_losses, head_shares, seed_step, total_loss
from densekit.errors import DensekitError
from densekit.model import DenseModel, build_model
from densekit.precision import Precision, autocast
from densekit.set_statistics import statistics_of
from densekit.types import Batch


@dataclasses.dataclass(frozen=True, slots=True)
class Bundle:
    """What a bad step left.

    Attributes:
        config: of the run. model: with the weights before the step.
        batches: micro-batches of this rank. files: the image files of each.
        step, seed, rank: decide the random numbers. precision: of the forward pass.
        resting: modules that were as in evaluation.
        learning: parameters that learned; None: all but those of ``resting``.
        weights: what the losses of the heads were multiplied by; 1 where one is not named.
    """

    config: Config
    model: DenseModel
    batches: list[Batch]
    files: list[list[str]]
    step: int
    seed: int
    rank: int
    precision: Precision
    resting: tuple[str, ...] = ()
    learning: tuple[str, ...] | None = None
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """Where the first value arises that is not finite.

    Attributes:
        stage: ``weight``, ``image``, ``forward``, ``loss`` or ``gradient``.
        name: the parameter, module or loss.
        detail: what went in and came out.
    """

    stage: str
    name: str
    detail: str


@dataclasses.dataclass(frozen=True, slots=True)
class MicroReplay:
    """One micro-batch, run again: its losses, the norm of its gradient, and the first value that is not finite."""

    losses: dict[str, float]
    norm: float
    finding: Finding | None


def read_bundle(path: Path) -> Bundle:
    """Read what a bad step left.

    Raises:
        DensekitError: not a bundle, or a damaged one.
    """
    content = checkpoint.load(path)
    packed = content.get("bundle")
    if not isinstance(packed, dict):
        raise DensekitError(f"{path} is a checkpoint, not a bundle; give a bundle_step*.pt of a run folder")
    config = parse(content["config"], f"the config in {path}")
    classes = checkpoint.classes_by_head(content, config.model.heads, path)
    model = build_model(config.model, classes, channels_last=config.train.channels_last)
    model.statistics = statistics_of(config, model.backbone)
    checkpoint.load_weights(model, content["model"], path)
    model.freeze(config.model.frozen_heads)
    try:
        batches = [unpack_batch(batch) for batch in packed["batches"]]
        numbers = (int(packed["step"]), int(packed["seed"]), int(packed["rank"]))
        resting = tuple(packed.get("resting", ()))  # bundles of before had none
        learning = tuple(packed["learning"]) if "learning" in packed else None
        parts = [name for name, _ in [*model.named_modules(), *model.named_parameters()]]
        if unknown := {*resting, *(learning or ())} - {*parts}:
            raise ValueError(f"the model has no part {min(unknown)!r}")
        fixed = config.train.loss_weights if isinstance(config.train.loss_weights, dict) else {}
        weights = packed.get("loss_weights", fixed)
        return Bundle(
            config, model, batches, packed["files"], *numbers, packed["precision"], resting, learning, weights
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DensekitError(f"{path} is not of this densekit's form ({error}); use the version that wrote it") from None


def replay(bundle: Bundle, device: torch.device) -> list[MicroReplay]:
    """Run every micro-batch of a bundle forward and backward."""
    model = bundle.model.to(device).train()
    for name in bundle.resting:
        model.get_submodule(name).train(False).requires_grad_(bundle.learning is not None)
    if bundle.learning is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in bundle.learning)
    shares = head_shares(model, bundle.batches)
    return [
        _replay(model, batch.to(device), bundle, micro, device, shares) for micro, batch in enumerate(bundle.batches)
    ]


def _replay(
    model: DenseModel, batch: Batch, bundle: Bundle, micro: int, device: torch.device, shares: dict[str, int]
) -> MicroReplay:
    model.zero_grad(set_to_none=True)
    watch = _Watch(model)
    watch.look_at_the_input(batch)
    seed_step(bundle.seed, bundle.step, micro, bundle.rank)
    with watch.hooks(), model.using(batch):
        with autocast(bundle.precision, device):
            losses: dict[str, Tensor] = model(batch)
        watch.look_at_the_losses(losses)
        total = total_loss(head_losses(model, losses, shares), bundle.weights)
        total.backward()  # type: ignore[no-untyped-call]
    watch.look_at_the_gradients()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    return MicroReplay({k: float(v.detach()) for k, v in losses.items()}, norm, watch.finding)


class _Watch:
    """Keeps the first finding of a forward and backward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.finding: Finding | None = None

    def look_at_the_input(self, batch: Batch) -> None:
        for name, tensor in self.model.state_dict().items():
            self._look("weight", name, tensor, "the weights were not finite before the step")
        self._look("image", f"of {', '.join(str(i) for i in batch.ids[:8])}", batch.images, "a pixel is not finite")

    def look_at_the_losses(self, losses: dict[str, Tensor]) -> None:
        shown = ", ".join(f"{name} {float(value.detach()):g}" for name, value in losses.items())
        for name, value in losses.items():
            self._look("loss", name, value, f"from finite maps; losses: {shown}")

    def look_at_the_gradients(self) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                self._look("gradient", name, parameter.grad, "the gradient of this parameter")

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Look at what every module gives, inner ones first, and at the gradient that comes back to it."""
        handles = [
            module.register_forward_hook(self._hook(name)) for name, module in self.model.named_modules() if name
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            came = max((float(t.detach().abs().max()) for t in _floats(inputs) if t.numel()), default=0.0)
            for tensor in _floats(output):
                self._look("forward", name, tensor, f"{type(module).__name__}, largest input {came:g}")
                if tensor.requires_grad:
                    tensor.register_hook(self._behind(name, type(module).__name__))  # type: ignore[no-untyped-call]

        return after

    def _behind(self, name: str, kind: str) -> Any:
        return lambda gradient: self._look("gradient", name, gradient, f"of the output of this {kind}, on the way back")

    def _look(self, stage: str, name: str, tensor: Tensor, detail: str) -> None:
        if self.finding is None and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            self.finding = Finding(stage, name, f"{detail}; {_bad_values(tensor)}")


def _floats(value: Any) -> list[Tensor]:
    """The floating-point tensors in the arguments or the result of a module."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _floats(item)] if isinstance(value, list | tuple) else []


def _bad_values(tensor: Tensor) -> str:
    nan, infinite = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
    return f"{nan} NaN and {infinite} infinite of {tensor.numel()} values, shape {list(tensor.shape)}"
