"""A backbone that rests in the first part of a run, and wakes at once or stage by stage (Howard and Ruder 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from densekit.errors import DensekitError


class Freezing:
    """Which of a backbone's parameters learn at a step: a pure function of it, so there is no state to save.

    What rests gets no gradient, and its norms and its stochastic depth are as in evaluation.

    Args:
        backbone: parameters that do not learn at all stay as they are.
        stages: of its parameters, see ``stages_of``.
        moments: rising steps: at the first the last stage begins to learn, at the next the stage before, at the last
            all that are left.

    Raises:
        DensekitError: nothing of the backbone learns, or there are more moments than stages that do.
    """

    def __init__(self, backbone: nn.Module, stages: Mapping[str, int], moments: Sequence[int]) -> None:
        learning = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
        if not learning:
            raise DensekitError(
                "train.freeze_until: nothing of the backbone learns, for all of it is frozen; leave freeze_until out, "
                "or set frozen_stages and backbone_lr so that it learns"
            )
        own = sorted({stages[name] for name in learning}, reverse=True)
        if len(moments) > len(own):
            raise DensekitError(
                f"train.freeze_until has {len(moments)} moments, but {len(own)} stages of the backbone learn; give at "
                f"most one a stage"
            )
        wakes = {stage: moments[min(place, len(moments) - 1)] for place, stage in enumerate(own)}
        self.backbone, self.moments = backbone, tuple(moments)
        self._wakes = [(parameter, wakes[stages[name]]) for name, parameter in learning.items()]

    def apply(self, step: int) -> bool:
        """Let a model that was put into training mode rest where it must before the update number ``step`` (0-based).

        Returns:
            Whether other parameters learn than before.
        """
        changed = False
        for parameter, wakes in self._wakes:
            if parameter.requires_grad != (step >= wakes):
                parameter.requires_grad_(step >= wakes)
                changed = True
        if step < self.moments[-1]:
            for module in _resting(self.backbone):
                module.train(False)
        return changed


def _resting(module: nn.Module) -> list[nn.Module]:
    """The largest parts of which no parameter learns."""
    own = list(module.parameters())
    if own and not any(parameter.requires_grad for parameter in own):
        return [module]
    return [part for child in module.children() for part in _resting(child)]
