"""Weights that cost little: drawing them as networks themselves do takes seconds for the large ones."""

from __future__ import annotations

import torch
from torch import nn


def fill(net: nn.Module) -> nn.Module:
    """Give a network on the device without values weights that differ everywhere and keep activations in range."""
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
