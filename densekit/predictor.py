"""``Predictor``: a checkpoint, ready to be used on images; the tools and programs go through it alike."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
import PIL.Image

from densekit import build
from densekit.config import Config, is_set
from densekit.data.images import settings as image_settings
from densekit.data.images.given import GivenImage, GivenImages
from densekit.data.images.read import ImageReader
from densekit.data.loading.batching import collate
from densekit.engine.distributed import find_device
from densekit.infer import captured
from densekit.infer.augmented import FLIPS
from densekit.infer.predict import AnyResult as AnyResult
from densekit.infer.predict import BatchPredictor, Images, Options, Outcome, Skipped, predict_images
from densekit.infer.writers import Writer
from densekit.packed import packed
from densekit.precision import DTYPES, Asked, settle_precision
from densekit.types import Batch, DensekitError


class Predictor:
    """A model that has learned.

    Args:
        checkpoint: ``best.pt`` or ``last.pt`` of a run.
        overrides: ``key.path=value`` of its config, such as ``data.range=[0,4095]``.
        heads: names of the only ones that predict, or one name; None: all, from one pass of the backbone.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None takes a CUDA GPU where there is one, else the CPU.
        precision: of the arithmetic; None takes that of the checkpoint, or what this device runs.
        batch_size: images at once.
        window: segmentation: side of a sliding window in pixels, for large images.
        tiles: detection: side of tiles in pixels, for large images and small objects.
        overlap: least part of a window or tile that its neighbour covers too.
        flips: average over mirrored images (not classification).
        scales: average over these sizes (not classification).
        capture: on a CUDA GPU, record what a prediction does once for each shape of batch, and repeat it.
        calibrated: read scores as the checkpoint's calibration says, where it has one (``tools/calibrate.py``).

    Attributes:
        model: in evaluation mode, on its device.
        config: of the run, with the overrides.
        options: how it predicts.
        notes: lines on how scores are calibrated, and on what was chosen otherwise than the checkpoint says.

    Raises:
        DensekitError: no such checkpoint or device, or options that its head can't do.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        overrides: Sequence[str] = (),
        *,
        heads: str | Sequence[str] | None = None,
        device: str | None = None,
        precision: Asked | None = None,
        batch_size: int = 8,
        window: int | None = None,
        tiles: int | None = None,
        overlap: float = 0.25,
        flips: bool = False,
        scales: Sequence[float] = (1.0,),
        calibrated: bool = True,
        capture: bool = False,
    ) -> None:
        if batch_size < 1:
            raise DensekitError(f"batch_size {batch_size} must be at least 1")
        where = find_device(device)
        wanted = [heads] if isinstance(heads, str) else heads
        model, self.config = build.from_checkpoint(Path(checkpoint), overrides, wanted)
        check_view(self.config)
        asked = precision is not None or is_set("train.precision", overrides)
        chosen, self.notes = settle_precision(precision or self.config.train.precision, where, asked=asked)
        self.options = Options(chosen, window, tiles, overlap, FLIPS if flips else ("none",), tuple(scales))
        self.options.check(model)
        self.model = packed(model.to(where), DTYPES[chosen])
        if capture:
            captured.capture(self.model)
        self.batch_size = batch_size
        known = model.calibrations if calibrated else {}
        several = len(model.heads) > 1
        self.notes += [f"{head}: {one.told()}" if several else one.told() for head, one in known.items()]
        self._predict = BatchPredictor(self.model, self.options, self.config.data.pad_to, known)
        self._transforms = build.transforms(self.config.data, training=False)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a path is also an iterable of letters
        self, images: GivenImage, *, bgr: bool = ..., probabilities: bool = ...
    ) -> AnyResult: ...

    @overload
    def __call__(
        self,
        images: Iterable[GivenImage],
        *,
        bgr: bool = ...,
        probabilities: bool = ...,
        on_bad_image: Literal["error"] = ...,
    ) -> Iterator[AnyResult]: ...

    @overload
    def __call__(
        self,
        images: Iterable[GivenImage],
        *,
        bgr: bool = ...,
        probabilities: bool = ...,
        on_bad_image: Literal["skip"],
    ) -> Iterator[AnyResult | None]: ...

    def __call__(
        self,
        images: GivenImage | Iterable[GivenImage],
        *,
        bgr: bool = False,
        probabilities: bool = False,
        on_bad_image: Literal["error", "skip"] = "error",
    ) -> AnyResult | Iterator[AnyResult | None]:
        """Predict one image or many.

        Args:
            images: the path of a file, a Pillow image, an array [H, W, C] (RGB, uint8; or values as the files had that
                the model learned from) or [H, W] (grey); or any iterable of these, of any sizes and length: it is read
                a batch at a time, while the results are taken.
            bgr: arrays are in OpenCV's order of colours, BGR.
            probabilities: segmentation: keep the probabilities of all classes; they take 4 K bytes a pixel.
            on_bad_image: of many: an image that can't be used is an error, or None in the place of its result.

        Returns:
            The result of one image; of many an iterator with one for each, in their order. Boxes and masks are in
            the pixels of the image as given, names and ids are the data set's own. Of several heads it is a
            ``JointResult``, which has each one's by its name.

        Raises:
            DensekitError: an image that can't be used; of many when its batch's turn comes.
        """
        if isinstance(images, str | os.PathLike | PIL.Image.Image | np.ndarray):
            return next(self._many([images], bgr, probabilities, "error"))  # type: ignore[return-value]
        if not isinstance(images, Iterable):
            raise DensekitError(
                f"a {type(images).__name__} is no image; give a path, a Pillow image, a numpy array, or a list of these"
            )
        return self._many(images, bgr, probabilities, on_bad_image)

    def write(
        self, batches: Iterable[Batch], images: Images, writer: Writer, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Predict a data set to files; see ``predict_images``."""
        predict_images(self._predict, batches, images, writer, stopping)

    def _many(
        self, images: Iterable[GivenImage], bgr: bool, probabilities: bool, on_bad_image: Literal["error", "skip"]
    ) -> Iterator[AnyResult | None]:
        source, number = iter(images), 1
        reader = ImageReader(self.config.model.channels, self.config.data.max_pixels)
        while chunk := list(itertools.islice(source, self.batch_size)):
            given = GivenImages(chunk, first=number, bgr=bgr, transforms=self._transforms, read_image=reader)
            image_settings.read_as(self.config.data, given)
            found = dict(self._outcomes(given, len(chunk), probabilities))
            for index in range(len(chunk)):
                outcome = found[index]
                if isinstance(outcome, Skipped) and on_bad_image == "error":
                    raise DensekitError(outcome.line)
                yield None if isinstance(outcome, Skipped) else outcome
            number += len(chunk)

    def _outcomes(self, given: GivenImages, count: int, probabilities: bool) -> Iterator[tuple[int, Outcome]]:
        samples = []
        for index in range(count):
            try:
                samples.append(given.sample(index))
            except DensekitError as error:
                yield index, Skipped(index, str(error))
        if samples:
            batch = collate(samples, pad_to=self.config.data.pad_to)
            outcomes = self._predict(batch, given, probabilities=probabilities)
            yield from zip([int(i) for i in batch.ids], outcomes, strict=True)


def check_view(config: Config, chooser: str = "--heads") -> None:
    """Refuse heads that were evaluated on other views of an image: one pass of the backbone has one.

    Args:
        config: of the heads.
        chooser: the option that chooses a head, for the message.

    Raises:
        DensekitError: names the first setting that differs.
    """
    first, *others = config.model.heads
    for key in ("eval_transforms", "pad_to", "range", "orientation"):
        for head in others:
            one, other = config.set_of(first), config.set_of(head)
            if getattr(config.sets[one], key) != getattr(config.sets[other], key):
                raise DensekitError(
                    f"{first} and {head} see images in another way: data.{one}.{key} is not data.{other}.{key}, and "
                    f"one pass has one view: choose by {chooser} {head}, or set data.{other}.{key} as the other"
                )
