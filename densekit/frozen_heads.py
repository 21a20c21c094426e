"""Heads that rest while others learn: where their classes come from, and whether their predictions stay."""

from __future__ import annotations

from collections.abc import Mapping

from densekit.config import Config
from densekit.engine import checkpoint
from densekit.errors import DensekitError, nearest
from densekit.model import DenseModel
from densekit.types import Classes


def all_classes(config: Config, classes: Classes | Mapping[str, Classes]) -> dict[str, Classes]:
    """The classes of every head: frozen ones keep those that they have learned.

    Args:
        config: of the run.
        classes: of the heads that learn; one for all.

    Raises:
        DensekitError: a frozen head that does not exist or has not learned, or nothing that learns.
    """
    frozen, weights = config.model.frozen_heads, config.model.weights
    given = dict.fromkeys(config.model.heads, classes) if isinstance(classes, Classes) else dict(classes)
    if not frozen:
        return given
    for name in frozen:
        if name not in config.model.heads:
            raise DensekitError(f"model.frozen_heads: there is no head {name!r}; {nearest(name, config.model.heads)}")
    if len(set(frozen)) == len(config.model.heads):
        raise DensekitError("model.frozen_heads: all heads are frozen, so nothing would learn; leave one out")
    if weights is None:
        raise DensekitError(
            f"model.frozen_heads: {frozen[0]!r} would stay random; set model.weights to the checkpoint that it is in"
        )
    held = checkpoint.load(weights)
    known = held["config"]["model"]["heads"]
    for name in frozen:
        if name not in known:
            raise DensekitError(f"model.frozen_heads: {weights} has no head {name!r}; {nearest(name, known)}")
    return {**given, **checkpoint.classes_by_head(held, frozen, weights)}


def changing(model: DenseModel) -> list[str]:
    """A line where the maps that frozen heads look at change."""
    if not model.frozen or not any(p.requires_grad for p in model.backbone.parameters()):
        return []
    return [f"model.frozen_heads: the backbone learns, so the predictions of {', '.join(model.frozen)} will change"]
