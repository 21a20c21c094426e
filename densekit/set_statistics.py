"""Batch norm statistics of a backbone for each of several data sets (Li et al. 2016, arXiv 1603.04779).

Other images have other means and variances in every layer, while weights, scale and shift are shared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from densekit.config import Config

Passes = Sequence[tuple[str | None, Sequence[str]]]
"""Data sets by whose statistics the backbone runs, each with the heads that look at its maps; None: by its own."""

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class NormStatistics(nn.Module):
    """The statistics of one batch norm for a data set; they begin with those that it has."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name in _BUFFERS:
            self.register_buffer(name, getattr(norm, name).clone())


class SetStatistics(nn.Module):
    """The statistics of all batch norms of a backbone for each of several data sets.

    The backbone's own buffers are those of the first set; those of the others lie here, and change places with them
    while they are in use. For inference each set may get a backbone of its own instead.

    Args:
        backbone: whose statistics all sets begin with.
        heads: that learn from each data set, by its name.

    Attributes:
        sets: names of the data sets.
    """

    def __init__(self, backbone: nn.Module, heads: dict[str, Sequence[str]]) -> None:
        super().__init__()
        self.sets = tuple(heads)
        self._set_of = {head: name for name in reversed(self.sets) for head in heads[name]}
        self._norms = [m for m in backbone.modules() if isinstance(m, _NormBase) and m.track_running_stats]
        for name in self.sets[1:]:
            self.add_module(_key(name), nn.ModuleList(map(NormStatistics, self._norms)))
        self.backbones = nn.ModuleDict()

    def passes(self, heads: Iterable[str]) -> list[tuple[str, list[str]]]:
        """One pass of the backbone for the heads of each data set; heads without one look through the first one's."""
        found: dict[str, list[str]] = {}
        for head in heads:
            found.setdefault(self._set_of.get(head, self.sets[0]), []).append(head)
        return [*found.items()]

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Let the backbone normalise by the statistics of a data set in evaluation, and keep them in training.

        It has to last until the backward pass is over: checkpointed blocks run again there.
        """
        before = [dict(norm._buffers) for norm in self._norms]
        try:
            if name in self.sets[1:]:
                for norm, held in zip(self._norms, self._held(name)):
                    norm._buffers.update(held._buffers)
            yield
        finally:
            for norm, own in zip(self._norms, before):
                norm._buffers.update(own)

    def maps(self, backbone: nn.Module, images: Tensor, name: str) -> list[Tensor]:
        """What a backbone makes of normalised images through the statistics of a data set."""
        if _key(name) in self.backbones:
            return cast("list[Tensor]", self.backbones[_key(name)](images))
        with self.use(name):
            return cast("list[Tensor]", backbone(images))

    @torch.no_grad()
    def begin(self) -> None:
        """Let all sets begin with what the backbone has now, such as the statistics of given weights."""
        for name in self.sets[1:]:
            for norm, held in zip(self._norms, self._held(name)):
                held.load_state_dict({buffer: getattr(norm, buffer) for buffer in _BUFFERS})

    @torch.no_grad()
    def kept(self, heads: Iterable[str]) -> SetStatistics | None:
        """What some heads need; None where that is one set's, which the backbone then has as its own."""
        (name, _), *others = self.passes(heads)
        if others:
            return self
        for norm, held in zip(self._norms, self._held(name) if name in self.sets[1:] else ()):
            for buffer in _BUFFERS:
                getattr(norm, buffer).copy_(getattr(held, buffer))
        return None

    def split(self, make: Callable[[], nn.Module]) -> None:
        """Give each set a backbone of its own, for inference alone.

        Args:
            make: copies the backbone as it is at that moment.
        """
        for name in self.sets[1:]:
            with self.use(name):
                self.backbones[_key(name)] = make()

    def _held(self, name: str) -> Iterable[NormStatistics]:
        return cast("nn.ModuleList", self.get_submodule(_key(name)))  # type: ignore[return-value]  # all are such


def _key(name: str) -> str:
    """A data set's name as that of a module, which has no dots and no name of torch's."""
    return f"of_{name.replace('.', '/')}"


def statistics_of(config: Config, backbone: nn.Module) -> SetStatistics | None:
    """The statistics that ``train.norm_statistics: each`` keeps beside a backbone's own; None without it."""
    if config.train.norm_statistics != "each" or len(config.sets) == 1:
        return None
    return SetStatistics(backbone, {name: config.heads_of(name) for name in config.sets})
