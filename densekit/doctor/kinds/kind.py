"""What a code of the doctor means: how bad, why it hurts, what training does about it, and the remedy."""

from __future__ import annotations

import dataclasses
from typing import Literal

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Worst first. An error stops training or makes it learn something false; a note is a fact to know."""

EXIT_CODES = {"error": 4, "warning": 3, "note": 0}
"""Exit code of ``tools/doctor.py`` by the worst that was found (2 stays a mistake in the command)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What a code means.

    Attributes:
        severity: how bad.
        why: why it hurts.
        training: what training would do with it.
        remedy: what to do.
    """

    severity: Severity
    why: str
    training: str
    remedy: str


STOPS = "Training stops with an error that names it."
REFUSED = "The file is refused when it is opened."
AT_IMAGE = "Training stops when it comes to the image (with data.on_bad_image: skip it takes the next one)."
