"""An exported file beside its model: on images of odd sizes, and on a data set with its numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from densekit.errors import DensekitError
from densekit.export.difference import differences
from densekit.export.files import Notes, Written
from densekit.export.graph import Graph
from densekit.export.runners import Runner, open_file
from densekit.model import DenseModel
from densekit.types import Batch, Metric, Predictions

NUMBERS = ("AP", "mask_AP", "mIoU", "top1")
"""What a file is measured by."""

SHOWS = 0.01
"""Difference of an image's predictions from which on it is named as the first that differs."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        images: of the data set.
        numbers: by name, (of the model, of the file).
        mean: difference of the images' predictions, see ``difference.py``.
        largest: likewise.
        first: id of the first image that differs, else of the one that differs most.
        probes: largest difference on images of odd sizes.
        file: of the image ``first``; not kept, for it names folders of this machine.
    """

    images: int
    numbers: dict[str, tuple[float, float]]
    mean: float
    largest: float
    first: int | str
    probes: float
    file: str

    @property
    def apart(self) -> float:
        """Largest difference of a number; one that only the file can't be measured by counts as 1."""
        return max(map(_gap, self.numbers.values()))

    def summary(self) -> str:
        """One line."""
        numbers = ", ".join(f"{name} {b:.4f} (model {a:.4f})" for name, (a, b) in self.numbers.items())
        return f"{numbers} on {self.images} images; predictions differ by {self.mean:.1e}, at most {self.largest:.1e}"

    def content(self) -> dict[str, Any]:
        """Plain types, for the file's notes."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "file"}


class CheckedOn(NamedTuple):
    """A data set that a file is checked on.

    Attributes:
        batches: of it.
        metrics: makes an empty one for each head that it has labels for.
        heads: that are compared on it; one without a metric by ``agreement``, how alike its predictions are.
        name: file of an image, by its id.
    """

    batches: Iterable[Batch]
    metrics: Callable[[], Mapping[str, Metric]]
    heads: Sequence[str]
    name: Callable[[int | str], str]


@torch.inference_mode()
def compare(model: DenseModel, file: DenseModel, on: CheckedOn) -> Checked:
    """Predict a data set with both.

    Args:
        model: in evaluation mode, on the CPU.
        file: what was made of it.
        on: the data set.

    Raises:
        DensekitError: the file fails on an image.
    """
    metrics, probes = (on.metrics(), on.metrics()), 0.0
    found: dict[str, list[float]] = {head: [] for head in on.heads}
    ids: list[int | str] = []
    for number, batch in enumerate(on.batches):
        if not number:
            probes = max(d for odd in odd_batches(batch) for own in _both(model, file, odd, on.heads)[1] for d in own)
        pair, apart = _both(model, file, batch, on.heads)
        for own, predictions in zip(metrics, pair):
            for head, metric in own.items():
                metric.update(predictions[head], batch)
        for head, of_head in zip(on.heads, apart):
            found[head] += of_head
        ids += batch.ids
    numbers: dict[str, tuple[float, float]] = {}
    for head, differs in found.items():
        told = _numbers(*(one[head] for one in metrics)) if head in metrics[0] else _agreement(differs)
        numbers |= {f"{model.prefix(head)}{name}": both for name, both in told.items()}
    return _checked(ids, numbers, [max(image) for image in zip(*found.values())], probes, on)


def _both(
    model: DenseModel, file: DenseModel, batch: Batch, heads: Sequence[str]
) -> tuple[tuple[dict[str, Predictions], dict[str, Predictions]], list[list[float]]]:
    """What both predict, and how far that differs: a list a head with a number an image."""
    pair = model.predict_all(batch, heads), _predicted(file, batch, heads)
    return pair, [differences(*(one[head] for one in pair)) for head in heads]


def _numbers(of_model: Metric, of_file: Metric) -> dict[str, tuple[float, float]]:
    a, b = of_model.compute(), of_file.compute()
    return {name: (_number(a[name]), _number(b[name])) for name in NUMBERS if name in a}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _agreement(differs: Sequence[float]) -> dict[str, tuple[float, float]]:
    return {"agreement": (1.0, 1 - sum(differs) / len(differs))}


def _checked(
    ids: Sequence[int | str],
    numbers: dict[str, tuple[float, float]],
    differs: Sequence[float],
    probes: float,
    on: CheckedOn,
) -> Checked:
    first = next((i for i, apart in zip(ids, differs) if apart > SHOWS), ids[differs.index(max(differs))])
    return Checked(len(ids), numbers, sum(differs) / len(differs), max(differs), first, probes, on.name(first))


@torch.inference_mode()
def compare_maps(graph: Graph, runner: Runner, on: CheckedOn) -> Checked:
    """Compute the maps of a data set's images with both, each image at its own size; ``agreement`` is what counts.

    Args:
        graph: of a backbone alone.
        runner: of the file that was made of it.
        on: the data set.
    """
    found: list[float] = []
    ids: list[int | str] = []
    probes = 0.0
    for number, batch in enumerate(on.batches):
        if not number:
            probes = max(_apart(graph(p.images), runner(p.images)) for p in odd_batches(batch))
        for image, (height, width) in zip(torch.split(batch.images, 1), batch.numbers(batch.sizes)):
            own = image[..., :height, :width].contiguous()
            found.append(_apart(graph(own), runner(own)))
        ids += batch.ids
    return _checked(ids, _agreement(found), found, probes, on)


def together(parts: Sequence[Checked]) -> Checked:
    """What was found on several data sets, as one; of a number that two of them tell, the pair farther apart."""
    images = sum(part.images for part in parts)
    numbers: dict[str, tuple[float, float]] = {}
    for name, pair in [item for part in parts for item in part.numbers.items()]:
        numbers[name] = max(numbers.get(name, pair), pair, key=_gap)
    worst = max(parts, key=lambda part: part.largest)
    return Checked(
        images,
        numbers,
        sum(part.mean * part.images for part in parts) / images,
        worst.largest,
        worst.first,
        max(part.probes for part in parts),
        worst.file,
    )


def _gap(pair: tuple[float, float]) -> float:
    a, b = pair
    return abs(a - b) if a == a and b == b else float((a == a) != (b == b))


def _apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of a level, relative to its values; 1 where shapes differ."""
    if any(a[name].shape != b[name].shape for name in a):
        return 1.0
    return max(float((a[name] - b[name]).norm() / a[name].norm().clamp(min=1e-12)) for name in a)


def odd_batches(batch: Batch) -> list[Batch]:
    """Three images of one odd size, one of another, and one that shows nothing."""
    (height, width), rows = map(min, zip(*batch.numbers(batch.sizes))), [i % len(batch.ids) for i in range(3)]
    images = batch.images[rows]
    smaller = images[:1, :, : _odd(height * 3 // 4), : _odd(width * 2 // 3)]
    return [_plain(images[:, :, : _odd(height), : _odd(width)]), _plain(smaller), _plain(torch.zeros_like(smaller))]


def _odd(side: int) -> int:
    return max(1, side - 1 + side % 2)


def _plain(images: Tensor) -> Batch:
    sizes = torch.tensor([images.shape[2:]] * len(images))
    return Batch(images, sizes, sizes, list(range(len(images))), torch.zeros(len(images), dtype=torch.int64))


def _predicted(file: DenseModel, batch: Batch, heads: Sequence[str]) -> dict[str, Predictions]:
    try:
        return file.predict_all(batch, heads)
    except DensekitError:
        raise
    except Exception as error:  # whatever a runtime raises
        line = str(error).strip().splitlines()[0]
        shape = " x ".join(map(str, batch.images.shape))
        raise DensekitError(f"the exported file fails on a batch of {shape} ({line[:300]})") from error


def save_checked(
    written: Written,
    out: Path,
    notes: Notes,
    check: Callable[[Runner, Notes], Checked],
    *,
    tolerance: float,
    odd_sizes: float,
) -> Checked:
    """Write a file, run it beside its model, and give it its name where both agree.

    Args:
        written: the file.
        out: its name.
        notes: that it holds; what the check found is added.
        check: compares what was opened with the model.
        tolerance: most that a number may differ.
        odd_sizes: most that predictions of ``odd_batches`` may differ.

    Raises:
        DensekitError: they differ; nothing is left under the name, and what stood there before stays.
    """
    unchecked = out.with_name(f".{out.stem[:40]}.unchecked{out.suffix}")
    try:
        written.save(unchecked, notes)
        checked = check(*open_file(unchecked))
    finally:
        unchecked.unlink(missing_ok=True)
    if checked.apart > tolerance:
        raise DensekitError(
            f"{out} is not written: {checked.summary()}: more than {tolerance} apart (--tolerance); the first image "
            f"that differs is {checked.file}"
        )
    if checked.probes > odd_sizes:
        raise DensekitError(
            f"{out} is not written: on images of odd sizes its predictions differ from the model's by "
            f"{checked.probes:.3f}, on those of the data set by {checked.largest:.3f} at most; a layer of the model "
            "depends on the size of the images in a way that the format does not keep"
        )
    written.save(out, {**notes, "check": checked.content()})
    return checked
