"""The factor on the loss that keeps fp16's gradients above zero (Micikevicius et al. 2018, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

START, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000
"""The first factor; what it is multiplied by after so many good steps in a row, and after an overflow."""


class LossScale:
    """Grows while gradients stay finite, shrinks where they overflow, and is found on the device.

    Rule and state are those of ``torch.amp.GradScaler``, which asks the host on each step.

    Args:
        device: of the losses.
        enabled: False leaves losses as they are.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self.enabled = enabled
        self.factor = torch.full((), START if enabled else 1.0, device=device)
        self._good = torch.zeros((), device=device)  # steps in a row

    def scale(self, loss: Tensor) -> Tensor:
        """What ``backward`` is to begin from."""
        return loss * self.factor if self.enabled else loss

    def unscale(self, norm: Tensor) -> Tensor:
        """A norm of scaled gradients as one of the gradients."""
        return norm / self.factor if self.enabled else norm

    def update(self, overflow: Tensor, stay: Tensor) -> None:
        """Adapt the factor after a step.

        Args:
            overflow: scalar, 1 where gradients were not finite, else 0.
            stay: scalar, 1 where the step does not count.
        """
        if not self.enabled:
            return
        good = self._good + 1
        grows = good >= INTERVAL
        factor = self.factor * torch.where(overflow > 0, BACKOFF, torch.where(grows, GROWTH, 1.0))
        good = torch.where((overflow > 0) | grows, 0.0, good)
        self._good = torch.where(stay > 0, self._good, good)
        self.factor = torch.where((stay > 0) | ~factor.isfinite(), self.factor, factor)

    def state_dict(self) -> dict[str, Any]:
        """As ``torch.amp.GradScaler``'s; empty where disabled."""
        if not self.enabled:
            return {}
        return {
            "scale": float(self.factor),
            "growth_factor": GROWTH,
            "backoff_factor": BACKOFF,
            "growth_interval": INTERVAL,
            "_growth_tracker": int(self._good),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; one without a factor (a run in another precision) begins anew."""
        if self.enabled and state:
            self.factor.fill_(float(state["scale"]))
            self._good.fill_(float(state["_growth_tracker"]))
