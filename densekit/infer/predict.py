"""Predictions on images without annotations: batches in, one result an image out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from densekit.calibration import Calibration
from densekit.canvases import alone
from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError
from densekit.infer.augmented import Flip, check_augmentation, is_plain
from densekit.infer.averaged import predict_averaged
from densekit.infer.calibrated import calibrated
from densekit.infer.joint_result import JointResult
from densekit.infer.results import BoxResult, ClassResult, MaskResult, Seen, result_of
from densekit.infer.sliding_window import segment_image
from densekit.infer.tiles import TileDetector, check_tiles, detect_batch
from densekit.infer.writers import Writer
from densekit.memory import is_out_of_memory
from densekit.model import DenseModel
from densekit.precision import Precision, autocast
from densekit.types import Batch, Detections, Predictions

Result = TypeVar("Result")


class Images(Protocol):
    """Images that can be read one by one, untouched."""

    @property
    def paths(self) -> Sequence[Path | None]:
        """Their files; None for one that came as pixels."""
        ...

    def read(self, index: int) -> Any:
        """The image [H, W, C]."""
        ...

    def image_id(self, index: int) -> int | str:
        """What the results call it."""
        ...

    @property
    def transforms(self) -> Pipeline:
        """Those of the evaluation."""
        ...


@dataclasses.dataclass(frozen=True)
class Options:
    """How to predict.

    Attributes:
        precision: of the forward pass.
        window: side of a sliding window in pixels (segmentation); None predicts each image as a whole.
        tiles: side of tiles in pixels (detection); None predicts each image as a whole.
        overlap: least part of a window or tile that its neighbour covers too.
        flips: average over these mirrored copies (not classification).
        scales: average over these sizes (not classification).
    """

    precision: Precision = "fp32"
    window: int | None = None
    tiles: int | None = None
    overlap: float = 0.25
    flips: tuple[Flip, ...] = ("none",)
    scales: tuple[float, ...] = (1.0,)

    def check(self, model: DenseModel) -> None:
        """Refuse what one of the model's heads can't do.

        Raises:
            DensekitError: windows, tiles, flips or scales for another task, or values out of range.
        """
        check_augmentation(self.flips, self.scales)
        if self.tiles is not None:
            check_tiles(self.tiles, self.overlap)
        averaged = not is_plain(self.flips, self.scales)
        for given, names, tasks in (
            (self.window is not None, "--window is for segmenters", ("segmentation",)),
            (self.tiles is not None, "--tiles is for detectors", ("detection",)),
            (averaged, "--flips and --scales are for detectors and segmenters", ("detection", "segmentation")),
        ):
            unable = [head for head in model.heads if model.head(head).task not in tasks]
            if given and unable:
                raise DensekitError(f"{names}; {_unable(model, unable)}")
        if (self.window is not None or self.tiles is not None) and len(model.heads) > 1:
            raise DensekitError(
                f"--window and --tiles are for one head; of {', '.join(model.heads)} choose one by --heads"
            )


def _unable(model: DenseModel, heads: Sequence[str]) -> str:
    task = model.head(heads[0]).task
    if len(model.heads) == 1:
        return f"this checkpoint's head does {task}"
    able = [head for head in model.heads if head not in heads]
    remedy = f": choose others by --heads {' '.join(able)}" if able else ""
    return f"this checkpoint's head {heads[0]!r} does {task}{remedy}"


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """An image without a result.

    Attributes:
        index: of the image.
        line: says which it is, and why.
    """

    index: int
    line: str


OneResult = BoxResult | MaskResult | ClassResult
AnyResult = OneResult | JointResult
Outcome = AnyResult | Skipped


def predict_images(
    predict: BatchPredictor,
    batches: Iterable[Batch],
    images: Images,
    writer: Writer,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Predict images and hand each one's result to the writer, in the order of the batches.

    An image that can't be read, on which alone memory runs out, or for which the model's numbers are not finite, is
    skipped: ``writer.files.skipped`` says which, and why.

    Args:
        predict: see ``BatchPredictor``.
        batches: of the images, ids are positions in the list.
        images: the untouched files, read again for the pictures and for sliding windows.
        writer: takes the results.
        stopping: asked behind each batch: whether to leave the rest.

    Raises:
        DensekitError: not one image could be predicted, or the disk is full.
    """
    for batch in batches:
        for line in batch.skipped:
            writer.files.skip(line)
        for outcome in predict(batch, images, pixels=writer.pictures, probabilities=writer.probabilities):
            if isinstance(outcome, Skipped):
                writer.files.skip(outcome.line)
            else:
                writer.add(outcome)
        if stopping():
            return
    if writer.files.skipped and not writer.files.count:
        raise DensekitError(f"not one image could be predicted; the first: {writer.files.skipped[0]}")


@dataclasses.dataclass(frozen=True, slots=True)
class BatchPredictor:
    """Predicts batch by batch; an image's result does not depend on its batch.

    Attributes:
        model: in evaluation mode, on its device, packed for the precision.
        options: how to predict.
        pad_to: as in evaluation, for tiles.
        calibrations: how scores of heads are to be read; those of others: as the head gives them.
    """

    model: DenseModel
    options: Options
    pad_to: int = 32
    calibrations: Mapping[str, Calibration] = dataclasses.field(default_factory=dict)

    def __call__(
        self, batch: Batch, images: Images, *, pixels: bool = False, probabilities: bool = False
    ) -> Iterator[Outcome]:
        """A result an image, in the order of the batch; image by image where memory does not suffice for all together.

        Args:
            batch: ids are positions in ``images``.
            images: that the batch was made of.
            pixels: read each one now, so that one that can't be read any more is skipped; else when it is drawn.
            probabilities: segmentation: keep them.
        """
        if self.options.window is not None:
            for row in range(len(batch.ids)):
                yield self._by_window(batch, row, images, probabilities)
        elif self.options.tiles is not None and batch.original_sizes.max() > self.options.tiles:
            for row in range(len(batch.ids)):
                if batch.original_sizes[row].max() > self.options.tiles:
                    yield self._by_tiles(batch, row, images)
                else:
                    yield from self(alone(batch, row), images, pixels=pixels)
        elif (predictions := _if_it_fits(lambda: self._predict(batch))) is not None:
            for row in range(len(batch.ids)):
                yield self._outcome(batch, row, images, predictions, pixels, probabilities)
        elif len(batch.ids) == 1:
            yield self._too_large(batch, 0, images)
        else:
            for row in range(len(batch.ids)):
                yield from self(alone(batch, row), images, pixels=pixels, probabilities=probabilities)

    @torch.inference_mode()
    def _predict(self, batch: Batch) -> dict[str, Predictions]:
        device = self.model.mean.device
        with autocast(self.options.precision, device):
            flips, scales = self.options.flips, self.options.scales
            if is_plain(flips, scales):
                return self.model.predict_all(batch.to(device))
            return predict_averaged(self.model, batch.to(device), flips=flips, scales=scales)

    def _outcome(
        self,
        batch: Batch,
        row: int,
        images: Images,
        predictions: dict[str, Predictions],
        pixels: bool,
        probabilities: bool,
    ) -> Outcome:
        seen = _seen(batch, row, images, pixels)
        if isinstance(seen, Skipped):
            return seen
        return self._finite_result(seen, int(batch.ids[row]), predictions, row, probabilities)

    def _finite_result(
        self, seen: Seen, index: int, predictions: dict[str, Predictions], row: int, probabilities: bool = False
    ) -> Outcome:
        if not all(_finite(found, row) for found in predictions.values()):
            return Skipped(index, f"{seen.name}: the model's numbers are not finite; try train.precision=fp32")
        results = {
            head: self._read(
                head, result_of(seen, self.model.classes_of(head), found, row, probabilities=probabilities)
            )
            for head, found in predictions.items()
        }
        return JointResult(seen, results) if len(results) > 1 else next(iter(results.values()))

    def _read(self, head: str, result: OneResult) -> OneResult:
        calibration = self.calibrations.get(head)
        return result if calibration is None else calibrated(result, calibration)

    @property
    def _head(self) -> str:
        """The only head: windows and tiles are of one, see ``Options.check``."""
        return next(iter(self.model.heads))

    def _by_window(self, batch: Batch, row: int, images: Images, probabilities: bool) -> Outcome:
        """Segment a file at its own resolution by a sliding window, with bounded memory."""
        assert self.options.window is not None
        seen = _seen(batch, row, images, pixels=True)
        if isinstance(seen, Skipped):
            return seen
        segment = functools.partial(
            segment_image,
            self.model,
            images.transforms.recoloured(seen.look()),
            window=self.options.window,
            overlap=self.options.overlap,
            flips=self.options.flips,
            scales=self.options.scales,
            probabilities=probabilities,
        )
        with autocast(self.options.precision, self.model.mean.device):
            found = _if_it_fits(segment)
        if found is None:
            return self._too_large(batch, row, images)
        return self._read(self._head, MaskResult(seen, self.model.classes, found.mask, found.probabilities))

    def _by_tiles(self, batch: Batch, row: int, images: Images) -> Outcome:
        """Detect on a file at its own resolution tile by tile, with bounded memory."""
        seen = _seen(batch, row, images, pixels=True)
        if isinstance(seen, Skipped):
            return seen
        detect = tile_detector(self.model, self.options, images.transforms, self.pad_to)
        with autocast(self.options.precision, self.model.mean.device):
            found = _if_it_fits(functools.partial(detect, seen.look()))
        if found is None:
            return self._too_large(batch, row, images)
        return self._finite_result(seen, int(batch.ids[row]), {self._head: found}, 0)

    def _too_large(self, batch: Batch, row: int, images: Images) -> Skipped:
        height, width = batch.original_sizes[row].tolist()
        remedy = {"segmentation": "lower --window, or give one", "detection": "lower --tiles, or give some"}.get(
            self.model.task if len(self.model.heads) == 1 else "", "set a smaller size in data.eval_transforms"
        )
        index = int(batch.ids[row])
        name = _name(images, index)
        return Skipped(index, f"{name}: out of memory on this image of {width} x {height} alone; {remedy}")


def predicts_with(
    options: Options, heads: Sequence[str], transforms: Pipeline, pad_to: int
) -> Callable[[DenseModel], Callable[[Batch], dict[str, Predictions]]] | None:
    """How ``evaluate`` predicts with these options; None: as ever.

    Args:
        options: without ``window``; that can do so, see ``Options.check``.
        heads: that predict; with tiles one.
        transforms: of the evaluation, which tiles go through; with tiles, batches hold untouched images.
        pad_to: as in evaluation.
    """
    if options.tiles is not None:
        (head,) = heads
        return lambda model: (
            lambda batch: {head: detect_batch(tile_detector(model, options, transforms, pad_to), batch)}
        )
    if is_plain(options.flips, options.scales):
        return None
    how = functools.partial(predict_averaged, flips=options.flips, scales=options.scales, heads=heads)
    return lambda model: lambda batch: how(model, batch.to(model.mean.device))


def tile_detector(model: DenseModel, options: Options, transforms: Pipeline, pad_to: int) -> TileDetector:
    """Detects tile by tile as the options say."""
    assert options.tiles is not None
    return TileDetector(model, transforms, options.tiles, options.overlap, options.flips, options.scales, pad_to)


def _seen(batch: Batch, row: int, images: Images, pixels: bool) -> Seen | Skipped:
    """An image of a batch; skipped where its pixels are asked for and its file can't be read any more."""
    index = int(batch.ids[row])
    height, width = batch.original_sizes[row].tolist()
    look = functools.partial(images.read, index)
    if pixels:
        try:
            look = functools.partial(np.asarray, images.read(index))
        except DensekitError as error:
            return Skipped(index, str(error))
    return Seen(images.image_id(index), images.paths[index], (height, width), look)


def _name(images: Images, index: int) -> str:
    return str(images.paths[index] or f"image {images.image_id(index)}")


def _if_it_fits(make: Callable[[], Result]) -> Result | None:
    """What is made; None where memory does not suffice."""
    try:
        return make()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _finite(predictions: Predictions, row: int) -> bool:
    if isinstance(predictions, Detections):
        valid = predictions.valid[row]
        parts = (predictions.boxes, predictions.scores, predictions.masks)
        return all(bool(values[row][valid].isfinite().all()) for values in parts if values is not None)
    return bool(predictions.probabilities[row].isfinite().all())
