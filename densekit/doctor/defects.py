"""One finding of the doctor, and the order and the weight of many."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from densekit.doctor.kinds import KINDS
from densekit.doctor.kinds.kind import EXIT_CODES, SEVERITIES, Kind, Severity

Id = int | str | None
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Defect:
    """One finding.

    Attributes:
        code: key of ``KINDS``.
        file: the file that it is about: an image, a mask, or the annotation file.
        message: what was found there, with the values.
        annotation_id: the annotation's id as the file has it, where it is about one.
        source: the annotation file (or config), where there is one.
        picture: an image file that can be shown.
        boxes: (x, y, width, height) in the picture's pixels, the defective one first.
        row: position in ``images``, ``annotations`` or ``categories`` of the file, for the correction; -1: none.
        other: a second image file, to be shown beside the first.
    """

    code: str
    file: str
    message: str
    annotation_id: Id = None
    source: str = ""
    picture: Path | None = None
    boxes: tuple[Box, ...] = ()
    row: int = -1
    other: Path | None = None

    @property
    def kind(self) -> Kind:
        """What the code means."""
        return KINDS[self.code]

    @property
    def severity(self) -> Severity:
        """How bad."""
        return self.kind.severity


def in_order(defects: Iterable[Defect]) -> list[Defect]:
    """Worst first, then by code, in the order found."""
    codes = list(KINDS)
    return sorted(defects, key=lambda d: (SEVERITIES.index(d.severity), codes.index(d.code)))


def exit_code(defects: Iterable[Defect]) -> int:
    """0 where nothing is worse than a note, 3 for warnings, 4 for errors."""
    return max((EXIT_CODES[d.severity] for d in defects), default=0)
