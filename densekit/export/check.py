"""An exported file beside its model: on images of odd sizes, and on a data set with its numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densekit.errors import DensekitError
from densekit.export.difference import differences
from densekit.export.files import Notes, Written
from densekit.export.graph import Graph
from densekit.export.runners import Runner, open_file
from densekit.model import DenseModel
from densekit.types import Batch, Metric

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
    """

    images: int
    numbers: dict[str, tuple[float, float]]
    mean: float
    largest: float
    first: int | str
    probes: float

    @property
    def apart(self) -> float:
        """Largest difference of a number; one that only the file can't be measured by counts as 1."""
        return max(abs(a - b) if a == a and b == b else float((a == a) != (b == b)) for a, b in self.numbers.values())

    def summary(self) -> str:
        """One line."""
        numbers = ", ".join(f"{name} {b:.4f} (model {a:.4f})" for name, (a, b) in self.numbers.items())
        return f"{numbers} on {self.images} images; predictions differ by {self.mean:.1e}, at most {self.largest:.1e}"


@torch.inference_mode()
def compare(
    model: DenseModel,
    file: DenseModel,
    batches: Iterable[Batch],
    metric: Callable[[], Metric],
) -> Checked:
    """Predict a data set with both.

    Args:
        model: in evaluation mode, on the CPU.
        file: what was made of it.
        batches: of the data set.
        metric: makes an empty one.

    Raises:
        DensekitError: the file fails on an image.
    """
    metrics, found, ids, probes = (metric(), metric()), [], [], 0.0
    for number, batch in enumerate(batches):
        if not number:
            probes = max(max(differences(model.predict(p), _predicted(file, p))) for p in odd_batches(batch))
        pair = model.predict(batch), _predicted(file, batch)
        for one, predictions in zip(metrics, pair):
            one.update(predictions, batch)
        found += differences(*pair)
        ids += batch.ids
    computed = [one.compute() for one in metrics]
    numbers = {
        name: (_number(computed[0][name]), _number(computed[1][name])) for name in NUMBERS if name in computed[0]
    }
    first = next((i for i, apart in zip(ids, found) if apart > SHOWS), ids[found.index(max(found))])
    return Checked(len(ids), numbers, sum(found) / len(found), max(found), first, probes)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


@torch.inference_mode()
def compare_maps(graph: Graph, runner: Runner, batches: Iterable[Batch]) -> Checked:
    """Compute the maps of a data set's images with both, each image at its own size; ``agreement`` is what counts.

    Args:
        graph: of a backbone alone.
        runner: of the file that was made of it.
        batches: of the data set.
    """
    found: list[float] = []
    ids: list[int | str] = []
    probes = 0.0
    for number, batch in enumerate(batches):
        if not number:
            probes = max(_apart(graph(p.images), runner(p.images)) for p in odd_batches(batch))
        for image, (height, width) in zip(torch.split(batch.images, 1), batch.numbers(batch.sizes)):
            own = image[..., :height, :width].contiguous()
            found.append(_apart(graph(own), runner(own)))
        ids += batch.ids
    mean, first = sum(found) / len(found), ids[found.index(max(found))]
    return Checked(len(ids), {"agreement": (1.0, 1 - mean)}, mean, max(found), first, probes)


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


def _predicted(file: DenseModel, batch: Batch) -> Any:
    try:
        return file.predict(batch)
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
    name: Callable[[int | str], str],
) -> Checked:
    """Write a file, run it beside its model, and give it its name where both agree.

    Args:
        written: the file.
        out: its name.
        notes: that it holds; what the check found is added.
        check: compares what was opened with the model.
        tolerance: most that a number may differ.
        odd_sizes: most that predictions of ``odd_batches`` may differ.
        name: of an image, by its id.

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
            f"that differs is {name(checked.first)}"
        )
    if checked.probes > odd_sizes:
        raise DensekitError(
            f"{out} is not written: on images of odd sizes its predictions differ from the model's by "
            f"{checked.probes:.3f}, on those of the data set by {checked.largest:.3f} at most; a layer of the model "
            "depends on the size of the images in a way that the format does not keep"
        )
    written.save(out, {**notes, "check": dataclasses.asdict(checked)})
    return checked
