"""What a data set holds, for the page: its splits side by side, their classes, sizes, and some labelled samples."""

from __future__ import annotations

import dataclasses
import html
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from densekit.doctor.examine import Report
from densekit.doctor.split import Split
from densekit.doctor.telling.histogram import histograms
from densekit.doctor.telling.samples import samples
from densekit.files import printable
from densekit.types import IGNORE

CLASSES = 100
"""Most classes that the page lists."""


@dataclasses.dataclass(slots=True)
class Facts:
    """What one split holds.

    Attributes:
        name: of the split.
        images: how many.
        empty: images without an object; None where that is not known.
        classes: by class what ``unit`` counts.
        unit: ``objects``, ``pixels`` of masks, or ``images`` in a folder of theirs.
        boxes: square root of each box's area, in pixels.
        sides: the same of each image.
        sizes: (width, height) of each image.
    """

    name: str
    images: int
    empty: int | None
    classes: Counter[str]
    unit: str
    boxes: list[float]
    sides: list[float]
    sizes: list[tuple[int, int]]


def overview(report: Report, encoded: Callable[..., str]) -> str:
    """The part of the page that tells of the data, whether or not something is wrong with them.

    Args:
        report: of the examination.
        encoded: a picture for the page, see ``samples``.
    """
    held = [split for split in report.splits if split.images or split.masks or split.rows is not None]
    known = {name: place for place, name in enumerate(("train", "val", "valid", "test"))}
    facts = [_facts(split, report) for split in sorted(held, key=lambda split: known.get(split.name, len(known)))]
    if not facts:
        return ""
    boxes = {f.name: f.boxes for f in facts if f.boxes}
    sides = {f.name: f.sides for f in facts if f.sides}
    parts = ["<h2>What is there</h2>", _splits(facts), _classes(facts)]
    parts += [histograms("sizes of boxes: square root of the area in pixels", boxes)] if boxes else []
    parts += [histograms("sizes of images: square root of the area in pixels", sides)] if sides else []
    return "".join([*parts, samples(report, encoded)])


def _facts(split: Split, report: Report) -> Facts:
    sizes = [report.sizes[entry.path] for entry in split.images if entry.path in report.sizes]
    sides = [math.sqrt(w * h) for w, h in sizes if w * h > 0]
    found = Facts(split.name or "all", len(split.images), None, Counter(), "objects", [], sides, sizes)
    if split.rows is not None:
        rows = split.rows
        names = {category.id: category.name for category in rows.categories}
        found.classes = Counter(dict.fromkeys(names.values(), 0))
        found.classes.update(names.get(a.category_id, f"id {a.category_id}") for a in rows.annotations)
        areas = (a.box[2] * a.box[3] for a in rows.annotations)
        found.boxes = [math.sqrt(area) for area in areas if math.isfinite(area) and area > 0]
        found.images = len(rows.images_by_id)
        found.empty = len(rows.images_by_id.keys() - {a.image_id for a in rows.annotations})
    elif split.masks:
        found.classes, found.unit = _pixels(split, report.pixels), "pixels"
    else:
        folders = Counter(entry.path.parent.name for entry in split.images)
        found.classes, found.unit = (folders if len(folders) > 1 else Counter()), "images"
    return found


def _pixels(split: Split, pixels: Mapping[Path, Mapping[int, int]]) -> Counter[str]:
    code = split.masks[0].code
    names = () if code is None else code.classes.names
    counts: Counter[str] = Counter(dict.fromkeys(names, 0))
    for question in split.masks:
        for value, count in pixels.get(question.mask, {}).items():
            if code is None:
                counts[f"value {value}"] += count
            elif value != IGNORE and value < len(names):
                counts[names[value]] += count
            else:
                counts["ignored"] += count
    return counts


def _splits(facts: Sequence[Facts]) -> str:
    rows: list[tuple[str, list[str]]] = [
        ("images", [f"{f.images:,}" for f in facts]),
        ("without an object", ["" if f.empty is None else f"{f.empty:,}" for f in facts]),
        ("objects", [f"{f.classes.total():,}" if f.unit == "objects" else "" for f in facts]),
        ("objects an image", [_mean(f) for f in facts]),
        ("classes", [str(sum(count > 0 for count in f.classes.values())) if f.classes else "" for f in facts]),
        ("sizes of images", [_extent(f.sizes) for f in facts]),
    ]
    return _table(["", *(f.name for f in facts)], ([name, *cells] for name, cells in rows if any(cells)))


def _mean(facts: Facts) -> str:
    return f"{facts.classes.total() / facts.images:.1f}" if facts.unit == "objects" and facts.images else ""


def _extent(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return ""
    widths, heights = sorted(w for w, _ in sizes), sorted(h for _, h in sizes)
    if len(set(sizes)) == 1:
        return f"{widths[0]} x {heights[0]}"
    middle = f"{median(widths):.0f} x {median(heights):.0f}"
    return f"{widths[0]} to {widths[-1]} x {heights[0]} to {heights[-1]}, half of them up to {middle}"


def _classes(facts: Sequence[Facts]) -> str:
    """A row a class, a column a split: how much there is, and a bar of its share."""
    names = list(dict.fromkeys(name for f in facts for name in f.classes))
    if not names:
        return ""
    names.sort(key=lambda name: -sum(f.classes[name] for f in facts))
    rows = ([name, *(_bar(f.classes[name], f.classes.total()) for f in facts)] for name in names[:CLASSES])
    more = f"<p>and {len(names) - CLASSES} more classes</p>" if len(names) > CLASSES else ""
    what = ", ".join(dict.fromkeys(f.unit for f in facts if f.classes))
    return f"<h3>Classes ({what})</h3>{_table(['class', *(f.name for f in facts)], rows, last_is_html=True)}{more}"


def _bar(count: int, total: int) -> str:
    share = count / total if total else 0.0
    return f'{count:,} ({share:.1%})<div class="bar" style="width:{max(0.2, 12 * share):.1f}em"></div>'


def _table(head: Sequence[str], rows: Iterator[list[str]], *, last_is_html: bool = False) -> str:
    """A table; names are escaped, and cells behind the first one unless they are HTML of ours."""
    top = "".join(f"<th>{html.escape(printable(name))}</th>" for name in head)
    body = "".join(
        f"<tr><th>{html.escape(printable(name))}</th>"
        + "".join(f"<td>{cell if last_is_html else html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def root(report: Report) -> str:
    """The folder that all that was examined lies in, with a slash behind it; empty where there is none to leave out."""
    report_folder = report.path if report.path.is_dir() else report.path.parent
    files = [e.path for split in report.splits for e in split.images] + [
        question.mask for split in report.splits for question in split.masks
    ]
    try:
        common = os.path.commonpath([str(report_folder), *{str(path.parent) for path in files}])
    except ValueError:  # some are relative, or on another drive
        return ""
    return "" if common in ("", os.sep) else common.rstrip(os.sep) + os.sep
