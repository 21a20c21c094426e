"""When memory runs out: how torch says it, and what was in the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from densekit.types import Batch, DensekitError


def describe_batch(batch: Batch) -> str:
    """One line on what is in a batch, for messages."""
    shape = " x ".join(str(n) for n in batch.images.shape)
    boxes = batch.targets.boxes if batch.targets else None
    objects = f", up to {boxes.boxes.shape[1]} boxes an image" if boxes is not None else ""
    return f"{shape} pixels{objects}, images {', '.join(str(i) for i in batch.ids[:8])}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory ran out, on a GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "MPS backend out of memory")
    )


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """A model that the machine can't hold is a user's number too many (a width, a pool size), not our fault."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DensekitError(
            "out of memory while building the model, before its first batch; look for an option of model.backbone or "
            "model.heads that is far too large, or choose a smaller model"
        ) from None
