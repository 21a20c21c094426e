"""What a run folder takes on disk, and what a model keeps in memory beside its activations."""

from __future__ import annotations

import dataclasses

from densekit.config import TrainConfig
from densekit.model import DenseModel


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes that follow from the model and the optimiser alone.

    Attributes:
        model: weights and buffers.
        gradients: of what learns.
        optimizer: its state.
        average: the averaged weights, where the run keeps them.
    """

    model: int
    gradients: int
    optimizer: int
    average: int

    @property
    def memory(self) -> int:
        """What training keeps from step to step."""
        return self.model + self.gradients + self.optimizer + self.average

    @property
    def checkpoint(self) -> int:
        """``last.pt``."""
        return self.model + self.optimizer + self.average

    @property
    def folder(self) -> int:
        """The run folder with its three checkpoints, while a fourth is written in the place of one of them."""
        return 3 * self.checkpoint + self.model


def sizes_of(model: DenseModel, train: TrainConfig) -> Sizes:
    """The sizes of a model in training."""
    whole = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    rests = train.optimizer.backbone_lr == 0
    learned = sum(
        p.numel() * p.element_size()
        for name, p in model.named_parameters()
        if p.requires_grad and not (rests and name.startswith("backbone."))
    )
    copies = 2 if train.optimizer.name == "adamw" else int(train.optimizer.momentum > 0)
    averaged = train.ema is not None or train.swa is not None
    return Sizes(whole, learned, copies * learned, whole if averaged else 0)
