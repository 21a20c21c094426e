"""Segment an image of any size window by window, with memory that does not grow with it beyond the output.

Windows overlap and are blended by a Hann window, whose sum over the windows of a row or a column is known beforehand,
so that one strip of the height of a window is all that is accumulated: rows of windows are worked off from top to
bottom, and a line of the image is finished when the next row of windows begins below it.

Letters: K classes, H, W size of the image, h, w size of a window.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densekit.errors import DensekitError
from densekit.infer.augmented import Flip, classes_of, predict_augmented
from densekit.model import DenseModel
from densekit.types import Batch, Segmentation


@dataclasses.dataclass(frozen=True, slots=True)
class ImageSegmentation:
    """What was found in one image.

    Attributes:
        mask: [H, W], the data set's own ids, in the smallest of uint8, uint16 and int64 that holds them; or [K, H, W]
            uint8 layers of 0 and 1 (multi-label).
        probabilities: [K, H, W] float32, or None where they were not asked for.
    """

    mask: npt.NDArray[Any]
    probabilities: npt.NDArray[np.float32] | None


@torch.inference_mode()
def segment_image(
    model: DenseModel,
    image: npt.NDArray[Any],
    *,
    window: int = 512,
    overlap: float = 0.25,
    batch_size: int = 4,
    flips: Sequence[Flip] = ("none",),
    scales: Sequence[float] = (1.0,),
    head: str | None = None,
    probabilities: bool = False,
) -> ImageSegmentation:
    """Segment one image at its own resolution.

    Args:
        model: in evaluation mode; the image goes to its device window by window.
        image: [H, W, C] uint8, or float32 on the 0..255 scale.
        window: side of the windows in pixels; an image that fits into one is predicted as a whole, with the numbers of
            ``DenseModel.predict``.
        overlap: least part of a window that its neighbour covers too, 0 to below 1.
        batch_size: windows at once.
        flips: see ``predict_augmented``, as for ``scales``.
        scales: factors on the windows' size.
        head: which head; None takes the first.
        probabilities: keep them; they take 4 K bytes a pixel.

    Raises:
        DensekitError: an empty image, another number of channels than the model's, or an option out of range.
    """
    _check(model, image, window, overlap, batch_size)
    (ys, height), (xs, width) = (positions(side, window, overlap) for side in image.shape[:2])
    blend_y, blend_x = _hann(height), _hann(width)
    total_y, total_x = _totals(image.shape[0], ys, blend_y), _totals(image.shape[1], xs, blend_x)
    blend = (blend_y[:, None] * blend_x).to(model.mean.device)
    predict = functools.partial(_predict, model, flips=flips, scales=scales, head=head)
    output: _Output | None = None
    strip = torch.zeros(0)
    for y, finished in zip(ys, [*ys[1:], image.shape[0]]):
        for x, chances, multi_label in _predicted_row(predict, image[y : y + height], xs, width, batch_size):
            if output is None:
                output = _Output(model, image, len(chances), multi_label, probabilities)
                strip = torch.zeros(len(chances), height, image.shape[1])
            strip[:, :, x : x + width] += (chances * blend).cpu()
        assert output is not None
        done = finished - y
        output.write(y, strip[:, :done] / (total_y[y:finished, None] * total_x))
        strip = torch.cat([strip[:, done:], strip.new_zeros(len(strip), done, strip.shape[2])], 1)
    assert output is not None
    return ImageSegmentation(output.mask, output.probabilities)


class _Output:
    """The arrays that grow with the image."""

    def __init__(
        self, model: DenseModel, image: npt.NDArray[Any], classes: int, multi_label: bool, probabilities: bool
    ) -> None:
        size = image.shape[:2]
        self.multi_label = multi_label
        self.ids = torch.tensor(model.classes.ids)
        largest = int(self.ids.max())
        dtype: Any = np.uint8 if multi_label or largest < 2**8 else np.uint16 if largest < 2**16 else np.int64
        self.mask = np.zeros((classes, *size) if multi_label else size, dtype)
        self.probabilities = np.zeros((classes, *size), np.float32) if probabilities else None

    def write(self, y: int, chances: Tensor) -> None:
        """Put finished lines [K, lines, W] from line ``y`` on."""
        lines = slice(y, y + chances.shape[1])
        self.mask[..., lines, :] = classes_of(chances, self.ids, self.multi_label).numpy()
        if self.probabilities is not None:
            self.probabilities[:, lines] = chances.numpy()


def _predicted_row(
    predict: Callable[[Tensor], Segmentation], lines: npt.NDArray[Any], xs: Sequence[int], width: int, batch_size: int
) -> Iterator[tuple[int, Tensor, bool]]:
    """Each window along some lines of the image: its column, probabilities [K, h, w], and whether multi-label."""
    for start in range(0, len(xs), batch_size):
        columns = xs[start : start + batch_size]
        windows = np.stack([lines[:, x : x + width] for x in columns]).transpose(0, 3, 1, 2)
        found = predict(torch.from_numpy(np.ascontiguousarray(windows)))
        for x, chances, mask in zip(columns, found.probabilities, found.masks):
            yield x, chances, mask.dim() == 3


def _predict(
    model: DenseModel, images: Tensor, *, flips: Sequence[Flip], scales: Sequence[float], head: str | None
) -> Segmentation:
    count = len(images)
    sizes = torch.tensor([images.shape[-2:]] * count)
    batch = Batch(images, sizes, sizes, list(range(count)), torch.zeros(count, dtype=torch.int64))
    return predict_augmented(model, batch.to(model.mean.device), flips=flips, scales=scales, head=head)


def positions(side: int, window: int, overlap: float) -> tuple[list[int], int]:
    """Where windows begin along one side, evenly spread, and how long they are."""
    if side <= window:
        return [0], side
    steps = math.ceil((side - window) / max(1, math.floor(window * (1 - overlap))))
    return [round(i * (side - window) / steps) for i in range(steps + 1)], window


def _hann(length: int) -> Tensor:
    """[length] weights between 0 and 1, none of them 0."""
    return torch.sin((torch.arange(length, dtype=torch.float64) + 0.5) * math.pi / length).square().float()


def _totals(side: int, starts: Sequence[int], blend: Tensor) -> Tensor:
    """[side] sum of the weights of all windows along one side."""
    totals = torch.zeros(side)
    for start in starts:
        totals[start : start + len(blend)] += blend
    return totals


def _check(model: DenseModel, image: npt.NDArray[Any], window: int, overlap: float, batch_size: int) -> None:
    if image.ndim != 3 or image.size == 0:
        raise DensekitError(f"an image is [height, width, channels] with at least one pixel, not {image.shape}")
    if image.shape[2] != model.channels:
        raise DensekitError(f"the image has {image.shape[2]} channels, the model takes {model.channels}; convert it")
    if window < 32:
        raise DensekitError(f"window {window} is too small; give at least 32 pixels, the more the better")
    if not 0 <= overlap < 1:
        raise DensekitError(f"overlap {overlap} must lie between 0 and below 1, such as 0.25")
    if batch_size < 1:
        raise DensekitError(f"batch size {batch_size} must be at least 1")
