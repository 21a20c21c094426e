"""How often each class occurs: in boxes, and in pixels of masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from densekit.doctor.coco.rows import CocoRows
from densekit.doctor.defects import Defect
from densekit.doctor.masks.checks import MaskLook, MaskQuestion
from densekit.doctor.masks.values import ignored_object
from densekit.doctor.sets import Split
from densekit.errors import DensekitError
from densekit.types import IGNORE, Classes

UNEVEN = 20
"""Times that the most frequent class must outnumber the rarest to be told."""

_REFUSED = ("mask_values", "mask_unreadable")
_REJECTED = 0.1  # part of the annotations that make no sense from which on classes are not compared

_MASKS = 3  # that must be of one class alone to be told as a set


def class_defects(rows: CocoRows) -> Iterator[Defect]:
    """Classes without objects, and imbalance, in a COCO file."""
    counts = Counter(a.category_id for a in rows.annotations)
    ids = {c.id for c in rows.categories}
    entries = rows.content.get("annotations") or ()
    rejected = len(entries) - sum(counts[i] for i in ids)
    if rows.annotations and rejected <= _REJECTED * len(entries):
        path, mentioned = str(rows.path), rows.mentioned("category_id")
        known = [c for c in rows.categories if counts[c.id] or str(c.id) not in mentioned]
        yield from counted({c.name: counts[c.id] for c in known}, "objects", path, path)


def differing_classes(splits: Sequence[Split]) -> Iterator[Defect]:
    """Splits whose categories are not among those of the first one; a small split may well lack some."""
    known = [(split, classes) for split in splits if (classes := _classes(split)) is not None]
    for split, classes in known[1:]:
        difference = known[0][1].difference(classes)
        if difference is not None and split.rows is not None and not classes.are_among(known[0][1]):
            path = str(split.rows.path)
            message = f"its classes are not those of {known[0][0].name}: {difference}"
            yield Defect("classes_differ", path, message, source=path)


def _classes(split: Split) -> Classes | None:
    """In label order, as training has them; None where ids or names occur twice, which is told anyway."""
    if split.rows is None or not split.rows.categories:
        return None
    by_name = {c.name: c.id for c in sorted(split.rows.categories, key=lambda c: c.id)}
    names = [name for name in split.chosen or by_name if name in by_name]
    try:
        return Classes(tuple(names), tuple(by_name[name] for name in names))
    except DensekitError:
        return None


def pixel_defects(questions: Sequence[MaskQuestion], looks: Sequence[MaskLook]) -> Iterator[Defect]:
    """Classes without pixels, and imbalance, in masks whose classes are known."""
    codes = [q.code for q in questions if q.code is not None]
    if not codes or codes[0].layers:
        return
    if any(code in _REFUSED for look in looks for code, _ in look.problems):
        return  # what was refused may hold any class
    pixels: Counter[int] = Counter()
    for look in looks:
        pixels.update({v: n for v, n in look.pixels.items() if v != IGNORE})
    counts = np.array([sum(look.pixels.get(label, 0) for look in looks) for label in range(256)], np.int64)
    names = codes[0].classes.names
    folder = str(Path(questions[0].mask).parent)
    if len(pixels) == 1 and len(names) > 1 and len(looks) >= _MASKS:
        ignored = sum(look.pixels.get(IGNORE, 0) for look in looks)
        share = ignored / (ignored + pixels.total())
        message = f"every pixel of {len(looks)} masks is {names[min(pixels)]!r} or ignored ({share:.1%} of them are)"
        yield Defect("masks_of_one_class", folder, message)
    elif message := ignored_object(codes[0], counts) or "":
        yield Defect("mask_255_ignored", folder, message)
    elif pixels:
        yield from counted({name: pixels[label] for label, name in enumerate(names)}, "pixels", folder)


def counted(counts: Mapping[str, int], what: str, file: str, source: str = "") -> Iterator[Defect]:
    """Notes on the counts of a set's classes."""
    for name, count in counts.items():
        if not count:
            yield Defect("class_without_objects", file, f"class {name!r} has no {what}", source=source)
    least, most = rarest_and_commonest(counts)
    if least and counts[most] >= UNEVEN * counts[least]:
        times = counts[most] / counts[least]
        message = f"{most!r} has {counts[most]} {what}, {least!r} has {counts[least]}: {times:.0f} times fewer"
        yield Defect("class_imbalance", file, message, source=source)


def rarest_and_commonest(counts: Mapping[str, int]) -> tuple[str, str]:
    """Names of the rarest class that occurs, and of the most frequent one; empty where none occurs."""
    known = {name: count for name, count in counts.items() if count}
    return (min(known, key=known.__getitem__), max(known, key=known.__getitem__)) if known else ("", "")
