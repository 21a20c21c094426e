"""How often each class occurs, and whether the splits mean the same by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from densekit.doctor.checks.masks import MaskFacts
from densekit.doctor.report import Defect
from densekit.doctor.sources import Split

IMBALANCE = 10.0
"""Ratio of the most frequent to the rarest class from which on it is told."""


def class_counts(split: Split, masks: Mapping[Path, MaskFacts]) -> dict[str, int]:
    """Objects (COCO), pixels (masks) or images (folders) of each class by name; empty where classes are not known."""
    if split.coco is not None:
        found = Counter(a.category_id for a in split.coco.annotations if not a.crowd)
        return {c.name: found[c.id] for c in split.coco.category_of.values()}
    if split.code is not None and not split.code.layers:
        pixels: Counter[int] = Counter()
        for item in split.items:
            pixels.update(masks[item.mask].counts if item.mask is not None else {})
        values = range(len(split.code.classes)) if split.code.colours else split.code.classes.ids
        return {name: pixels[value] for name, value in zip(split.code.classes.names, values)}
    return dict(Counter(item.label for item in split.items if item.label is not None))


def check_balance(split: Split, counts: Mapping[str, int]) -> Iterator[Defect]:
    """Classes that are rare or do not occur."""
    if not any(counts.values()):
        return
    what = "objects" if split.coco is not None else "images" if split.code is None else "pixels"
    if absent := [name for name, count in counts.items() if not count]:
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        message = f"{len(absent)} of {len(counts)} classes have no {what}: {', '.join(absent[:10])}{more}"
        yield Defect("class-without-objects", str(split.source), message)
    if message := imbalance(counts, what):
        yield Defect("class-imbalance", str(split.source), message)


def imbalance(counts: Mapping[str, int], what: str) -> str | None:
    """One line on how far apart the classes are, or None where they are not."""
    present = {name: count for name, count in counts.items() if count}
    if len(present) < 2:
        return None
    most, least = max(present, key=lambda n: present[n]), min(present, key=lambda n: present[n])
    ratio = present[most] / present[least]
    if ratio < IMBALANCE:
        return None
    return f"{most!r} has {present[most]} {what}, {least!r} {present[least]}: {ratio:.0f} times as many"


def check_same_classes(splits: Sequence[Split]) -> Iterator[tuple[int, Defect]]:
    """Splits whose categories differ from those of the first, with the number of the split."""
    known = [(i, s, {c.id: c.name for c in s.coco.category_of.values()}) for i, s in enumerate(splits) if s.coco]
    for number, split, categories in known[1:]:
        first, wanted = known[0][1], known[0][2]
        if categories == wanted or not categories or not wanted:
            continue
        both = {**wanted, **categories}
        wrong = [
            f"{i}: {wanted.get(i)!r} and {categories.get(i)!r}" for i in both if wanted.get(i) != categories.get(i)
        ]
        message = f"category ids mean other names than in {first.name or first.source}: {'; '.join(wrong[:5])}"
        yield number, Defect("classes-differ", str(split.source), message)
