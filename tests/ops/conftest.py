"""Boxes that several tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def random_boxes():
    """Function giving reproducible boxes of at least one pixel."""

    def draw(*shape: int, seed: int = 0, size: float = 100.0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        corners = torch.rand(*shape, 2, 2, generator=generator) * size
        return torch.cat([corners.amin(-2), corners.amax(-2) + 1], dim=-1)

    return draw
