"""Predictions recorded as CUDA graphs, one for each shape of batch: the host queues one thing, not thousands."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from densekit.errors import DensekitError
from densekit.model import DenseModel
from densekit.types import Batch, Predictions

MOST = 8
"""Shapes that are kept, each with the memory of one prediction's inputs and outputs; what lies between is shared."""

WARM_UP = 2
"""Predictions before one is recorded, in which libraries choose their kernels and ask for memory of their own."""

Found = dict[str, Predictions]


def capture(model: DenseModel) -> None:
    """Let a model predict by recorded graphs from now on.

    Args:
        model: in evaluation mode, on a GPU, packed for one precision; its weights and classes stay where they are.

    Raises:
        DensekitError: it is on another device, or an exported file.
    """
    device = model.mean.device
    if device.type != "cuda":
        raise DensekitError(f"capture records what a CUDA GPU does, and the model is on {device}; leave it out")
    if next(model.parameters(), None) is None:
        raise DensekitError("capture: an exported file runs as it was made; leave it out, or give the checkpoint")
    model.captured = Captured(model)


class Captured:
    """A model's ``predict_part`` by recorded graphs.

    A shape is recorded when it comes for the second time, since that takes as long as a few predictions. Where one
    can't be recorded, all is predicted plainly from there on, with one warning of why.

    Args:
        model: see ``capture``.
        most: shapes that are kept; the one that was seen longest ago goes.
    """

    def __init__(self, model: DenseModel, most: int = MOST) -> None:
        self._model, self._most = model, most
        self._graphs: collections.OrderedDict[Hashable, _Graph | None] = collections.OrderedDict()
        self._pool: Any = None
        self._failed = False

    @torch.inference_mode()
    def __call__(self, batch: Batch, heads: Sequence[str]) -> Found:
        """As ``predict_part``; what it gives is the caller's own."""
        if self._failed or batch.maps is not None:
            return self._model.predict_part(batch, heads)
        shape = self._shape(batch, heads)
        known = shape in self._graphs
        graph = self._graphs.setdefault(shape, None)
        self._graphs.move_to_end(shape)
        if len(self._graphs) > self._most:
            self._graphs.popitem(last=False)
        if known and graph is None:
            graph = self._graphs[shape] = self._recorded(batch, heads)
        return self._model.predict_part(batch, heads) if graph is None else graph(batch)

    def _shape(self, batch: Batch, heads: Sequence[str]) -> Hashable:
        """All that a graph holds as it was when it was recorded."""
        shape = (tuple(heads), batch.images.shape, batch.images.dtype)
        if all(self._model.head(name).task != "segmentation" for name in heads):
            return shape
        # Maps are cut and enlarged to sizes that the host knows; boxes are scaled on the GPU.
        return *shape, *(tuple(map(tuple, batch.numbers(sizes))) for sizes in (batch.sizes, batch.original_sizes))

    def _recorded(self, batch: Batch, heads: Sequence[str]) -> _Graph | None:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            return _Graph(self._model, batch, heads, self._pool)
        except RuntimeError as error:  # of CUDA: it can't be recorded, or there is no memory for it
            cause = error.__context__ or error  # the end of a recording tells less
            why = " ".join(str(cause).split())[:300]
            warnings.warn(f"capture: predictions run without recorded graphs: {why}", RuntimeWarning, stacklevel=2)
            self._failed = True
            self._graphs.clear()
            return None


class _Graph:
    """What one prediction queued, to be queued again on other numbers.

    Args:
        model: that predicts.
        batch: of the shape.
        heads: that predict.
        pool: the memory of graphs, none of which needs anything there when another one runs.
    """

    def __init__(self, model: DenseModel, batch: Batch, heads: Sequence[str], pool: Any) -> None:
        self._batch = dataclasses.replace(batch, targets=None, truth=None).changed(torch.clone)
        device = batch.images.device
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(device)
        with torch.cuda.device(device), _without_kept_casts(device):
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    model.predict_part(self._batch, heads)
            current.wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # Threads that pin the next batches must not be in its way.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self._found = model.predict_part(self._batch, heads)

    def __call__(self, batch: Batch) -> Found:
        """The predictions on a batch, out of the graph's memory."""
        for name in ("images", "sizes", "original_sizes"):
            getattr(self._batch, name).copy_(getattr(batch, name))
        self._graph.replay()
        return {head: _copied(found) for head, found in self._found.items()}


def _without_kept_casts(device: torch.device) -> torch.autocast:
    """The mixed precision that is on, without weights that it cast once: these go when it ends, while graphs stay."""
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False)


def _copied(found: Predictions) -> Predictions:
    return dataclasses.replace(found, **{f.name: _copy(getattr(found, f.name)) for f in dataclasses.fields(found)})


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [one.clone() for one in value]
    return value.clone() if isinstance(value, Tensor) else value
