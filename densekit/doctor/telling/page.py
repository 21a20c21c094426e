"""The examination as one HTML page that needs no other file: all pictures stand in it."""

from __future__ import annotations

import base64
import dataclasses
import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from densekit.data.images.header import read_header
from densekit.data.images.pixel_values import stretched
from densekit.data.images.read import read_bytes, read_pixels
from densekit.doctor.defects import Box, Defect
from densekit.doctor.examine import Report
from densekit.doctor.split import ImageEntry
from densekit.doctor.telling.overview import overview, root
from densekit.doctor.telling.report import summary
from densekit.doctor.telling.samples import Draw, figure
from densekit.errors import DensekitError
from densekit.files import printable, write_text
from densekit.show.drawing import as_rgb

PICTURES = 24
"""Most pictures of a code, so that the page stays small; all findings are listed."""

LINES = 1000
"""Most findings of a code that are listed; JSON has all."""

_SIDE = 640  # pixels of a picture, which shows at half of that until it is opened
_CONTEXT = 2.0  # what is shown around a box, in its own sizes
_MOST_PIXELS = 2**26  # of an image that is shown
_RED, _YELLOW = (255, 30, 30), (255, 210, 0)
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .25em .8em; text-align: left; border-bottom: 1px solid #ddd }
.error { color: #b00020 } .warning { color: #9a6700 } .note { color: #57606a }
figure { display: inline-block; margin: .4em; vertical-align: top; max-width: 322px; font-size: 12px }
figcaption, li { overflow-wrap: anywhere } h2 { border-top: 1px solid #ddd; padding-top: .6em }
img { border: 1px solid #ccc; max-width: 320px; max-height: 320px } .zoom summary { list-style: none; cursor: zoom-in }
.zoom summary::-webkit-details-marker { display: none } .zoom[open] summary { cursor: zoom-out }
.zoom[open] img { max-width: min(90vw, 1000px); max-height: none; position: relative; z-index: 1 }
.bar { height: .4em; background: #5b8fc7 }
"""

Picture = npt.NDArray[np.uint8]
Sizes = Mapping[Path, tuple[int, int]]


def write_page(report: Report, path: Path) -> None:
    """Write the page whole or not at all."""
    write_text(path, page(report))


def page(report: Report) -> str:
    """The page's HTML; every text from the data is escaped."""
    title = f"densekit doctor: {html.escape(str(report.path))}"
    codes = Counter(d.code for d in report.defects)
    sizes = {e.path: e.size for split in report.splits for e in split.images if e.size is not None}
    named = _named(report)
    sections = [_section([d for d in named if d.code == code], sizes) for code in codes]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><p>{html.escape(summary(report))}</p>"
        f"{_contents(report.defects, codes)}{overview(report, _sample)}{''.join(sections)}</body></html>\n"
    )


def _named(report: Report) -> list[Defect]:
    """The defects, with files named from the folder that all of them lie in."""
    above = root(report)
    if not above:
        return report.defects
    short = [(d.file.removeprefix(above), d.message.replace(above, "")) for d in report.defects]
    return [dataclasses.replace(d, file=f, message=m) for d, (f, m) in zip(report.defects, short)]


def _sample(entry: ImageEntry, draw: Draw) -> str:
    picture = _read(entry.path, entry.size)
    return "" if picture is None else _jpeg(draw(picture))


def _contents(defects: Sequence[Defect], codes: Counter[str]) -> str:
    kinds = {d.code: d.kind for d in defects}
    rows = [
        f'<tr><td><a href="#{code}">{code}</a></td><td class="{kinds[code].severity}">{kinds[code].severity}</td>'
        f"<td>{count}</td><td>{html.escape(kinds[code].remedy)}</td></tr>"
        for code, count in codes.items()
    ]
    if not rows:
        return "<p>Nothing was found.</p>"
    return f"<table><tr><th>code</th><th>severity</th><th>count</th><th>remedy</th></tr>{''.join(rows)}</table>"


def _section(defects: Sequence[Defect], sizes: Sizes) -> str:
    kind, code = defects[0].kind, defects[0].code
    pictured = [d for d in defects if d.picture is not None]
    shown = [figure for d in pictured[:PICTURES] if (figure := _figure(d, sizes))]
    lines = [f"<li>{html.escape(_line(d))}</li>" for d in defects[:LINES]]
    more = f"<p>and {len(defects) - LINES} more</p>" if len(defects) > LINES else ""
    return (
        f'<h2 id="{code}" class="{kind.severity}">{code} ({kind.severity}, {len(defects)})</h2>'
        f"<p><b>Why it hurts:</b> {html.escape(kind.why)}.<br><b>What training does:</b> {html.escape(kind.training)}"
        f"<br><b>Remedy:</b> {html.escape(kind.remedy)}.</p>{''.join(shown)}"
        f"<details><summary>all {len(defects)}</summary><ul>{''.join(lines)}</ul>{more}</details>"
    )


def _line(defect: Defect) -> str:
    annotation = "" if defect.annotation_id is None else f" annotation {defect.annotation_id!r}:"
    return f"{printable(defect.file)}:{annotation} {printable(defect.message)}"


def _figure(defect: Defect, sizes: Sizes) -> str:
    """The defect's picture with its boxes, or nothing where the file can't be shown."""
    pictures = [_encoded(p, defect.boxes, sizes.get(p)) for p in (defect.picture, defect.other) if p is not None]
    shown = [picture for picture in pictures if picture]
    return figure(shown, _line(defect)) if shown else ""


def _encoded(path: Path, boxes: Sequence[Box], annotated: tuple[int, int] | None) -> str:
    picture = _read(path, annotated)
    return "" if picture is None else _jpeg(drawn_box(picture, boxes))


def _read(path: Path, annotated: tuple[int, int] | None) -> Picture | None:
    """An image file as RGB, turned as its annotated (width, height) is; None where it can't be shown."""
    try:
        header = None if path.suffix.lower() == ".npy" else read_header(read_bytes(path, _MOST_PIXELS))
        # The annotated size tells whether the boxes are in the pixels as stored or turned, unless it is wrong itself.
        size = None if annotated is None else annotated[::-1]
        size = size if header is not None and size in (header.size, header.turned_size) else None
        return as_rgb(stretched(read_pixels(path, size=size, max_pixels=_MOST_PIXELS)))
    except (DensekitError, OSError, ValueError, cv2.error, MemoryError):
        return None


def _jpeg(picture: Picture) -> str:
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return base64.b64encode(data.tobytes()).decode() if done else ""


def drawn_box(image: Picture, boxes: Sequence[Box]) -> Picture:
    """The part of an image around its first box, enlarged or shrunk, with the first box red and the others yellow."""
    good = [b for b in boxes if all(map(math.isfinite, b))]
    height, width = image.shape[:2]
    left, top, right, bottom = _window(good[0], width, height) if good else (0, 0, width, height)
    part = image[top:bottom, left:right]
    scale = min(_SIDE / max(part.shape[:2]), 8.0)
    size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    picture = np.ascontiguousarray(cv2.resize(part, size, interpolation=method))
    for i, (x, y, w, h) in reversed(list(enumerate(good))):
        ends = ((x - left) * scale, (y - top) * scale, (x + w - left) * scale, (y + h - top) * scale)
        x1, y1, x2, y2 = (round(min(max(v, -(2**14)), 2**14)) for v in ends)
        colour = _RED if i == 0 else _YELLOW
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, 2)
        if w <= 0 or h <= 0:  # nothing to see but a point or a line
            cv2.drawMarker(picture, (x1, y1), colour, cv2.MARKER_CROSS, 24, 2)
    return picture


def _window(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The box with its surroundings, at least a fifth of the image; all of it where the box is away."""
    x, y, w, h = box
    pad = max(_CONTEXT * abs(w) / 2, _CONTEXT * abs(h) / 2, max(width, height) / 10)
    left, top = math.floor(min(x, x + w) - pad), math.floor(min(y, y + h) - pad)
    right, bottom = math.ceil(max(x, x + w) + pad), math.ceil(max(y, y + h) + pad)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    return (left, top, right, bottom) if right - left > 1 and bottom - top > 1 else (0, 0, width, height)
