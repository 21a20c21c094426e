"""Corrects an annotation file: a new file, a log of every change, and the original as it was.

What is corrected may show another defect (a box with swapped corners may lie outside), so the checks of the rows are
repeated until nothing is left that can be corrected.
"""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from densekit.doctor.coco.locate import locate
from densekit.doctor.coco.rows import CocoRows, rows_of
from densekit.doctor.defects import Defect
from densekit.doctor.examine import Report, row_defects
from densekit.doctor.fixes.correction import Correction
from densekit.doctor.fixes.corrections import CORRECTIONS
from densekit.doctor.fixes.removal import MOST, check_removal
from densekit.doctor.sets import Split
from densekit.doctor.telling.report import check_targets
from densekit.errors import DensekitError
from densekit.files import write_text

_ROUNDS = 6

LEFT = "left as it is"
"""Ends a line of the log about what is for people to decide."""


def write_fixed(report: Report, target: Path, *, may_remove: float = MOST) -> list[str]:
    """Write the corrected file and its log (``target`` with the ending ``.log``).

    Args:
        report: of the examination.
        target: the new file.
        may_remove: largest part of the images, or of the annotations, that the correction may remove.

    Returns:
        The lines of the log.

    Raises:
        DensekitError: the examined path is no COCO json, ``target`` is the original, or too much would be removed.
    """
    split = report.splits[0]
    if len(report.splits) != 1 or split.rows is None or not split.rows.content:
        raise DensekitError(f"--fix: {report.path} is no COCO json that can be read; give the json of one split")
    broken = next((d.message for d in split.rows.defects if d.code == "file_unreadable"), None)
    if broken is not None:
        raise DensekitError(f"--fix: {report.path}: {broken}; that can't be corrected, export the file again")
    unread = [d.message for d in split.defects if d.code == "label_unreadable"]
    if unread:
        raise DensekitError(f"--fix: {len(unread)} labels can't be read: {unread[0]}; correct these first")
    if not 0 <= may_remove <= 1:
        raise DensekitError(f"--may-remove {may_remove:g}: give a part of the images or annotations, from 0 to 1")
    check_targets(split.rows.path, [target, target.with_suffix(".log")])
    content, log = corrected(split, report.defects, may_remove)
    text = json.dumps(content, allow_nan=False)
    write_text(target.with_suffix(".log"), "\n".join([f"{split.rows.path} -> {target}", *log]) + "\n")
    write_text(target, text + "\n")
    return log


def corrected(split: Split, defects: Iterable[Defect], may_remove: float = MOST) -> tuple[dict[str, Any], list[str]]:
    """The corrected content of a split's json, and one line for each change and for each defect that was left.

    Raises:
        DensekitError: more than ``may_remove`` of the images or annotations would go.
    """
    assert split.rows is not None
    rows = split.rows
    log: list[str] = []
    removed: Counter[tuple[str, str]] = Counter()
    content = copy.deepcopy(rows.content)
    current, known = list(defects), list(defects)
    for _ in range(_ROUNDS):
        correction = Correction(content, _read(content, rows), current, split.max_pixels)
        for defect in current:
            correct = CORRECTIONS.get(defect.code)
            if correct is not None:
                correct(correction, defect)
        if not correction.log:
            break
        log += correction.log
        removed += correction.removed
        content = correction.result()
        current = row_defects(_read(content, rows))
        known += current
    sizes = {key: len(value) for key, value in rows.content.items() if isinstance(value, list)}
    check_removal(rows.path, sizes, removed, known, may_remove)
    remaining = [*(d for d in defects if d.code not in CORRECTIONS), *current]
    left = {(d.code, d.file, d.annotation_id, d.message): d for d in remaining}
    log += [f"{d.file}: {d.code}: {d.message}: {LEFT}" for d in left.values() if d.severity != "note"]
    return _finite(content, log), log


def _read(content: dict[str, Any], rows: CocoRows) -> CocoRows:
    return locate(rows_of(content, rows.path), rows.folder)


def _finite(content: dict[str, Any], log: list[str]) -> dict[str, Any]:
    """Numbers that JSON does not know become null, wherever in the file they are."""
    count = 0

    def walk(value: Any) -> Any:
        nonlocal count
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            count += 1
            return None
        return value

    try:
        json.dumps(content, allow_nan=False)
        return content
    except ValueError:
        found = walk(content)
    log.append(f"{count} numbers that are NaN or infinite: null")
    return dict(found)
