"""Predictions on images without annotations."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from densekit.errors import DensekitError
from densekit.infer.augmented import Flip, check_augmentation, is_plain, predict_augmented
from densekit.infer.sliding_window import segment_image
from densekit.infer.writers import MaskWriter, Seen, Writer
from densekit.memory import is_out_of_memory
from densekit.model import DenseModel
from densekit.packed import packed
from densekit.precision import DTYPES, Precision, autocast
from densekit.types import Batch, Detections, Predictions

Result = TypeVar("Result")


class Images(Protocol):
    """A list of files that can be read one by one, untouched."""

    paths: Sequence[Path]

    def read(self, index: int) -> Any:
        """The image [H, W, C]."""
        ...

    def image_id(self, index: int) -> int | str:
        """What the results call it."""
        ...

    def recoloured(self, image: Any) -> Any:
        """The same image in the colours of the evaluation."""
        ...


@dataclasses.dataclass(frozen=True)
class Options:
    """How to predict.

    Attributes:
        precision: of the forward pass.
        window: side of a sliding window in pixels (segmentation); None predicts each image as a whole.
        overlap: least part of a window that its neighbour covers too.
        flips: average over these mirrored copies (segmentation).
        scales: average over these sizes (segmentation).
    """

    precision: Precision = "fp32"
    window: int | None = None
    overlap: float = 0.25
    flips: tuple[Flip, ...] = ("none",)
    scales: tuple[float, ...] = (1.0,)

    def check(self, model: DenseModel) -> None:
        """Refuse what the model's head can't do.

        Raises:
            DensekitError: windows, flips or scales for another task than segmentation, or values out of range.
        """
        check_augmentation(self.flips, self.scales)
        special = self.window is not None or not is_plain(self.flips, self.scales)
        if special and model.task != "segmentation":
            raise DensekitError(
                f"--window, --flips and --scales are for segmenters; this checkpoint's head does {model.task}"
            )


@torch.inference_mode()
def predict_images(
    model: DenseModel,
    batches: Iterable[Batch],
    images: Images,
    writer: Writer,
    options: Options,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Predict images and hand each one's predictions to the writer, in the order of the batches.

    An image that can't be read, on which alone memory runs out, or for which the model's numbers are not finite, is
    skipped: ``writer.files.skipped`` says which, and why.

    Args:
        model: in evaluation mode, on its device.
        batches: of the images, ids are positions in the list.
        images: the untouched files, read again for the pictures and for sliding windows.
        writer: takes the predictions.
        options: how to predict.
        stopping: asked behind each batch: whether to leave the rest.

    Raises:
        DensekitError: not one image could be predicted, or the disk is full.
    """
    predictor = _Predictor(packed(model, DTYPES[options.precision]), images, writer, options)
    for batch in batches:
        for line in batch.skipped:
            writer.files.skip(line)
        predictor.take(batch)
        if stopping():
            return
    if writer.files.skipped and not writer.files.count:
        raise DensekitError(f"not one image could be predicted; the first: {writer.files.skipped[0]}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Predictor:
    """Predicts batch by batch."""

    model: DenseModel
    images: Images
    writer: Writer
    options: Options

    def take(self, batch: Batch) -> None:
        """Predict a batch; image by image where they don't fit into memory together."""
        if self.options.window is not None:
            for row in range(len(batch.ids)):
                self._by_window(batch, row)
        elif (predictions := _if_it_fits(lambda: self._predict(batch))) is not None:
            self._hand_over(batch, predictions)
        elif len(batch.ids) == 1:
            self._skip_large(batch, 0)
        else:
            for row in range(len(batch.ids)):
                self.take(_image_of(batch, row))

    def _predict(self, batch: Batch) -> Predictions:
        device = self.model.mean.device
        with autocast(self.options.precision, device):
            if self.model.task == "segmentation":
                flips, scales = self.options.flips, self.options.scales
                return predict_augmented(self.model, batch.to(device), flips=flips, scales=scales)
            return self.model.predict(batch.to(device))

    def _hand_over(self, batch: Batch, predictions: Predictions) -> None:
        for row, index in enumerate(int(i) for i in batch.ids):
            if not _finite(predictions, row):
                name = self.images.paths[index]
                self.writer.files.skip(f"{name}: the model's numbers are not finite; try train.precision=fp32")
            elif (seen := self._seen(batch, row, pixels=self.writer.pictures)) is not None:
                self.writer.add(seen, predictions, row)

    def _by_window(self, batch: Batch, row: int) -> None:
        """Segment a file at its own resolution by a sliding window, with bounded memory."""
        assert self.options.window is not None
        assert isinstance(self.writer, MaskWriter)
        if (seen := self._seen(batch, row, pixels=True)) is None:
            return
        segment = functools.partial(
            segment_image,
            self.model,
            self.images.recoloured(seen.pixels),
            window=self.options.window,
            overlap=self.options.overlap,
            flips=self.options.flips,
            scales=self.options.scales,
            probabilities=self.writer.probabilities,
        )
        with autocast(self.options.precision, self.model.mean.device):
            found = _if_it_fits(segment)
        if found is None:
            self._skip_large(batch, row)
        else:
            self.writer.add_mask(seen, found.mask, found.probabilities)

    def _seen(self, batch: Batch, row: int, *, pixels: bool) -> Seen | None:
        """An image of a batch for the writer; None, and noted, where its file can't be read any more."""
        index = int(batch.ids[row])
        height, width = batch.original_sizes[row].tolist()
        try:
            image = self.images.read(index) if pixels else None
        except DensekitError as error:
            self.writer.files.skip(str(error))
            return None
        return Seen(self.images.image_id(index), self.images.paths[index], (height, width), image)

    def _skip_large(self, batch: Batch, row: int) -> None:
        height, width = batch.original_sizes[row].tolist()
        segments = self.model.task == "segmentation"
        remedy = "lower --window, or give one" if segments else "set a smaller size in data.eval_transforms"
        name = self.images.paths[int(batch.ids[row])]
        self.writer.files.skip(f"{name}: out of memory on this image of {width} x {height} alone; {remedy}")


def _if_it_fits(make: Callable[[], Result]) -> Result | None:
    """What is made; None where memory does not suffice."""
    try:
        return make()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _image_of(batch: Batch, row: int) -> Batch:
    """One image of a batch, a batch of its own without the others' padding."""
    one = slice(row, row + 1)
    height, width = batch.sizes[row].tolist()
    return dataclasses.replace(
        batch,
        images=batch.images[one, :, :height, :width],
        sizes=batch.sizes[one],
        original_sizes=batch.original_sizes[one],
        ids=batch.ids[one],
        seeds=batch.seeds[one],
        skipped=[],
    )


def _finite(predictions: Predictions, row: int) -> bool:
    if isinstance(predictions, Detections):
        valid = predictions.valid[row]
        return all(bool(values[row][valid].isfinite().all()) for values in (predictions.boxes, predictions.scores))
    return bool(predictions.probabilities[row].isfinite().all())
