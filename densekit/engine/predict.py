"""Predictions on images without annotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from densekit.engine.augmented import Flip, check_augmentation, is_plain, predict_augmented
from densekit.engine.sliding_window import segment_image
from densekit.engine.writers import MaskWriter, Writer
from densekit.errors import DensekitError
from densekit.model import DenseModel
from densekit.packed import packed
from densekit.precision import DTYPES, Precision, autocast
from densekit.types import Batch, Predictions


class Images(Protocol):
    """A list of files that can be read one by one, untouched."""

    paths: Sequence[Path]

    def read(self, index: int) -> Any:
        """The image [H, W, C]."""
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
    model: DenseModel, batches: Iterable[Batch], images: Images, writer: Writer, options: Options
) -> None:
    """Predict images and hand each one's predictions to the writer, in the order of the batches.

    Args:
        model: in evaluation mode, on its device.
        batches: of the images, ids are positions in the list.
        images: the untouched files, read again for the pictures and for sliding windows.
        writer: takes the predictions.
        options: how to predict.
    """
    device = model.mean.device
    model = packed(model, DTYPES[options.precision])
    for batch in batches:
        predictions = None
        if options.window is None:
            with autocast(options.precision, device):
                predictions = _predict(model, batch.to(device), options)
        for row, index in enumerate(int(i) for i in batch.ids):
            image, path = images.read(index), images.paths[index]
            if predictions is not None:
                writer.add(path, image, predictions, row)
            else:
                _predict_windows(model, path, image, images.recoloured(image), writer, options)


def _predict(model: DenseModel, batch: Batch, options: Options) -> Predictions:
    if model.task == "segmentation":
        return predict_augmented(model, batch, flips=options.flips, scales=options.scales)
    return model.predict(batch)


def _predict_windows(model: DenseModel, path: Path, image: Any, seen: Any, writer: Writer, options: Options) -> None:
    """Segment one file, ``seen`` by the model, at its own resolution by a sliding window, with bounded memory."""
    assert options.window is not None
    assert isinstance(writer, MaskWriter)
    with autocast(options.precision, model.mean.device):
        found = segment_image(
            model,
            seen,
            window=options.window,
            overlap=options.overlap,
            flips=options.flips,
            scales=options.scales,
            probabilities=writer.probabilities,
        )
    writer.add_mask(path, image, found.mask, found.probabilities)
