"""Results with the scores that a calibration makes of them."""

from __future__ import annotations

import dataclasses

import numpy as np

from densekit.calibration import Calibration, of_labels, tempered, tempered_chances
from densekit.infer.results import BoxResult, ClassResult, MaskResult


def calibrated(
    result: BoxResult | MaskResult | ClassResult, calibration: Calibration
) -> BoxResult | MaskResult | ClassResult:
    """The same boxes, masks or class with calibrated scores; boxes are in the order of these, the best first."""
    if isinstance(result, BoxResult):
        scores = tempered(result.scores, of_labels(calibration.temperatures, result.labels)).astype(np.float32)
        read = dataclasses.replace(result, scores=scores, cuts=calibration.cuts or None)
        return read.at(np.argsort(-scores, kind="stable"))
    temperature = calibration.temperatures[0]
    if isinstance(result, ClassResult):
        return dataclasses.replace(result, probabilities=tempered_chances(result.probabilities, temperature))
    if result.probabilities is None:
        return result
    layers = result.masks.ndim == 3
    chances = result.probabilities
    read_so = tempered(chances, temperature) if layers else tempered_chances(chances, temperature)
    return dataclasses.replace(result, probabilities=read_so)
