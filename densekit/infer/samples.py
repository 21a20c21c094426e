"""A look at a trained model: a few images of a data set, what is true of them beside what was predicted."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from densekit.data.loading.batching import collate
from densekit.infer.results import Seen, result_of
from densekit.infer.writers import make_writer
from densekit.model import DenseModel
from densekit.show.drawing import Image, draw_boxes, drawable, enlarged, side_by_side, write_picture
from densekit.show.drawing_masks import overlay
from densekit.types import Classes, Classification, Dataset, Detections, Predictions, Sample, Segmentation

SCORE = 0.5
"""Lowest score of a box that is drawn."""

BEST = 3
"""Boxes that are drawn where none has that score."""


@torch.inference_mode()
def draw_samples(model: DenseModel, data: Dataset, out: Path, count: int) -> None:
    """Predict ``count`` images, evenly spread over the data set; numbers as ``tools/predict.py`` writes, and pictures.

    Args:
        model: on any device.
        data: images as the model sees them: pictures are in their pixels, after the transforms of evaluation. Its
            classes stand in the model's order.
        out: folder to write.
        count: how many; 0 writes nothing.
    """
    count = min(count, len(data))
    if count == 0:
        return
    model.eval()
    device = model.mean.device
    with make_writer(model.task, model.classes, out, pictures=False) as writer:
        for index in np.linspace(0, len(data) - 1, count).round().astype(int).tolist():
            sample = data.sample(0, index)
            batch = collate([sample])
            batch = dataclasses.replace(batch, original_sizes=batch.sizes)
            predictions = model.predict(batch.to(device))
            name = Path(str(sample.id)).with_suffix("").name
            size = (int(sample.image.shape[0]), int(sample.image.shape[1]))
            seen = Seen(sample.id, Path(f"{name}.png"), size, functools.partial(np.asarray, sample.image))
            stem = writer.add(result_of(seen, model.classes, predictions, 0))
            picture = side_by_side(panels(sample, predictions, model.classes))
            write_picture(out / "pictures" / f"{stem}.jpg", picture)


def panels(sample: Sample, predictions: Predictions, classes: Classes) -> list[tuple[str, Image]]:
    """Caption and picture of the truth and of the prediction.

    Args:
        sample: with its annotations.
        predictions: of a batch of this image alone, in its pixels.
        classes: of the model.
    """
    if isinstance(predictions, Detections):
        return _box_panels(sample, predictions, classes)
    if isinstance(predictions, Segmentation):
        return _mask_panels(sample, predictions, classes)
    return _class_panels(sample, predictions, classes)


def _box_panels(sample: Sample, predictions: Detections, classes: Classes) -> list[tuple[str, Image]]:
    valid = predictions.valid[0].cpu().numpy()
    boxes, scores, ids = (
        values[0].cpu().numpy()[valid] for values in (predictions.boxes.float(), predictions.scores.float(),
                                                      predictions.labels)
    )  # fmt: skip
    shown = shown_boxes(scores)
    words = drawable(classes.names)
    labels = [classes.ids.index(i) for i in ids[shown].tolist()]
    texts = [f"{words[k]} {s:.2f}" for k, s in zip(labels, scores[shown].tolist())]
    found = _boxes_on(sample.image, boxes[shown], texts, labels)
    return [("truth", _true_boxes(sample, words)), (_caption(scores), found)]


def _true_boxes(sample: Sample, words: Sequence[str]) -> Image:
    boxes = sample.boxes if sample.boxes is not None else np.zeros((0, 4), np.float32)
    labels = sample.labels.tolist() if sample.labels is not None else []
    crowd = sample.crowd if sample.crowd is not None else np.zeros(len(boxes), np.bool_)
    texts = [f"{words[k]}{' (crowd)' * bool(many)}" for k, many in zip(labels, crowd)]
    return _boxes_on(sample.image, boxes, texts, labels)


def _boxes_on(
    image: npt.NDArray[np.generic], boxes: npt.NDArray[np.float32], texts: Sequence[str], labels: Sequence[int]
) -> Image:
    picture, times = enlarged(image)
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


def _mask_panels(sample: Sample, predictions: Segmentation, classes: Classes) -> list[tuple[str, Image]]:
    picture, times = enlarged(sample.image)
    found = predictions.masks[0].cpu().numpy()
    true = sample.mask if sample.mask is not None else np.zeros(found.shape, np.uint8)
    labels = Classes(classes.names, tuple(range(len(classes))))  # the truth is in labels, ignored pixels are none
    return [
        (caption, overlay(picture, mask.repeat(times, -2).repeat(times, -1), own))
        for caption, mask, own in (("truth", true, labels), ("prediction", found, classes))
    ]


def _class_panels(sample: Sample, predictions: Classification, classes: Classes) -> list[tuple[str, Image]]:
    words = drawable(classes.names)
    found = classes.ids.index(int(predictions.labels[0]))
    score = float(predictions.probabilities[0].float()[found])
    true = "" if sample.target is None else f"truth: {words[sample.target]}; "
    return [(f"{true}prediction: {words[found]} {score:.2f}", enlarged(sample.image)[0])]
