"""All that the report of a run tells, gathered before a word of it is written."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit import build
from densekit.build import Split
from densekit.calibrate import Calibrated, calibration_of, chance_metric
from densekit.calibration import of_labels, tempered, tempered_chances
from densekit.doctor.quick import quick_check
from densekit.engine import checkpoint
from densekit.engine.distributed import World
from densekit.engine.record import read
from densekit.errors import DensekitError
from densekit.measured import Measured, measure
from densekit.metrics.accuracy import AccuracyMetric
from densekit.metrics.box_errors import Image, confusion
from densekit.metrics.calibration import ChanceMetric
from densekit.metrics.coco import CocoMetric
from densekit.metrics.intervals import intervals_of
from densekit.metrics.label_errors import Suspect, suspect_images, suspects
from densekit.metrics.segmentation import SegmentationMetric
from densekit.run_report.pictures import Picture, pictures
from densekit.show import report

Cell = tuple[int, int]
DRAWS = 1000

BEHIND = 10
"""Images that are named behind a cell of the confusion matrix."""


@dataclasses.dataclass(frozen=True)
class Story:
    """A run, measured.

    Attributes:
        run: its checkpoint on the split.
        split: that it was measured on.
        made: what the checkpoint says of its making.
        lines: of ``metrics.jsonl``. timing: of ``timing.jsonl``.
        numbers: of the evaluation, with intervals and details.
        calibrated: temperatures and cuts that follow.
        behind: images behind the cells of the confusion matrix, those with most first.
        suspects: labels that are probably wrong, the most probable first.
        crowding: AP of images with few, more and most objects, by words.
        tide: hotcoco's kinds of errors; empty but for detectors.
        doctor: lines on the data.
        pictures: worst and random images.
    """

    run: Measured
    split: Split
    made: dict[str, Any]
    lines: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    numbers: dict[str, Any]
    calibrated: Calibrated
    behind: dict[Cell, list[int | str]]
    suspects: list[Suspect]
    crowding: dict[str, float | None]
    tide: dict[str, Any]
    doctor: list[str]
    pictures: list[Picture]


def gather(
    run: Path, overrides: Sequence[str], split: Split, world: World, *, shown: int = 8, head: str | None = None
) -> Story:
    """Measure a run and look at what it does.

    Args:
        run: its folder, or a checkpoint.
        overrides: of its config.
        split: the data set.
        world: one rank.
        shown: worst images that are drawn, and as many at random.
        head: that it is told of; None: the first.
    """
    measured = measure(run, overrides, split, world, chance_metric, head=head)
    content = checkpoint.load(measured.path)
    numbers = {**measured.numbers, **report.details(measured.metric)}
    numbers["intervals"] = intervals_of(measured.resampler, count=DRAWS, seed=measured.config.seed)
    calibrated = calibration_of(measured, split)
    folder = measured.path.parent
    return Story(
        run=measured,
        split=split,
        made=content.get("made", {}),
        lines=read(folder / "metrics.jsonl"),
        timing=read(folder / "timing.jsonl"),
        numbers=numbers,
        calibrated=calibrated,
        behind=_behind(measured, numbers),
        suspects=_suspects(measured, calibrated),
        crowding=_crowding(measured),
        tide=measured.metric.tide() if isinstance(measured.metric, CocoMetric) else {},
        doctor=_doctor(measured),
        pictures=pictures(measured, split, shown, _worst(measured, numbers)),
    )


def calibrated_pairs(measured: Measured, calibrated: Calibrated) -> dict[int | str, Image]:
    """A detector's objects and findings by image, with calibrated scores; empty for other tasks."""
    if not isinstance(measured.metric, CocoMetric):
        return {}
    temperatures = calibrated.calibration.temperatures
    return {
        image_id: (objects, found._replace(scores=tempered(found.scores, of_labels(temperatures, found.labels))))
        for image_id, (objects, found) in measured.metric.pairs().items()
    }


def _suspects(measured: Measured, calibrated: Calibrated) -> list[Suspect]:
    if isinstance(measured.metric, AccuracyMetric):
        temperature = calibrated.calibration.temperatures[0]
        rows = measured.metric.state()
        chances = {i: tempered_chances(_chances(measured, i), temperature) for i in rows}
        return suspect_images(chances, {i: label for i, (label, _, _) in rows.items()})
    return suspects(calibrated_pairs(measured, calibrated), len(measured.data.classes))


def _chances(measured: Measured, image_id: int | str) -> npt.NDArray[Any]:
    """[K] a classifier's probabilities of an image."""
    assert isinstance(measured.beside, ChanceMetric)
    found: npt.NDArray[Any] = measured.beside.of_image(image_id)[0]
    return found


def _behind(measured: Measured, numbers: dict[str, Any]) -> dict[Cell, list[int | str]]:
    """Images by true and predicted class, most of them first."""
    counts: defaultdict[Cell, dict[int | str, int]] = defaultdict(dict)
    metric = measured.metric
    if isinstance(metric, AccuracyMetric):
        for image_id, (label, found, _) in metric.state().items():
            counts[label, found][image_id] = 1
    for image_id, matrix in _matrices(measured, numbers).items():
        for i, j in np.argwhere(matrix).tolist():
            counts[i, j][image_id] = int(matrix[i, j])
    return {cell: sorted(own, key=lambda i: -own[i])[:BEHIND] for cell, own in counts.items()}


def _matrices(measured: Measured, numbers: dict[str, Any]) -> dict[int | str, npt.NDArray[np.int64]]:
    """Confusions of each image, where they are more than a class for a class."""
    metric = measured.metric
    if isinstance(metric, CocoMetric):
        classes, cut = len(measured.data.classes), numbers["F1_threshold"]
        return {image_id: confusion([image], classes, cut) for image_id, image in metric.pairs().items()}
    return metric.matrices() if isinstance(metric, SegmentationMetric) and "confusion" in numbers else {}


def _worst(measured: Measured, numbers: dict[str, Any]) -> list[tuple[int | str, str]]:
    """Images from the worst on, with a few words each."""
    metric = measured.metric
    if isinstance(metric, CocoMetric):
        errors = []
        for image_id, matrix in _matrices(measured, numbers).items():
            missed, extra = int(matrix[:-1, -1].sum()), int(matrix[-1].sum())
            swapped = int(matrix[:-1, :-1].sum() - np.trace(matrix[:-1, :-1]))
            words = f"{missed} missed, {extra} for nothing, {swapped} swapped"
            errors.append((missed + extra + swapped, image_id, words))
        return [(image_id, words) for _, image_id, words in sorted(errors, key=lambda row: -row[0])]
    if isinstance(metric, SegmentationMetric):
        known = [(row["mIoU"], i) for i, row in metric.per_image().items() if row["mIoU"] is not None]
        return [(i, f"mIoU {value:.3f}") for value, i in sorted(known, key=lambda row: row[0])]
    assert isinstance(metric, AccuracyMetric)
    names, rows = measured.data.classes.names, metric.state()
    own = {i: float(_chances(measured, i)[label]) for i, (label, _, _) in rows.items()}
    return [
        (i, f"{names[rows[i][0]]} {own[i]:.2f}" + f", taken for {names[rows[i][1]]}" * (rows[i][0] != rows[i][1]))
        for i in sorted(rows, key=lambda i: own[i])
    ]


def _crowding(measured: Measured) -> dict[str, float | None]:
    """AP of the images in three groups by how many objects they have."""
    metric = measured.metric
    if not isinstance(metric, CocoMetric):
        return {}
    counts = np.array([int((~objects.crowd).sum()) for objects, _ in metric.pairs().values()])
    groups = [group for group in np.array_split(np.argsort(counts, kind="stable"), 3) if len(group)]
    weights = np.zeros((len(counts), len(groups)), np.int32)
    for column, group in enumerate(groups):
        weights[group, column] = 1
    values = measured.resampler.numbers(weights)["AP",]
    names = [f"{counts[g].min()} to {counts[g].max()} objects ({len(g)} images)" for g in groups]
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values)}


def _doctor(measured: Measured) -> list[str]:
    """What the quick examination says of the data, where it is still there."""
    config = measured.config
    try:
        train = build.dataset(config, "train", training=True)
        return quick_check(train, val=None if config.data.val is None else measured.data, config=config)
    except DensekitError as error:
        return [str(error)]
