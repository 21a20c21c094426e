"""What the losses of the heads are multiplied by: fixed numbers, or numbers that are learned along the way.

What is learned stays on the device and is the same on every rank, and a step that does not count leaves it alone.
Letters: T heads that learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from densekit.engine.distributed import mean_over_ranks
from densekit.errors import DensekitError
from densekit.model import DenseModel

LEAST = 1e-3
"""No weight of GradNorm falls below it: one of 0 would have no gradient to rise by."""


class LossWeights:
    """Fixed weights.

    Args:
        fixed: of heads; 1 where one is not named.

    Attributes:
        learns: whether it has to see the losses of each step.
    """

    learns = False

    def __init__(self, fixed: Mapping[str, float] | None = None) -> None:
        self._fixed = dict(fixed or {})

    def current(self) -> Mapping[str, float | Tensor]:
        """The weights of this step, by head."""
        return self._fixed

    def learned(self) -> dict[str, Tensor]:
        """Those that change, to be written down; scalars on the device."""
        return {}

    def begin(self) -> None:
        """Forget what was observed: the micro-batches of a step come."""

    def observe(self, parts: Mapping[str, Tensor], scale: Tensor) -> None:
        """Look at a micro-batch between its forward and its backward pass.

        Args:
            parts: what each head adds to the loss of the step, without its weight.
            scale: factor on the loss in the backward pass.
        """

    def update(self, losses: Mapping[str, Tensor], scale: Tensor, rests: Tensor) -> None:
        """Learn from a step.

        Args:
            losses: of the heads that learned in it, over all micro-batches and ranks.
            scale: factor on the loss in the backward passes.
            rests: scalar, 1 where the step does not count.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """All that is learned."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is of other weights.
        """
        own = self.state_dict()
        wrong = own.keys() ^ state.keys() or {name for name in own if state[name].shape != own[name].shape}
        if wrong:
            raise ValueError(f"{min(wrong)} of the loss weights is missing or does not fit")
        for name, value in own.items():
            value.copy_(state[name])


class UncertaintyWeights(LossWeights):
    """Weights exp(-s), where s learns to make the sum of exp(-s) * loss + s / 2 small, from 0 on.

    s is the logarithm of a variance. Kendall, Gal and Cipolla 2018 (arXiv 1705.07115), equation 10, in its form for
    classification; that for regression halves the first term. Either rests at a weight of 1 / (2 * loss), so that all
    heads weigh alike. A head without a turn keeps its weight.

    Args:
        heads: that learn; at least two.
        lr: of Adam, which learns s apart from the model's optimiser and schedule.
        device: of the losses.

    Raises:
        DensekitError: fewer than two heads learn.
    """

    learns = True

    def __init__(self, heads: Sequence[str], *, lr: float, device: torch.device) -> None:
        super().__init__()
        _check_count("uncertainty", heads)
        self.heads = list(heads)
        self._s = torch.zeros(len(heads), device=device)
        self._adam = _Adam(len(heads), lr, device)

    def current(self) -> Mapping[str, float | Tensor]:
        """The weights of this step, by head."""
        return self.learned()

    def learned(self) -> dict[str, Tensor]:
        """The weights, as scalars on the device."""
        return dict(zip(self.heads, self._s.neg().exp().unbind()))

    @torch.no_grad()
    def update(self, losses: Mapping[str, Tensor], scale: Tensor, rests: Tensor) -> None:
        """Move s of the heads that learned."""
        for place, head in enumerate(self.heads):
            if head in losses:
                at = slice(place, place + 1)  # a view, also of Adam's state
                gradient = 0.5 - self._s[at].neg().exp() * losses[head]
                counts = (rests == 0) & gradient.isfinite()
                self._s[at] = torch.where(counts, self._adam.moved(self._s[at], gradient, counts, at), self._s[at])

    def state_dict(self) -> dict[str, Tensor]:
        """s, and Adam's state."""
        return {"s": self._s, **self._adam.state_dict()}


class GradNormWeights(LossWeights):
    """Weights under which every head moves the last layer of the backbone alike, those that lag behind more.

    Chen et al. 2018 (arXiv 1711.02257), section 3 and algorithm 1. G_i is the norm of the gradient of a head's weighted
    loss in that layer, r_i the head's loss as a share of its first one, over the mean of these shares. The weights
    learn to make the sum of |G_i - mean(G) * r_i ** alpha| small and are then scaled to a sum of T; they begin at 1.
    They rest in a step that not all heads learn from, for its gradients can't be compared.

    A micro-batch of one head gives the gradient along the way; one of several costs a backward pass more a head, of
    the head alone.

    Args:
        model: gives heads and layer; what does not learn must be frozen already.
        alpha: how much more a head gets that lags behind.
        lr: of Adam, which learns the weights apart from the model's optimiser and schedule.
        device: of the losses.

    Raises:
        DensekitError: fewer than two heads learn, or nothing of the backbone does.
    """

    learns = True

    def __init__(self, model: DenseModel, *, alpha: float, lr: float, device: torch.device) -> None:
        super().__init__()
        self.heads = [head for head in model.heads if head not in model.frozen]
        _check_count("gradnorm", self.heads)
        self.layer = _last_layer(model.backbone)
        self.layer.register_hook(self._along_the_way)  # type: ignore[no-untyped-call]
        self.alpha = alpha
        self._weights = torch.ones(len(self.heads), device=device)
        self._first = torch.full_like(self._weights, torch.nan)
        self._adam = _Adam(len(self.heads), lr, device)
        self._gradients: dict[str, Tensor] = {}
        self._alone: str | None = None

    def current(self) -> Mapping[str, float | Tensor]:
        """The weights of this step, by head."""
        return self.learned()

    def learned(self) -> dict[str, Tensor]:
        """The weights, as scalars on the device."""
        return dict(zip(self.heads, self._weights.clone().unbind()))

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        self._gradients, self._alone = {}, None

    def observe(self, parts: Mapping[str, Tensor], scale: Tensor) -> None:
        """Take the gradient of each head in the layer; of one alone when it comes by."""
        self._alone = None
        if not self.layer.requires_grad:
            return
        if len(parts) == 1:
            self._alone = next(iter(parts))
            return
        for head, part in parts.items():
            (gradient,) = torch.autograd.grad(part * scale, self.layer, retain_graph=True, allow_unused=True)
            if gradient is None:
                raise _not_shared(head)
            self._add(head, gradient)

    def _along_the_way(self, gradient: Tensor) -> None:
        if self._alone is not None:
            with torch.no_grad():
                self._add(self._alone, gradient / self._weights[self.heads.index(self._alone)])

    def _add(self, head: str, gradient: Tensor) -> None:
        before = self._gradients.get(head)
        self._gradients[head] = gradient if before is None else before + gradient

    @torch.no_grad()
    def update(self, losses: Mapping[str, Tensor], scale: Tensor, rests: Tensor) -> None:
        """Move the weights."""
        self._alone = None
        if not self.layer.requires_grad or any(head not in losses for head in self.heads):
            return
        if missing := [head for head in self.heads if head not in self._gradients]:
            raise _not_shared(missing[0])
        gradients = mean_over_ranks(torch.stack([self._gradients[head] for head in self.heads]))
        norms = torch.linalg.vector_norm(gradients.flatten(1).float(), dim=1) / scale
        values = torch.stack([losses[head] for head in self.heads])
        counts = (rests == 0) & (norms + values).isfinite().all()
        first = torch.where(self._first.isnan(), values.clamp(min=1e-12), self._first)
        lag = values / first
        lag = lag / lag.mean().clamp(min=1e-12)
        weighted = self._weights * norms
        gradient = torch.sign(weighted - weighted.mean() * lag**self.alpha) * norms
        moved = self._adam.moved(self._weights, gradient, counts).clamp(min=LEAST)
        moved = moved * (len(self.heads) / moved.sum())
        self._weights.copy_(torch.where(counts, moved, self._weights))
        self._first.copy_(torch.where(counts, first, self._first))

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, first losses, and Adam's state."""
        return {"weights": self._weights, "first": self._first, **self._adam.state_dict()}


class _Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) on a few numbers, of which some may rest; asks the host nothing."""

    def __init__(self, count: int, lr: float, device: torch.device) -> None:
        self.lr, self.betas, self.eps = lr, (0.9, 0.999), 1e-8
        self._mean, self._square, self._steps = (torch.zeros(count, device=device) for _ in range(3))

    def moved(self, values: Tensor, gradient: Tensor, counts: Tensor, at: slice = slice(None)) -> Tensor:
        """The numbers at some places after a step; where it does not count its state stays, and the result is void."""
        new = (
            torch.lerp(gradient, self._mean[at], self.betas[0]),
            torch.lerp(gradient.square(), self._square[at], self.betas[1]),
            self._steps[at] + 1,
        )
        for own, value in zip((self._mean, self._square, self._steps), new):
            own[at] = torch.where(counts, value, own[at])
        mean, square, steps = new
        mean = mean / (1 - self.betas[0] ** steps)
        square = square / (1 - self.betas[1] ** steps)
        return values - self.lr * mean / (square.sqrt() + self.eps)

    def state_dict(self) -> dict[str, Tensor]:
        return {"adam_mean": self._mean, "adam_square": self._square, "adam_steps": self._steps}


def _check_count(name: str, heads: Sequence[str]) -> None:
    if len(heads) < 2:
        raise DensekitError(
            f"train.loss_weights: {name} weighs heads against each other, and {' '.join(heads) or 'none'} alone learns "
            f"here; leave it out"
        )


def _last_layer(backbone: nn.Module) -> nn.Parameter:
    """The last weight of a convolution or linear layer that learns."""
    learning = [p for p in backbone.parameters() if p.requires_grad and p.dim() > 1]
    if not learning:
        raise DensekitError(
            "train.loss_weights: gradnorm compares what the heads do to the backbone, and nothing of it learns here; "
            "take uncertainty or fixed weights, or let the backbone learn (model.backbone.frozen_stages, "
            "train.optimizer.backbone_lr)"
        )
    return learning[-1]


def _not_shared(head: str) -> DensekitError:
    return DensekitError(
        f"train.loss_weights: gradnorm compares gradients in the last layer of the backbone, which {head} does not "
        f"look at; take uncertainty or fixed weights"
    )
