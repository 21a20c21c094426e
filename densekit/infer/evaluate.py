"""Predictions over a data set, against its annotations; each image counts once, whatever the number of ranks."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from densekit.console import track
from densekit.engine.distributed import World, any_rank, gather
from densekit.errors import DensekitError
from densekit.memory import describe_batch, is_out_of_memory
from densekit.model import DenseModel
from densekit.packed import packed
from densekit.precision import DTYPES, Precision, autocast
from densekit.types import Batch, Metric, Predictions

Forward = Callable[[Batch], tuple[dict[str, torch.Tensor], dict[str, Predictions]]]


class Measure(NamedTuple):
    """Heads that are measured on a data set.

    Attributes:
        batches: this rank's share of the data set.
        metrics: an empty one for each head; collects its predictions.
        predict: given the model that predicts, how its heads do so in another way than by ``DenseModel.predict_all``:
            on mirrored and scaled copies, or by tiles. Batches come to it on the host, and it moves what it needs. Then
            there are no losses, for no single pass stands for the predictions.
    """

    batches: Iterable[Batch]
    metrics: Mapping[str, Metric]
    predict: Callable[[DenseModel], Callable[[Batch], dict[str, Predictions]]] | None = None


@torch.inference_mode()
def evaluate(
    model: DenseModel,
    measures: Sequence[Measure],
    *,
    world: World,
    precision: Precision = "fp32",
    progress: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Measure heads of a model, all from one pass of the backbone.

    Args:
        model: is put into evaluation mode; below fp32 a packed copy of it predicts.
        measures: what is measured on which data sets.
        world: ranks and device.
        precision: of the forward pass.
        progress: show how far it is.
        stopping: asked before each batch: whether to leave the evaluation; where one rank says so, all leave it, the
            others after their share.

    Returns:
        The metrics' numbers, the losses (``loss`` and each part, averaged over the images), and ``skipped``, a list of
        the images that could not be read, where there are some. Names begin with the head's where the model has several
        (``DenseModel.prefix``). The same on every rank. None where the evaluation was left.
    """
    model = packed(model, DTYPES[precision])
    sums = []
    for measure in measures:
        how = measure.predict
        forward = _both(model, list(measure.metrics), world.device) if how is None else _without_losses(how(model))
        count = operator.length_hint(measure.batches)
        shown = track(measure.batches, "evaluating", count, shown=world.is_first and progress)
        guarded = functools.partial(_forward, forward, precision=precision, device=world.device)
        sums.append(_collect(measure, shown, guarded, stopping))
        if any_rank(stopping()):
            return None
    return _together(model, measures, sums)


def _collect(
    measure: Measure, batches: Iterable[Batch], forward: Forward, stopping: Callable[[], bool]
) -> tuple[dict[str, float], int, list[str]]:
    """Losses summed over the images, their number, and lines on images that could not be read."""
    terms: dict[str, list[tuple[torch.Tensor, int]]] = {}  # read when all is done: no wait, and no float64 on a device
    images, skipped = 0, []
    for batch in batches:
        if stopping():
            break
        losses, predictions = forward(batch)
        for name, value in losses.items():
            terms.setdefault(name, []).append((value, len(batch.ids)))
        images += len(batch.ids)
        skipped += batch.skipped
        for head, metric in measure.metrics.items():
            metric.update(predictions[head], batch)
    return {name: sum(float(value) * count for value, count in pairs) for name, pairs in terms.items()}, images, skipped


def _both(model: DenseModel, heads: list[str], device: torch.device) -> Forward:
    return lambda batch: model.losses_and_predictions(batch.to(device), heads)


def _without_losses(predict: Callable[[Batch], dict[str, Predictions]]) -> Forward:
    return lambda batch: ({}, predict(batch))


def _forward(
    forward: Forward, batch: Batch, *, precision: Precision, device: torch.device
) -> tuple[dict[str, torch.Tensor], dict[str, Predictions]]:
    try:
        with autocast(precision, device):
            return forward(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DensekitError(
            f"out of memory while evaluating a batch of {describe_batch(batch)}; lower evaluation.batch_size or the "
            f"size in data.eval_transforms"
        ) from error


def _together(
    model: DenseModel, measures: Sequence[Measure], collected: Sequence[tuple[dict[str, float], int, list[str]]]
) -> dict[str, Any]:
    """Over all ranks and data sets."""
    numbers: dict[str, Any] = {}
    means: dict[str, float] = {}
    missing: list[str] = []
    for measure, own in zip(measures, collected, strict=True):
        for head, metric in measure.metrics.items():
            metric.merge(gather(metric.state()))
            numbers |= {f"{model.prefix(head)}{name}": value for name, value in metric.compute().items()}
        parts = gather(own)
        count = max(1, sum(n for _, n, _ in parts))
        names = dict.fromkeys(name for losses, _, _ in parts for name in losses)
        means |= {name: sum(losses.get(name, 0.0) for losses, _, _ in parts) / count for name in names}
        missing += [line for _, _, lines in parts for line in lines]
    if means:
        numbers |= {"loss": sum(means.values()), "losses": means}
    return {**numbers, "skipped": missing} if missing else numbers
