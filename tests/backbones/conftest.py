"""Networks with cheap weights, shared by the tests of the backbones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from densekit.registry import BACKBONES
from tests.filled import fill


def _filled(name: str, options: dict[str, object] | None = None) -> nn.Module:
    with torch.device("meta"):
        net = BACKBONES.build(name, options or {})
    return fill(net)


@pytest.fixture(scope="session")
def filled():
    """``filled(name, options)`` builds a backbone whose weights differ everywhere and keep activations in range."""
    return _filled
