"""Batches on their way to the device: on a GPU the next ones are copied while a step runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from densekit.types import Batch


class Taken(NamedTuple):
    """The micro-batches of an update.

    Attributes:
        host: as they came.
        device: their copies on the device.
    """

    host: list[Batch]
    device: list[Batch]


class CopiedAhead:
    """The micro-batches of each update, on the device of a run.

    On a GPU the copies run on a stream of their own, so that they wait for nothing that was queued before, and nothing
    waits for them but the step that takes them. Elsewhere nothing is taken before its turn.

    Args:
        batches: of each update, in pinned memory for a GPU.
        device: of the run.
    """

    def __init__(self, batches: Iterator[list[Batch]], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream = side_stream(device)
        self._next: Taken | Exception | None = None

    def __next__(self) -> Taken:
        """Those of the next update, ready for what is queued from here on."""
        if self._stream is None:
            return self._take()
        if self._next is None:
            self.begin_next()
        taken, self._next = self._next, None
        if isinstance(taken, Exception):
            raise taken
        assert taken is not None
        step = torch.cuda.current_stream(self._device)
        step.wait_stream(self._stream)
        for batch in taken.device:
            _keep_for(step, batch)
        return taken

    def begin_next(self) -> None:
        """On a GPU, take those of the next update and begin to copy them; to be called when a step has been queued.

        What fails is told when their turn comes: the run may end before.
        """
        if self._stream is None:
            return
        with torch.cuda.stream(self._stream):
            try:
                self._next = self._take()
            except Exception as error:
                self._next = error

    def _take(self) -> Taken:
        host = next(self._batches)
        return Taken(host, [batch.to(self._device) for batch in host])


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """What copies run on beside the work of a device; None where they don't."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _keep_for(stream: torch.cuda.Stream, batch: Batch) -> None:
    """Let memory that another stream gave go back to it no sooner than this one has done what it was asked by then."""

    def recorded(tensor: Tensor) -> Tensor:
        tensor.record_stream(stream)
        return tensor

    batch.changed(recorded)
