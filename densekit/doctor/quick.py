"""The cheap part of the examination, for the start of a run: from arrays that are in memory anyway, no file is read."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.data.coco_file import CocoFile
from densekit.data.masks import MaskFolder
from densekit.doctor.balance import UNEVEN, rarest_and_commonest
from densekit.doctor.boxes import SAME, TINY, alike


def quick_check(dataset: Any) -> list[str]:
    """Short notes on a data set before it is learned from.

    Args:
        dataset: a ``types.Dataset``; what keeps no annotations in memory gives no note, but for its labels.

    Returns:
        One line a finding, and the command that examines the rest, where the doctor can.
    """
    source = getattr(dataset, "source", None)
    file = getattr(dataset, "file", None) or getattr(source, "file", None)
    labels = getattr(dataset, "labels", None)
    notes = []
    if isinstance(file, CocoFile):
        notes = _of_coco(file)
    elif isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu":
        notes = _of_counts(dict(zip(dataset.classes.names, _counts(labels, len(dataset.classes)))), "images")
    arguments = _arguments(dataset, file)
    return [*notes, f"data: all checks: python tools/doctor.py {arguments}"] if arguments else notes


def _arguments(dataset: Any, file: Any) -> str:
    """What the doctor is to be called with."""
    source = getattr(dataset, "source", dataset)
    folder = getattr(source, "folder", None)
    if isinstance(file, CocoFile):
        return f"{shlex.quote(str(file.path))} --images {shlex.quote(str(folder))}"
    if isinstance(source, MaskFolder):
        return f"{shlex.quote(str(source.masks))} --images {shlex.quote(str(source.images))}"
    return "" if folder is None else shlex.quote(str(folder))


def _of_coco(file: CocoFile) -> list[str]:
    per_image = np.diff(file.first)
    notes = []
    if empty := int((per_image == 0).sum()):
        notes.append(f"data: {empty} of {len(file)} images have no annotation and are learned as background")
    notes += _of_counts(dict(zip(file.classes.names, _counts(file.labels, len(file.classes)))), "objects")
    if tiny := int((file.boxes[:, 2:].min(1, initial=np.inf) < TINY).sum()):
        notes.append(f"data: {tiny} boxes are smaller than {TINY:g} px; after resizing next to nothing is left of them")
    if twice := near_duplicates(file):
        notes.append(f"data: {twice} boxes all but cover another of their class (IoU from {SAME}): labelled twice?")
    return notes


def _of_counts(counts: dict[str, int], what: str) -> list[str]:
    notes = []
    if absent := [name for name, count in counts.items() if not count]:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        notes.append(f"data: no {what} of class {', '.join(map(repr, absent[:5]))}{more}; it cannot be learned")
    rare, common = rarest_and_commonest(counts)
    if rare and counts[common] >= UNEVEN * counts[rare]:
        notes.append(
            f"data: {common!r} has {counts[common]} {what}, {rare!r} {counts[rare]}: rare ones are learned late"
        )
    return notes


def near_duplicates(file: CocoFile) -> int:
    """Boxes that are ``SAME`` as an earlier one of their class and image, crowds left out."""
    chosen = ~file.crowd
    groups = file.owners[chosen] * len(file.classes) + file.labels[chosen]
    return len({later for _, later, _ in alike(groups, np.asarray(file.boxes[chosen], np.float64))})


def _counts(labels: npt.NDArray[Any], classes: int) -> list[int]:
    return [int(n) for n in np.bincount(np.asarray(labels), minlength=classes)]
