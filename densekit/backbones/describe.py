"""What a backbone is made of, stage by stage: shapes, parameters, multiply-adds, receptive field.

Everything is read from the network by one forward without data (on PyTorch's ``meta`` device): nothing is typed in,
and a network of any size is described in moments.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densekit.types import Level

WHOLE_IMAGE = ("MeanBackward", "AdaptiveAvgPool", "BmmBackward", "SoftmaxBackward", "ScaledDot")
"""Autograd nodes after which a cell sees the whole image: global pooling and attention."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """One level and the layers between the level before it and itself.

    Attributes:
        name: of the level.
        shape: of its map, [B, C, H, W].
        stride: input pixels per cell.
        parameters: learned numbers of the stage (running statistics are not learned).
        multiply_adds: of its convolutions and linear layers for the whole batch.
        receptive_field: side in input pixels of the square that a cell depends on; None for the whole image.
    """

    name: str
    shape: tuple[int, ...]
    stride: int
    parameters: int
    multiply_adds: int
    receptive_field: int | None

    @property
    def channels(self) -> int:
        """Channels of the map."""
        return self.shape[1]


def describe(backbone: nn.Module, shape: Sequence[int] = (1, 3, 224, 224)) -> list[Stage]:
    """Describe a backbone for images of a shape.

    A parameter or layer belongs to the first level that is computed from it.

    Args:
        backbone: any backbone; it is not changed.
        shape: [B, C, H, W] of the images.
    """
    net = copy.deepcopy(backbone).to("meta").eval().requires_grad_(True)
    work: dict[str, int] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            _count(module, work, name)
    with torch.enable_grad():
        maps: list[Tensor] = net(torch.empty(tuple(shape), device="meta", requires_grad=True))
    levels: tuple[Level, ...] = net.levels  # type: ignore[assignment]  # nn.Module types its attributes
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    stages = []
    for level, m, (leaves, field) in zip(levels, maps, _trace(maps)):
        own = {names[id(leaf)]: leaf.numel() for leaf in leaves if id(leaf) in names}
        macs = sum(work.pop(name.rpartition(".")[0], 0) for name in own)
        stages.append(Stage(level.name, tuple(m.shape), level.stride, sum(own.values()), macs, field))
    return stages


def stages_of(backbone: nn.Module, channels: int = 3) -> dict[str, int]:
    """The stage that each parameter belongs to: 0 makes the first level, the stem of a ResNet, and so on.

    Args:
        backbone: any backbone; it is not changed.
        channels: of its images.
    """
    # Not on the device without values: its norms import torch's compiler, which takes 3 s.
    net = copy.deepcopy(backbone).to("cpu").eval().requires_grad_(True)
    height, width = getattr(backbone, "size", None) or (64, 64)
    with torch.enable_grad():
        maps: list[Tensor] = net(torch.zeros(1, channels, height, width))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    known: dict[Any, None] = {}
    found: dict[str, int] = {}
    for number, m in enumerate(maps):
        for node in _from_inputs(m.grad_fn, known):
            known[node] = None
            if (name := names.get(id(getattr(node, "variable", None)))) is not None:
                found[name] = number
    # What no level is made from nobody uses, unless a head runs a last stage that the backbone leaves to it.
    rest = len(maps) if hasattr(backbone, "leave_last_stage") else len(maps) - 1
    return {name: found.get(name, rest) for name, _ in net.named_parameters()}


def table(stages: Sequence[Stage]) -> str:
    """The stages as an aligned text table with a line of sums."""
    rows = [("level", "shape", "stride", "parameters", "multiply-adds", "receptive field")]
    for s in stages:
        field = "whole image" if s.receptive_field is None else f"{s.receptive_field} px"
        shape = " x ".join(map(str, s.shape))
        rows.append((s.name, shape, str(s.stride), f"{s.parameters:,}", f"{s.multiply_adds:,}", field))
    total = (sum(s.parameters for s in stages), sum(s.multiply_adds for s in stages))
    rows.append(("total", "", "", f"{total[0]:,}", f"{total[1]:,}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths)))
                     for row in rows)  # fmt: skip


def family_table(shape: Sequence[int] = (1, 3, 224, 224)) -> list[list[str]]:
    """Every network of our own family: name, million parameters, billion multiply-adds, levels as channels / stride.

    Args:
        shape: of the images; the CIFAR networks are described for 32 x 32 pixels.
    """
    from densekit.backbones.resnet import VARIANTS, ResNet

    rows = []
    for variant in VARIANTS:
        small = len(variant.depths) == 3
        with torch.device("meta"):
            net = ResNet(variant, in_channels=shape[1])
        size = (32, 32) if small else tuple(shape[2:])
        stages = describe(net, (shape[0], shape[1], *size))
        parameters = sum(s.parameters for s in stages) / 1e6
        work = sum(s.multiply_adds for s in stages) / 1e9
        levels = ", ".join(f"{s.name} {s.channels}/{s.stride}" for s in stages)
        rows.append([variant.name, f"{size[0]} x {size[1]}", f"{parameters:.2f}", f"{work:.3g}", levels])
    return rows


def _trace(maps: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], int | None]]:
    """Read the autograd graph: what each map is computed from that the maps before it are not, and its field.

    Along a convolution or pool of kernel k and dilation d over cells of ``jump`` pixels the receptive field grows by
    (k - 1) * d * jump (Araujo et al. 2019, "Computing receptive fields of convolutional neural networks", eq. 2); where
    paths meet the largest counts. None where a path goes through global pooling or attention.

    Yields:
        For each map the leaf tensors (parameters, images), and the side of its receptive field.
    """
    known: dict[Any, tuple[int, int] | None] = {}
    for m in maps:
        leaves = []
        for node in _from_inputs(m.grad_fn, known):
            known[node] = _grown(node, [known[n] for n, _ in node.next_functions if n is not None])
            if hasattr(node, "variable"):
                leaves.append(node.variable)
        found = known[m.grad_fn]
        yield leaves, None if found is None else found[0]


def _from_inputs(root: Any, done: dict[Any, Any]) -> Iterator[Any]:
    """Nodes below ``root`` that are not done, each after the ones it is computed from."""
    stack = [(root, False)]
    seen = set(done)
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((n, False) for n, _ in node.next_functions if n is not None)


def _grown(node: Any, inputs: Sequence[tuple[int, int] | None]) -> tuple[int, int] | None:
    """(field, jump) after a node; None for the whole image."""
    name = node.name()
    if any(i is None for i in inputs) or any(whole in name for whole in WHOLE_IMAGE):
        return None
    field = max((i[0] for i in inputs if i is not None), default=1)
    jump = max((i[1] for i in inputs if i is not None), default=1)
    if "Convolution" in name:
        kernel, dilation = node._saved_weight.shape[-1], node._saved_dilation[-1]
    elif "Pool2D" in name:
        kernel, dilation = node._saved_kernel_size[-1], getattr(node, "_saved_dilation", (1,))[-1]
    else:
        return field, jump
    stride = (node._saved_stride or (kernel,))[-1]
    return field + (kernel - 1) * dilation * jump, jump * stride


def _count(module: nn.Conv2d | nn.Linear, work: dict[str, int], name: str) -> None:
    """Have the module add its multiply-adds to ``work[name]`` whenever it runs."""

    def add(output: Tensor) -> Tensor:
        cells = output.numel() // module.weight.shape[0]
        work[name] = work.get(name, 0) + cells * module.weight.numel()
        return output

    if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward:
        run = module._conv_forward  # where a frozen norm is folded in, forward itself is not called
        module._conv_forward = lambda *given: add(run(*given))  # type: ignore[method-assign]
    else:
        module.register_forward_hook(lambda _, __, output: add(output))
