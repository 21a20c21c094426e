"""A look at a trained model: a few images of a data set, what is true of them beside what was predicted."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from densekit.data.loading.batching import collate
from densekit.infer.results import BoxResult, ClassResult, MaskResult, Seen, result_of
from densekit.infer.writers import make_writer
from densekit.model import DenseModel
from densekit.show.drawing import Image, draw_boxes, drawable, enlarged, side_by_side, write_picture
from densekit.show.drawing_masks import overlay, tinted
from densekit.types import Classes, Dataset, Sample

SCORE = 0.5
"""Lowest score of a box that is drawn."""

BEST = 3
"""Boxes that are drawn where none has that score."""


@torch.inference_mode()
def draw_samples(model: DenseModel, data: Dataset, out: Path, count: int, heads: Sequence[str] | None = None) -> None:
    """Predict ``count`` images, evenly spread over the data set; numbers as ``tools/predict.py`` writes, and pictures.

    Args:
        model: on any device.
        data: images as the model sees them: pictures are in their pixels, after the transforms of evaluation. Its
            classes stand in the model's order.
        out: folder to write.
        count: how many; 0 writes nothing.
        heads: what predicts, each into a folder of its name where the model has several; None: the first.
    """
    count = min(count, len(data))
    if count == 0:
        return
    model.eval()
    device = model.mean.device
    names = [next(iter(model.heads))] if heads is None else list(heads)
    folders = {name: out / model.prefix(name).removesuffix(".") for name in names}
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                make_writer(model.head(name).task, model.classes_of(name), folders[name], pictures=False)
            )
            for name in names
        }
        for index in np.linspace(0, len(data) - 1, count).round().astype(int).tolist():
            sample = data.sample(0, index)
            batch = collate([sample])
            batch = dataclasses.replace(batch, original_sizes=batch.sizes)
            for name, predictions in model.predict_all(batch.to(device), names).items():
                result = result_of(seen(sample), model.classes_of(name), predictions, 0)
                picture = folders[name] / "pictures" / f"{writers[name].add(result)}.jpg"
                write_picture(picture, side_by_side(panels(sample, result)))


def seen(sample: Sample) -> Seen:
    """A sample as an image that was predicted, in its own pixels."""
    name = Path(str(sample.id)).with_suffix("").name
    size = (int(sample.image.shape[0]), int(sample.image.shape[1]))
    return Seen(sample.id, Path(f"{name}.png"), size, functools.partial(np.asarray, sample.image))


def panels(sample: Sample, result: BoxResult | MaskResult | ClassResult) -> list[tuple[str, Image]]:
    """Caption and picture of the truth and of the prediction.

    Args:
        sample: with its annotations.
        result: of this image, in its pixels.
    """
    if isinstance(result, BoxResult):
        return _box_panels(sample, result)
    return _mask_panels(sample, result) if isinstance(result, MaskResult) else _class_panels(sample, result)


def _box_panels(sample: Sample, result: BoxResult) -> list[tuple[str, Image]]:
    found = result.at(shown_boxes(result.scores)).frame(score=0)
    return [("truth", _true_boxes(sample, drawable(result.classes.names))), (_caption(result.scores), found)]


def _true_boxes(sample: Sample, words: Sequence[str]) -> Image:
    boxes = sample.boxes if sample.boxes is not None else np.zeros((0, 4), np.float32)
    labels = sample.labels.tolist() if sample.labels is not None else []
    crowd = sample.crowd if sample.crowd is not None else np.zeros(len(boxes), np.bool_)
    texts = [f"{words[k]}{' (crowd)' * bool(many)}" for k, many in zip(labels, crowd)]
    picture, times = enlarged(sample.image)
    if sample.instances is not None:
        picture = tinted(picture, sample.instances, labels, scale=times)
    return draw_boxes(picture, boxes * times, texts, labels)


def shown_boxes(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """[n] which boxes, the best first, are drawn: those of at least ``SCORE``; where there is none, the best few."""
    shown = scores >= SCORE
    return shown if shown.any() else np.arange(len(scores)) < BEST


def _caption(scores: npt.NDArray[np.float32]) -> str:
    count = int((scores >= SCORE).sum())
    if count:
        return f"prediction: {count} with a score of at least {SCORE:g}"
    if not len(scores):
        return "prediction: no box"
    return f"prediction: none reaches {SCORE:g}, the best {min(BEST, len(scores))} from {scores[0]:.2f} down"


def _mask_panels(sample: Sample, result: MaskResult) -> list[tuple[str, Image]]:
    picture, times = enlarged(sample.image)
    true = sample.mask if sample.mask is not None else np.zeros(result.masks.shape, np.uint8)
    # The truth is in labels, and ignored pixels are of no class.
    labels = Classes(result.classes.names, tuple(range(len(result.classes))))
    truth = overlay(picture, true.repeat(times, -2).repeat(times, -1), labels)
    return [("truth", truth), ("prediction", result.picture())]


def _class_panels(sample: Sample, result: ClassResult) -> list[tuple[str, Image]]:
    words = drawable(result.classes.names)
    found = result.classes.ids.index(result.best)
    true = "" if sample.target is None else f"truth: {words[sample.target]}; "
    caption = f"{true}prediction: {words[found]} {result.probabilities[found]:.2f}"
    return [(caption, enlarged(sample.image)[0])]
