"""What a checkpoint knows of its scores: temperatures that make them honest, and from which score on to believe a box.

A temperature T divides the logit of a score: softmax(logits / T) for one class out of many (Guo et al. 2017, section
4.2), sigmoid(logit / T) for a box or a class by itself. It moves no score past another of its class, and changes no
class that is predicted.

K classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.errors import DensekitError

Floats = npt.NDArray[Any]
"""float32 or float64."""

_LEAST = 1e-7  # nearest to 0 and 1 that has a logit


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How the scores of a checkpoint are to be read.

    Attributes:
        temperatures: one a class for boxes, else one.
        cuts: detection: [K] from which score on a box of each class is taken for found; empty for other tasks.
        rule: how the cuts were chosen, such as ``precision 0.95``.
        split: of the data that they come from.
        before: expected calibration error of the scores as they were.
        after: with temperatures, each half of the images by those of the other half.
    """

    temperatures: tuple[float, ...]
    cuts: tuple[float, ...]
    rule: str
    split: str
    before: float
    after: float

    def content(self) -> dict[str, Any]:
        """Plain types, for the checkpoint."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def held_in(cls, content: dict[str, Any], classes: int, path: object) -> Calibration | None:
        """The calibration that a checkpoint holds, or None.

        Args:
            content: of the checkpoint.
            classes: K.
            path: of the checkpoint, for the message.

        Raises:
            DensekitError: it is not valid.
        """
        held = content.get("calibration")
        if held is None:
            return None
        try:
            found = cls(
                tuple(float(t) for t in held["temperatures"]),
                tuple(float(c) for c in held["cuts"]),
                str(held["rule"]),
                str(held["split"]),
                float(held["before"]),
                float(held["after"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _invalid(path, error) from None
        if len(found.temperatures) not in (1, classes) or len(found.cuts) not in (0, classes):
            raise _invalid(path, f"{len(found.temperatures)} temperatures and {len(found.cuts)} cuts of {classes}")
        if not all(math.isfinite(t) and t > 0 for t in found.temperatures) or not all(0 <= c <= 1 for c in found.cuts):
            raise _invalid(path, "a temperature that is not above 0, or a cut that is not in 0..1")
        return found

    def told(self) -> str:
        """One line that says what it does."""
        words = (
            f"scores are calibrated on {self.split}: expected error {self.before:.3f} before, {self.after:.3f} after "
            "(--uncalibrated: as the head gives them)"
        )
        return f"{words}; boxes are drawn from the score of the {self.rule} of their class" if self.cuts else words


def _invalid(path: object, why: object) -> DensekitError:
    return DensekitError(f"checkpoint {path} holds no valid calibration ({why}); run tools/calibrate.py on it again")


def tempered(scores: Floats, temperatures: Floats | float) -> Floats:
    """Scores in 0..1, each a sigmoid by itself, with logits divided by temperatures that broadcast with them."""
    p = np.clip(scores.astype(np.float64), _LEAST, 1 - _LEAST)
    found: Floats = (1 / (1 + np.exp(-np.log(p / (1 - p)) / temperatures))).astype(scores.dtype)
    return found


def tempered_chances(chances: Floats, temperature: float, axis: int = 0) -> Floats:
    """Probabilities that sum to 1 over the classes along ``axis``, with logits divided by the temperature."""
    powers = np.maximum(chances.astype(np.float64), 1e-12) ** (1 / temperature)
    found: Floats = (powers / powers.sum(axis, keepdims=True)).astype(chances.dtype)
    return found


def of_labels(values: Sequence[float], labels: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[n] the value of each label; one value stands for all."""
    known = np.array(values, np.float64)
    at = np.asarray(labels, np.int64)
    return known[np.zeros_like(at) if len(known) == 1 else at]
