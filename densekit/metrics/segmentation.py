"""mIoU, Dice, accuracies, the confusion matrix and Boundary IoU, per image and over the data set.

Conventions:

* Pixels whose truth is ``IGNORE`` are not looked at.
* Numbers over the data set come from pixel counts summed over all images, not from a mean over images.
* ``mIoU``, ``dice`` and the other means over classes are taken over the classes that occur in the truth or in the
  predictions (a class that is predicted but never true counts 0; one that is neither does not count).
* Numbers of an image follow the same rules within the image.

Letters: K classes, H, W size of an image.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.metrics.intervals import Floats, Name, Weights, in_order, mean_of_defined, ratio
from densekit.types import IGNORE, Batch, Classes, DensekitError, Segmentation

Counts = npt.NDArray[np.int64]

BOUNDARY_FRACTION = 0.02
"""Width of the boundary band as a part of the image's diagonal (Cheng et al. 2021, section 4.2)."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageCounts:
    """Pixel counts of one image, small enough to keep for every image.

    Attributes:
        multi_label: the confusion matrix is [K, 2, 2] (class, true, predicted), not [K, K] (true, predicted).
        cells: which cells of the flattened matrix are not zero. counts: pixels in each of them.
        shared: [K] pixels that are in the boundary bands of truth and prediction; empty where not measured.
        either: [K] pixels in one of the two bands or both.
    """

    multi_label: bool
    cells: npt.NDArray[np.int32]
    counts: Counts
    shared: Counts
    either: Counts


class SegmentationResampler:
    """What each image adds to the numbers: [I, K] pixels that are right, predicted, true, and those of boundaries.

    Args:
        images: ids.
        matrices: confusion of each image.
        boundary: [2, I, K] pixels in both bands, and in either; None where not measured.
        names: of the classes.
    """

    def __init__(
        self, images: Sequence[int | str], matrices: Sequence[Counts], boundary: Counts | None, names: Sequence[str]
    ) -> None:
        self.images, self.names = images, names
        self._hit, self._predicted, self._true = (np.stack(part) for part in zip(*map(_sums, matrices)))
        self._right = np.array([np.trace(m, axis1=-2, axis2=-1).sum() for m in matrices])
        self._all = np.array([m.sum() for m in matrices])
        self._own = np.array([_summary(m)["mIoU"] for m in matrices], np.float64)  # None becomes NaN
        self._boundary = boundary

    def numbers(self, weights: Weights) -> dict[Name, Floats]:
        """[S] values of each number that ``SegmentationMetric.compute`` gives; see ``Resampler``."""
        hit, predicted, true = (_summed(part, weights) for part in (self._hit, self._predicted, self._true))
        rates = {
            "IoU": ratio(hit, predicted + true - hit),
            "dice": ratio(2 * hit, predicted + true),
            "accuracy": ratio(hit, true),
            "precision": ratio(hit, predicted),
        }
        means = {"mIoU": "IoU", "dice": "dice", "mean_accuracy": "accuracy"}
        if self._boundary is not None:
            rates["boundary_IoU"] = ratio(*(_summed(part, weights) for part in self._boundary))
            means["boundary_mIoU"] = "boundary_IoU"
        found: dict[Name, Floats] = {(name,): mean_of_defined(rates[rate]) for name, rate in means.items()}
        found["pixel_accuracy",] = ratio(self._right @ weights, self._all @ weights)
        known = ~np.isnan(self._own)
        found["mIoU_per_image",] = ratio(self._own[known] @ weights[known], known @ weights)
        for rate, values in rates.items():
            found |= {("per_class", name, rate): row for name, row in zip(self.names, values)}
        return found


class SegmentationMetric:
    """Counts pixels on the device of the predictions, and says how good they are.

    Args:
        classes: names and ids of the data set.
        boundary: also measure Boundary IoU (Cheng et al. 2021, arXiv 2103.16562, equation 3): the IoU of the pixels of
            truth and prediction that lie within 2 % of the image's diagonal of their own edge.
    """

    def __init__(self, classes: Classes, *, boundary: bool = True) -> None:
        self.classes = classes
        self.boundary = boundary
        self._images: dict[int | str, ImageCounts] = {}

    def update(self, predictions: Segmentation, batch: Batch) -> None:
        """Add one batch; an image that was added before does not count again.

        Args:
            predictions: original pixels, the data set's own ids (multi-label: a layer per class).
            batch: ``truth`` holds the files' masks as labels, in the same pixels.

        Raises:
            DensekitError: there is no truth, or a mask of another size.
        """
        if batch.truth is None:
            raise DensekitError("the data set has no masks to evaluate against; evaluate on one with masks")
        for image_id, found, true in zip(batch.ids, predictions.masks, batch.truth):
            if found.shape != true.shape:
                raise DensekitError(
                    f"{image_id}: the prediction is {tuple(found.shape)} and the mask {tuple(true.shape)}; "
                    f"they must have the same size and number of layers"
                )
            if image_id not in self._images:
                self._images[image_id] = self._count(found, true.to(found.device))

    def state(self) -> dict[int | str, ImageCounts]:
        """Counts by image id."""
        return self._images

    def merge(self, states: Sequence[dict[int | str, ImageCounts]]) -> None:
        """Take the union of the ranks' counts; the first rank that saw an image wins."""
        self._images = {image_id: counts for state in reversed(states) for image_id, counts in state.items()}

    def compute(self) -> dict[str, Any]:
        """Sum over the images.

        Returns:
            ``mIoU``, ``dice``, ``mean_accuracy``, ``pixel_accuracy``, ``boundary_mIoU``; ``mIoU_per_image``: the mean
            of the images' own; ``per_class``: by name ``IoU``, ``dice``, ``accuracy`` (recall), ``precision``,
            ``boundary_IoU`` (None where the class does not occur) and ``pixels``, the true ones; ``confusion``: pixels
            by true and predicted class (not for multi-label); ``images``: how many. Where every pixel is ignored no
            number is defined: all are None.

        Raises:
            DensekitError: there was no image.
        """
        if not self._images:
            raise DensekitError("there is no image to evaluate; give a data set with images")
        images = list(self._images.values())
        matrix: Counts = functools.reduce(np.add, (self._matrix(image) for image in images))
        boundary = [sum(getattr(i, part) for i in images) for part in ("shared", "either")] if self.boundary else None
        numbers = _summary(matrix)
        per_class = self._per_class(matrix, boundary)
        if boundary is not None:
            numbers["boundary_mIoU"] = _mean([row["boundary_IoU"] for row in per_class.values()])
        own = [row["mIoU"] for row in self.per_image().values()]
        numbers |= {"mIoU_per_image": _mean(own), "images": len(images), "per_class": per_class}
        return numbers if matrix.ndim == 3 else {**numbers, "confusion": matrix.tolist()}

    def resampler(self) -> SegmentationResampler:
        """What each image adds to the numbers of ``compute``."""
        matrices = self.matrices()
        images = [self._images[i] for i in matrices]
        boundary = None
        if self.boundary:
            boundary = np.stack([[getattr(image, part) for image in images] for part in ("shared", "either")])
        return SegmentationResampler(list(matrices), list(matrices.values()), boundary, self.classes.names)

    def matrices(self) -> dict[int | str, Counts]:
        """Pixels of each image by true and predicted class, [K, K]; of layers [K, 2, 2]."""
        return {i: self._matrix(self._images[i]) for i in in_order(self._images)}

    def per_image(self) -> dict[int | str, dict[str, float | None]]:
        """``mIoU``, ``dice``, ``mean_accuracy`` and ``pixel_accuracy`` of each image; None where all is ignored."""
        return {image_id: _summary(self._matrix(image)) for image_id, image in self._images.items()}

    def _count(self, found: Tensor, true: Tensor) -> ImageCounts:
        multi_label = found.dim() == 3
        found = found.to(torch.uint8) if multi_label else self._labels(found)
        valid = true != IGNORE
        matrix = _confusion(found, true, valid, len(self.classes))
        shared = either = torch.zeros(0, dtype=torch.int64)
        if self.boundary:
            shared, either = _boundary_overlap(found, true, valid, len(self.classes))
        flat = matrix.cpu().numpy()
        cells = np.flatnonzero(flat)
        return ImageCounts(multi_label, cells.astype(np.int32), flat[cells], shared.cpu().numpy(), either.cpu().numpy())

    def _labels(self, ids: Tensor) -> Tensor:
        """From the data set's ids to labels, uint8."""
        known = torch.tensor(self.classes.ids, device=ids.device)
        ordered, order = known.sort()
        return order[torch.searchsorted(ordered, ids.long()).clamp_max(len(known) - 1)].to(torch.uint8)

    def _matrix(self, image: ImageCounts) -> Counts:
        count = len(self.classes)
        shape = (count, 2, 2) if image.multi_label else (count, count)
        matrix = np.zeros(math.prod(shape), np.int64)
        matrix[image.cells] = image.counts
        return matrix.reshape(shape)

    def _per_class(self, matrix: Counts, boundary: list[Any] | None) -> dict[str, dict[str, float | None]]:
        hit, predicted, true = _sums(matrix)
        rates = {
            "IoU": _ratio(hit, predicted + true - hit),
            "dice": _ratio(2 * hit, predicted + true),
            "accuracy": _ratio(hit, true),
            "precision": _ratio(hit, predicted),
        }
        if boundary is not None:
            rates["boundary_IoU"] = _ratio(*boundary)
        rates["pixels"] = [int(t) for t in true]
        return {name: {r: rates[r][k] for r in rates} for k, name in enumerate(self.classes.names)}


def _confusion(found: Tensor, true: Tensor, valid: Tensor, classes: int) -> Tensor:
    """Count pixels by true and predicted class, flat: [K * K], or [K * 4] for layers."""
    cell = true.long() * classes + found
    size = classes * classes
    if found.dim() == 3:
        layer = torch.arange(classes, device=found.device)[:, None, None]
        cell, size = layer * 4 + true.long() * 2 + found, classes * 4
    # Ignored pixels go to one cell more: no copy of the pixels that count.
    return torch.where(valid, cell, size).flatten().bincount(minlength=size + 1)[:size]


def _boundary_overlap(found: Tensor, true: Tensor, valid: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """[K] pixels in both boundary bands, and in either, from uint8 maps [H, W] or layers [K, H, W]."""
    height, width = found.shape[-2:]
    radius = max(1, round(BOUNDARY_FRACTION * math.hypot(height, width)))
    bands = [_boundary(labels, valid, radius) for labels in (found, true)]
    both = bands[0] & bands[1] & (found == true)
    if found.dim() == 3:
        objects = [(band & (labels == 1)).sum((1, 2)) for band, labels in zip(bands, (found, true))]
        shared = (both & (true == 1)).sum((1, 2))
    else:
        objects = [_count_labels(labels, band, classes) for band, labels in zip(bands, (found, true))]
        shared = _count_labels(true, both, classes)
    return shared, objects[0] + objects[1] - shared


def _count_labels(labels: Tensor, where: Tensor, classes: int) -> Tensor:
    return torch.where(where, labels.long(), classes).flatten().bincount(minlength=classes + 1)[:classes]


def _boundary(labels: Tensor, valid: Tensor, radius: int) -> Tensor:
    """Pixels with another label, or the image's edge, within ``radius`` rows and columns; ignored pixels are no label.

    A window is of one label where its largest and its smallest label are the same: one pass for all classes, equal to
    eroding each class's mask by a square as the paper's code does.
    """
    highest = _window(torch.where(valid, labels, 0), radius, 255, torch.maximum)
    lowest = _window(torch.where(valid, labels, 255), radius, 0, torch.minimum)
    return valid & ((highest != labels) | (lowest != labels))


def _window(values: Tensor, radius: int, outside: int, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``pick`` over the square of side 2 radius + 1 around each pixel, in log2(radius) steps a direction."""
    for dim in (-1, -2):
        padding = (radius, radius) if dim == -1 else (0, 0, radius, radius)
        values = F.pad(values, padding, value=outside)
        span = 1
        while span < 2 * radius + 1:
            step = min(span, 2 * radius + 1 - span)
            length = values.shape[dim] - step
            values = pick(values.narrow(dim, 0, length), values.narrow(dim, step, length))
            span += step
    return values


def _sums(matrix: Counts) -> tuple[Counts, Counts, Counts]:
    """[K] pixels that are right, predicted and true, of each class."""
    if matrix.ndim == 3:
        return matrix[:, 1, 1], matrix[:, :, 1].sum(1), matrix[:, 1].sum(1)
    return np.diagonal(matrix), matrix.sum(0), matrix.sum(1)


def _summary(matrix: Counts) -> dict[str, Any]:
    hit, predicted, true = _sums(matrix)
    right = np.trace(matrix, axis1=-2, axis2=-1).sum()
    return {
        "mIoU": _mean(_ratio(hit, predicted + true - hit)),
        "dice": _mean(_ratio(2 * hit, predicted + true)),
        "mean_accuracy": _mean(_ratio(hit, true)),
        "pixel_accuracy": float(right / matrix.sum()) if matrix.any() else None,
    }


def _summed(counts: Counts, weights: Weights) -> Floats:
    """[K, S] sums of [I, K] over drawn images: as floats, which are fast to multiply, and exact up to 2**53 pixels."""
    return counts.T.astype(np.float64) @ weights.astype(np.float64)


def _ratio(part: Counts, whole: Counts) -> list[Any]:
    return [float(p / w) if w else None for p, w in zip(part, whole)]


def _mean(values: Sequence[float | None]) -> float | None:
    # fsum: the same bits in whatever order the ranks' images come.
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None
