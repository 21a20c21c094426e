"""A checkpoint's scores against a data set, and the calibration that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from densekit.build import Split
from densekit.calibration import Calibration, tempered
from densekit.engine import checkpoint
from densekit.engine.distributed import World
from densekit.errors import DensekitError
from densekit.measured import Measured, digest, measure
from densekit.metrics.calibration import (
    ChanceMetric,
    Cut,
    Fitted,
    calibration_error,
    choose_cut,
    fit_boxes,
    fit_chances,
    of_class,
)
from densekit.metrics.coco_resampled import CocoResampler
from densekit.model import DenseModel
from densekit.types import Dataset, Metric

_PIXELS, _OF_AN_IMAGE = 1_000_000, 2000


class Calibrated(NamedTuple):
    """A checkpoint that was looked at.

    Attributes:
        run: as it was measured.
        calibration: what follows.
        fitted: the scores before and after.
        cuts: detection: one a class; empty for other tasks.
    """

    run: Measured
    calibration: Calibration
    fitted: Fitted
    cuts: list[Cut]


def calibrate(
    run: Path,
    overrides: Sequence[str],
    split: Split,
    world: World,
    *,
    precision: float | None = None,
    recall: float | None = None,
    head: str | None = None,
) -> Calibrated:
    """Fit temperatures, and of a detector choose the score of each class to cut at.

    Args:
        run: its folder, or the checkpoint.
        overrides: of its config.
        split: the data set to fit on: one that was not learned from.
        world: one rank.
        precision: that the boxes of each class are to have; see ``choose_cut``.
        recall: that they are to have; neither: the best F1.
        head: whose scores; None: those of the first.

    Raises:
        DensekitError: precision or recall for another task.
    """

    def beside(model: DenseModel, data: Dataset) -> Metric | None:
        if model.task != "detection" and (precision, recall) != (None, None):
            raise DensekitError(f"--precision and --recall are for detectors; this head does {model.task}")
        return chance_metric(model, data)

    measured = measure(run, overrides, split, world, beside, head=head)
    return calibration_of(measured, split, precision=precision, recall=recall)


def calibration_of(
    measured: Measured, split: Split, *, precision: float | None = None, recall: float | None = None
) -> Calibrated:
    """As ``calibrate``, of a checkpoint that was measured with ``chance_metric`` beside."""
    rule = "best F1"
    cuts: list[Cut] = []
    if isinstance(measured.resampler, CocoResampler):
        matched = measured.resampler.boxes()
        judged = [of_class(one) for one in matched]
        fitted = fit_boxes(judged)
        for one, own, temperature in zip(matched, judged, fitted.temperatures):
            read = own._replace(scores=tempered(own.scores, temperature))
            cuts.append(choose_cut(read, int(one.objects.sum()), precision=precision, recall=recall))
        wanted = (("precision", precision), ("recall", recall))
        rule = next((f"{name} {value:g}" for name, value in wanted if value is not None), rule)
    else:
        assert isinstance(measured.beside, ChanceMetric)
        fitted = fit_chances(measured.beside.chances())
    errors = [calibration_error(part) for part in (fitted.before, fitted.after)]
    scores = tuple(cut.score for cut in cuts)
    return Calibrated(measured, Calibration(tuple(fitted.temperatures), scores, rule, split, *errors), fitted, cuts)


def chance_metric(model: DenseModel, data: Dataset) -> Metric | None:
    """What ``calibration_of`` needs beside the task's metric, which judges detections; of others the probabilities."""
    if model.task == "detection":
        return None
    return ChanceMetric(max(50, min(_OF_AN_IMAGE, _PIXELS // len(data))))


def store(found: Calibrated) -> None:
    """Put a calibration into its checkpoint, whole or not at all; everything else in it stays as it is.

    Raises:
        DensekitError: the file is not the one that was measured, as when its run goes on.
    """
    path = found.run.path
    content = checkpoint.load(path)
    if digest(path) != found.run.digest:
        raise DensekitError(f"{path} was replaced while it was measured; let its run end, and calibrate again")
    (head,) = found.run.model.heads
    if head == next(iter(content["config"]["model"]["heads"])):
        content["calibration"] = found.calibration.content()
    else:
        held = content.get("calibration_by_head", {})
        content["calibration_by_head"] = {**held, head: found.calibration.content()}
    checkpoint.save(path, content)
