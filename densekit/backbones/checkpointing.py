"""Activation checkpointing: a block keeps its input alone for the backward, which computes the rest again.

Chen et al. 2016, arXiv 1604.06174. Less memory for about a third more time, and the same numbers: random draws are
repeated, and running statistics count once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from densekit.errors import DensekitError


def checkpointed(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    """``forward(*inputs)`` of a block, of which the backward keeps nothing but ``inputs``.

    Raises:
        DensekitError: in the backward, where the block's input was changed in place meanwhile.
    """
    if not torch.is_grad_enabled():
        return forward(*inputs)
    if torch.compiler.is_compiling():  # a graph recomputes values alone, and its statistics count once by themselves
        return checkpoint(forward, *inputs, use_reentrant=False)
    kept = [list(x) if isinstance(x, list) else x for x in inputs]  # a caller may put more into its list
    contexts = functools.partial(_contexts, block, [x for x in kept if isinstance(x, Tensor)])
    return checkpoint(forward, *kept, use_reentrant=False, context_fn=contexts)


def _contexts(
    block: nn.Module, inputs: list[Tensor]
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of the two forwards."""
    return nullcontext(), _Anew(functools.partial(_again, block, inputs, [x._version for x in inputs]))


class _Anew(AbstractContextManager[None]):
    """A context that can be entered again: several backward passes through one graph each compute a block anew."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make

    def __enter__(self) -> None:
        self._context = self._make()
        self._context.__enter__()

    def __exit__(self, *raised: Any) -> bool | None:
        return self._context.__exit__(*raised)


def checkpoint_blocks(backbone: nn.Module) -> None:
    """Checkpoint every block of a backbone from now on.

    A network of our own knows its blocks. Of another they are what stands in a row there (in an ``nn.Sequential`` or
    ``nn.ModuleList``, or all of one class): a stage gives its blocks, a block stays whole.

    Raises:
        DensekitError: there are no blocks.
    """
    if hasattr(backbone, "activation_checkpointing"):
        backbone.activation_checkpointing = True  # type: ignore[assignment]  # nn.Module types its attributes
        return
    blocks = list(_blocks(backbone))
    if not blocks:
        raise DensekitError(
            f"train.checkpoint_backbone: {type(backbone).__name__} has no blocks in a row "
            "whose insides could be computed again; leave it out, or take another backbone"
        )
    for block in blocks:
        block.__class__ = _checkpointing(type(block))  # it adds no state, and a copy of the block runs its own weights


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    alike = len(children) > 1 and len({type(child) for child in children}) == 1
    for child in children:
        inner = list(_blocks(child))
        if (alike or isinstance(module, nn.Sequential | nn.ModuleList)) and _has_insides(child) and len(inner) < 2:
            yield child
        else:
            yield from inner


def _has_insides(module: nn.Module) -> bool:
    """Whether several layers compute something on the way; a list of blocks computes nothing itself."""
    layers = [m for m in module.modules() if m is not module and list(m.parameters(recurse=False))]
    return len(layers) > 1 and not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _checkpointing(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *inputs: Any) -> Any:
        run = functools.partial(kind.forward, self)
        return checkpointed(self, run, *inputs) if self.training else run(*inputs)

    return cast(type[nn.Module], type(f"Checkpointed{kind.__name__}", (kind,), {"forward": forward}))


@contextmanager
def _again(block: nn.Module, inputs: list[Tensor], versions: list[int]) -> Iterator[None]:
    """Let the norms run as ever, so that the backward finds what the first forward kept, but without counting."""
    if versions != [x._version for x in inputs]:
        raise DensekitError(
            f"train.checkpoint_backbone: the input of a {type(block).__name__} was changed in place, so its insides "
            "can't be computed again; set it to false for this backbone"
        )
    norms = [m for m in block.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    before = [(norm.momentum, cast(Tensor, norm.num_batches_tracked).clone()) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum = momentum
            cast(Tensor, norm.num_batches_tracked).copy_(count)
