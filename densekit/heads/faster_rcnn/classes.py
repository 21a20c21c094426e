"""How the second stage tells classes: probabilities of its logits, and the loss that they learn by.

B images, N padded objects an image, S samples an image, K classes; logit 0 is "nothing", logit k + 1 is class k.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from densekit.errors import DensekitError
from densekit.ops.losses import binary_loss, class_loss, federated_loss, seesaw_loss
from densekit.ops.sampling import weighted_choice
from densekit.types import BoxTargets

RegionLoss = Literal["cross_entropy", "focal", "federated", "seesaw"]
PRIOR = 0.01
"""Probability of each class that sigmoids start with, so that the many absent ones do not swamp the first steps."""
STREAM = 3


@dataclasses.dataclass(frozen=True)
class Federated:
    """Numbers of the federated loss.

    Attributes:
        classes: that an image teaches, unless it has more itself.
        power: of the counts, for the chance of a class that an image lacks to be drawn.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid")

    classes: Annotated[int, pydantic.Field(ge=1)] = 50
    power: Annotated[float, pydantic.Field(ge=0)] = 0.5


@dataclasses.dataclass(frozen=True)
class Seesaw:
    """Numbers of the seesaw loss.

    Attributes:
        mitigation: p, of the ratio of a rarer class's count to that of the object's own (equation 5).
        compensation: q, of the ratio of a wrong class's probability to that of the object's own (equation 6).
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid")

    mitigation: Annotated[float, pydantic.Field(ge=0)] = 0.8
    compensation: Annotated[float, pydantic.Field(ge=0)] = 2.0


FEDERATED, SEESAW = Federated(), Seesaw()


class RegionClasses(nn.Module):
    """Classification of regions.

    * ``cross_entropy`` and ``focal``: a softmax over the classes and "nothing".
    * ``federated`` (Zhou et al. 2021, arXiv 2103.07461, section 5): a sigmoid a class, for data sets with many classes
      of which an image is not searched for all. An image teaches those that it has and some that it lacks, drawn by the
      number of images with them. Logit 0 has no part.
    * ``seesaw`` (Wang et al. 2021, arXiv 2008.10032): a softmax over the classes, in which frequent ones push rare ones
      down less, and a sigmoid of "nothing" (their objectness branch, section 3.3).

    Args:
        kind: of loss.
        counts: how often each class occurs in training: images with it for ``federated``, objects for ``seesaw``; None:
            all alike.
        num_classes: K.
        gamma: of ``focal``.
        federated: numbers of ``federated``.
        seesaw: numbers of ``seesaw``.

    Raises:
        DensekitError: not one count a class.
    """

    counts: Tensor

    def __init__(
        self,
        kind: RegionLoss = "cross_entropy",
        counts: Sequence[float] | None = None,
        *,
        num_classes: int,
        gamma: float = 2.0,
        federated: Federated = FEDERATED,
        seesaw: Seesaw = SEESAW,
    ) -> None:
        super().__init__()
        if counts is not None and (len(counts) != num_classes or min(counts, default=0) < 0):
            raise DensekitError(
                f"class_counts has {len(counts)} numbers for {num_classes} classes; give one a class, 0 or more, or "
                f"leave it out: they are counted in the training set"
            )
        self.kind, self.gamma, self.federated, self.seesaw = kind, gamma, federated, seesaw
        values = torch.ones(num_classes) if counts is None else torch.tensor([float(c) for c in counts])
        self.register_buffer("counts", values, persistent=False)

    def start(self, scores: nn.Linear) -> None:
        """First biases of the layer that gives the logits."""
        odds = math.log(PRIOR / (1 - PRIOR)) if self.kind == "federated" else 0.0
        nn.init.constant_(scores.bias, odds)

    def probabilities(self, logits: Tensor) -> Tensor:
        """[..., K + 1] logits -> probabilities of "nothing" (of no meaning for ``federated``) and of each class."""
        if self.kind == "federated":
            return logits.sigmoid()
        if self.kind == "seesaw":
            nothing = logits[..., :1].sigmoid()
            return torch.cat([nothing, (1 - nothing) * logits[..., 1:].softmax(-1)], dim=-1)
        return logits.softmax(-1)

    @torch.no_grad()
    def taught(self, targets: BoxTargets, seeds: Tensor) -> Tensor | None:
        """[B, K] bool: the classes that each image teaches; None: all."""
        if self.kind != "federated":
            return None
        number = torch.arange(len(self.counts), device=seeds.device)
        present = ((targets.labels[..., None] == number) & targets.valid[..., None]).any(1)
        weights = self.counts**self.federated.power
        return weighted_choice(weights, present, seeds, count=self.federated.classes, stream=STREAM)

    def loss(self, logits: Tensor, labels: Tensor, valid: Tensor, taught: Tensor | None) -> Tensor:
        """Sum of the losses of samples.

        Args:
            logits: [B, S, K + 1].
            labels: [B, S] int64 logit to learn.
            valid: [B, S] bool.
            taught: what ``taught`` gave.
        """
        if self.kind == "federated":
            return federated_loss(logits[..., 1:], labels - 1, valid, taught)
        if self.kind == "seesaw":
            positive = valid & (labels > 0)
            nothing = binary_loss(logits[..., 0], labels == 0, valid)
            return nothing + seesaw_loss(
                logits[..., 1:],
                (labels - 1).clamp(min=0),
                positive,
                self.counts,
                mitigation=self.seesaw.mitigation,
                compensation=self.seesaw.compensation,
            )
        return class_loss(logits, labels, valid, kind=self.kind, gamma=self.gamma)
