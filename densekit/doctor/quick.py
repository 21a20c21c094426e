"""The cheap part of the examination, for the start of a run: arrays that are in memory anyway, and a few masks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densekit.config import Config
from densekit.data.formats.coco.file import CocoFile
from densekit.data.formats.coco.instances import broken_masks
from densekit.data.formats.masks.masks import MaskFolder
from densekit.doctor.balance import UNEVEN, rarest_and_commonest
from densekit.doctor.boxes.boxes import SAME, TINY, alike
from densekit.doctor.boxes.limits import limit_note
from densekit.doctor.boxes.sets import NOTHING, UNMEASURED, findings, of_columns
from densekit.doctor.kinds import KINDS
from densekit.doctor.masks.at_start import mask_notes
from densekit.errors import DensekitError


def quick_check(dataset: Any, *, val: Any = None, config: Config | None = None, saved: Path | None = None) -> list[str]:
    """Short notes on the data before they are learned from.

    Args:
        dataset: a ``types.Dataset`` to learn from; what keeps no annotations in memory gives no note, but for its
            labels.
        val: the one that chooses the best checkpoint, where there is one.
        config: of the run: the limits of its detectors.
        saved: where the run writes its config, for the command that examines all of it.

    Returns:
        One line a finding, and the command that examines the rest, where the doctor can.

    Raises:
        DensekitError: a detector would learn nothing, or something false.
    """
    notes = _of_data(dataset, "data", config)
    if val is not None and isinstance(file := _file(val), CocoFile):
        notes += _of_set(val, file, "data.val", config)
    notes += _of_instances(dataset, "data") + ([] if val is None else _of_instances(val, "data.val"))
    if saved is not None and _has_files(dataset):
        notes.append(f"data: all checks: python -m densekit doctor {shlex.quote(str(saved))}")
    return notes


def _file(dataset: Any) -> Any:
    return getattr(dataset, "file", None) or getattr(getattr(dataset, "source", None), "file", None)


def _of_data(dataset: Any, name: str, config: Config | None) -> list[str]:
    file, labels = _file(dataset), getattr(dataset, "labels", None)
    if isinstance(file, CocoFile):
        return [*_of_set(dataset, file, name, config), *_of_coco(file)]
    if isinstance(source := getattr(dataset, "source", None), MaskFolder):
        return mask_notes(source)
    if isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu":
        counts = dict(zip(dataset.classes.names, _counts(labels, len(dataset.classes))))
        return [*_of_one_class(counts), *_of_counts(counts, "images")]
    return []


def _of_set(dataset: Any, file: CocoFile, name: str, config: Config | None) -> list[str]:
    """What is wrong with a set as a whole.

    Raises:
        DensekitError: a detector would learn nothing or something false from it, or would be measured by what is false.
    """
    if dataset.task != "detection":
        return []
    notes = []
    for code, message in findings(of_columns(file)):
        line = f"{message}; {KINDS[code].remedy}"
        if code in UNMEASURED and name != "data":
            line = f"{message}: AP is not defined on it, and best.pt will hold the last weights; {KINDS[code].remedy}"
        elif code in NOTHING:
            raise DensekitError(f"{file.path}: {message}; {KINDS[code].why}; {KINDS[code].remedy}")
        notes.append(f"{name}: {line}")
    if config is not None and (line := limit_note(config, file)):
        notes.append(f"{name}: {line}")
    return notes


def _has_files(dataset: Any) -> bool:
    """Whether there is something that the doctor can examine."""
    source = getattr(dataset, "source", dataset)
    return isinstance(source, MaskFolder) or getattr(source, "folder", None) is not None


def _of_instances(dataset: Any, name: str) -> list[str]:
    """Whether an object's mask will stop the run, hours from now."""
    if not getattr(dataset, "instances", False) or not (broken := broken_masks(dataset.file)):
        return []
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    return [f"{name}: the run will stop, or with data.on_bad_image=skip leave out the image, at {broken[0]}{more}"]


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


def _of_one_class(counts: dict[str, int]) -> list[str]:
    known = [name for name, count in counts.items() if count]
    if len(known) != 1:
        return []
    return [f"data: every image is of class {known[0]!r}; there is nothing to tell it from, so nothing is learned"]


def near_duplicates(file: CocoFile) -> int:
    """Boxes that are ``SAME`` as an earlier one of their class and image, crowds left out."""
    chosen = ~file.crowd
    groups = file.owners[chosen] * len(file.classes) + file.labels[chosen]
    return len({later for _, later, _ in alike(groups, np.asarray(file.boxes[chosen], np.float64))})


def _counts(labels: npt.NDArray[Any], classes: int) -> list[int]:
    return [int(n) for n in np.bincount(np.asarray(labels), minlength=classes)]
