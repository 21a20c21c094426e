"""Networks with cheap weights, shared by the tests of the backbones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from densekit.registry import BACKBONES


def _filled(name: str, options: dict[str, object] | None = None) -> nn.Module:
    with torch.device("meta"):
        net = BACKBONES.build(name, options or {})
    noise = torch.randn(4099, generator=torch.Generator().manual_seed(1))  # prime: no two filters line up
    state = {}
    for key, empty in net.state_dict().items():
        count = empty.numel()
        value = noise.repeat(-(-count // len(noise)))[:count].reshape(empty.shape)  # its own memory, changed in place
        if empty.dim() == 4:
            value.mul_((2 / empty[0].numel()) ** 0.5)
        elif key.endswith(("running_mean", "bias")):
            value.mul_(0.1)
        else:  # norms' weights and variances; the last norm of a block is small, as after training
            value.mul_(0.1).add_(1).abs_().mul_(0.3 if key.endswith("bn3.weight") else 1.0)
        noise = noise.roll(1)
        state[key] = value.to(empty.dtype)
    net.load_state_dict(state, assign=True)
    return net


@pytest.fixture(scope="session")
def filled():
    """``filled(name, options)`` builds a backbone whose weights differ everywhere and keep activations in range.

    Drawing them as the networks themselves do takes seconds for the large ones.
    """
    return _filled
