"""The examination for people at a terminal, and as JSON."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densekit.console import print_table
from densekit.doctor.defects import Defect
from densekit.doctor.examine import Report
from densekit.doctor.kinds.kind import SEVERITIES
from densekit.errors import DensekitError
from densekit.files import printable, write_text

SHOWN = 5
"""Examples of each code that the terminal shows; JSON and HTML have all."""


def print_report(report: Report) -> None:
    """Print a table of the codes, and examples of each with why it hurts and what to do."""
    counts = Counter(d.code for d in report.defects)
    if counts:
        kinds = {d.code: d.kind for d in report.defects}
        rows = [(code, kinds[code].severity, count, kinds[code].remedy) for code, count in counts.items()]
        print_table("findings", ["code", "severity", "count", "remedy"], rows)
    several = sum(split.rows is not None for split in report.splits) > 1
    for code in counts:
        _print_code([d for d in report.defects if d.code == code], several)
    for line in [*_of_each_split(report), *report.left_out]:
        print(printable(line))
    print(summary(report))


def _of_each_split(report: Report) -> list[str]:
    """How much was looked at in each of several jsons."""
    known = [(split, split.rows) for split in report.splits if split.rows is not None]
    lines = [f"{r.path}: {len(s.images)} images, {len(r.annotations)} annotations" for s, r in known]
    return lines if len(lines) > 1 else []


def summary(report: Report) -> str:
    """One line: how much was looked at, and how bad it is."""
    counts = Counter(d.severity for d in report.defects)
    found = ", ".join(f"{counts[s]} {s}{'s' if counts[s] != 1 else ''}" for s in SEVERITIES)
    return f"{report.path}: {report.images} images, {report.annotations} annotations, {report.seconds:.1f} s: {found}"


def _print_code(defects: list[Defect], several: bool) -> None:
    """Examples of one code; with ``several`` jsons each says in which it is."""
    kind = defects[0].kind
    print(f"{kind.severity}: {defects[0].code}: {kind.why}. {kind.training}")
    for defect in defects[:SHOWN]:
        annotation = "" if defect.annotation_id is None else f" annotation {defect.annotation_id!r}:"
        source = f" (in {Path(defect.source).name})" if several and defect.source not in ("", defect.file) else ""
        print(f"    {printable(defect.file)}:{annotation} {printable(defect.message + source)}")
    if len(defects) > SHOWN:
        print(f"    and {len(defects) - SHOWN} more")
    print(f"  remedy: {kind.remedy}\n")


def check_targets(examined: Path, targets: Sequence[Path | None]) -> None:
    """Refuse to write over what is examined, or twice into one file.

    Raises:
        DensekitError: a target is the examined file, a folder, or another target.
    """
    seen = {os.path.realpath(examined)}
    for target in targets:
        if target is None:
            continue
        if os.path.realpath(target) in seen:
            raise DensekitError(f"{target}: it is the examined file, or written twice; give another name")
        if target.is_dir():
            raise DensekitError(f"{target}: it is a folder; give the name of a file")
        seen.add(os.path.realpath(target))


def as_json(report: Report) -> dict[str, Any]:
    """What ``--json`` writes: each defect with its words; notes are told apart by their severity."""
    counts = Counter(d.severity for d in report.defects)
    return {
        "path": printable(report.path),
        "images": report.images,
        "annotations": report.annotations,
        "exit_code": report.exit_code,
        "left_out": report.left_out,
        "counts": {severity: counts[severity] for severity in SEVERITIES},
        "defects": [_row(defect) for defect in report.defects],
    }


def write_json(report: Report, path: Path) -> None:
    """Write ``as_json`` whole or not at all."""
    write_text(path, json.dumps(as_json(report), indent=1, allow_nan=False) + "\n")


def _row(defect: Defect) -> dict[str, Any]:
    kind = defect.kind
    return {
        "code": defect.code,
        "severity": kind.severity,
        "file": printable(defect.file),
        "annotation_id": defect.annotation_id,
        "message": printable(defect.message),
        "why": kind.why,
        "training": kind.training,
        "remedy": kind.remedy,
        "boxes": [[v if math.isfinite(v) else None for v in box] for box in defect.boxes],
        "source": defect.source,
    }
