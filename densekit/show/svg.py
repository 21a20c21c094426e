"""Charts as SVG and HTML text that needs no other file; names are escaped, colours follow the page's own.

A page that shows them brings ``STYLE``, and ``chart_script.SCRIPT`` by which values are read off and ranges enlarged.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from densekit.show.drawing import colours

Points = Sequence[tuple[float, float]]

STYLE = """
svg.chart { display: block; width: 100%; max-width: 640px; height: auto; touch-action: pan-y pinch-zoom;
cursor: crosshair } svg.chart text { fill: var(--soft); font-size: 13px; user-select: none }
.chart .grid { stroke: var(--line) } .chart polyline { fill: none; stroke-width: 1.6;
stroke-linecap: round } .chart .dot { stroke-width: 7 } .chart .band { fill: var(--bar); opacity: .35 }
.chart .ideal { stroke: var(--soft); stroke-dasharray: 4 4 } .legend span { display: inline-block;
margin-right: 1em; font-size: 12px; overflow-wrap: anywhere } .legend i { display: inline-block; width: .8em;
height: .8em; margin-right: .3em } .read { font-size: 12px; min-height: 1.5em; color: var(--soft) }
.bars td { padding: .1em .6em; vertical-align: middle } .bars td:first-child { min-width: 6em;
overflow-wrap: anywhere } .bars svg { display: block } .heat td, .heat th { min-width: 2.2em;
padding: .2em .45em; font-size: 12px; text-align: center; max-width: 9em; overflow-wrap: break-word } .heat summary {
list-style: none; cursor: pointer; text-decoration: underline dotted; white-space: nowrap }
.heat ul { text-align: left; padding-left: 1.2em }
@media (max-width: 40em) { svg.chart text { font-size: 19px }
.bars svg { width: 110px } .bars td { padding: .1em .3em } }
@media print { .chart .band, .read, .chart ~ button { display: none } }
"""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 280, 74, 618, 10, 228
_MOST_POINTS = 400


def chart(
    curves: Mapping[str, Points],
    *,
    across: str,
    ranges: tuple[tuple[float, float] | None, tuple[float, float] | None] = (None, None),
    ideal: Points = (),
) -> str:
    """Curves over one axis, with a legend.

    Args:
        curves: points by name; names may be anything. Empty ones are left out.
        across: what the horizontal axis counts.
        ranges: of both axes; None: what the points reach.
        ideal: a dashed line beside them.
    """
    known = {name: _thinned(points) for name, points in curves.items() if len(points)}
    if not known:
        return ""
    x0, x1 = ranges[0] or _reach(p[0] for points in known.values() for p in points)
    y0, y1 = ranges[1] or _rounded(_reach(p[1] for points in known.values() for p in points))

    def place(x: float, y: float) -> str:
        across_at = _LEFT + (x - x0) / (x1 - x0) * (_RIGHT - _LEFT)
        up_at = _BOTTOM - (y - y0) / (y1 - y0) * (_BOTTOM - _TOP)
        return f"{across_at:.1f},{min(max(up_at, 0), _HEIGHT):.1f}"

    parts = [_grid(x0, x1, y0, y1, across)]
    if ideal:
        parts.append(f'<path class="ideal" d="M{" L".join(place(*p) for p in ideal)}" fill="none"/>')
    palette = colours(len(known))
    for colour, (name, points) in zip(palette, known.items()):
        values = " ".join(f"{x:.6g},{y:.4g}" for x, y in points)
        drawn = " ".join(place(*p) for p in (points * 2 if len(points) == 1 else points))
        shape = "dot" if len(points) == 1 else "line"
        parts.append(
            f'<polyline class="{shape}" stroke="{_css(colour)}" points="{drawn}" '
            f'data-name="{html.escape(name)}" data-values="{values}"/>'
        )
    legend = "".join(
        f'<span><i style="background:{_css(colour)}"></i>{html.escape(name)}</span>'
        for colour, name in zip(palette, known)
    )
    return (
        f'<div><svg class="chart" role="img" tabindex="0" aria-label="{html.escape(", ".join(known))} over '
        f'{html.escape(across)}" viewBox="0 0 {_WIDTH} {_HEIGHT}" data-place="{_LEFT} {_RIGHT} {_TOP} {_BOTTOM}" '
        f'data-axes="{x0:.9g} {x1:.9g} {y0:.9g} {y1:.9g}">{"".join(parts)}</svg><div class="read"></div>'
        f'<button type="button" hidden>whole range</button><div class="legend">{legend}</div></div>'
    )


def bars(rows: Sequence[tuple[str, float | None, Sequence[float] | None]], *, most: float = 1.0) -> str:
    """A bar a row, with its interval as a line where there is one.

    Args:
        rows: name, value and interval; a value that is None is a dash.
        most: value of a full bar.
    """
    lines = []
    for name, value, between in rows:
        if value is None:
            lines.append(f"<tr><td>{html.escape(name)}</td><td></td><td>-</td></tr>")
            continue
        marks = f'<rect width="{_share(value, most):.1f}" height="12" y="2" fill="var(--bar)"/>'
        words = f"{value:.3f}"
        if between is not None:
            low, high = (_share(end, most) for end in between)
            marks += f'<path d="M{low:.1f} 8H{high:.1f}M{low:.1f} 4v8M{high:.1f} 4v8" stroke="currentColor"/>'
            words += f" ({between[0]:.3f} to {between[1]:.3f})"
        svg = f'<svg width="220" height="16" viewBox="0 0 220 16" preserveAspectRatio="none">{marks}</svg>'
        lines.append(f"<tr><td>{html.escape(name)}</td><td>{svg}</td><td>{words}</td></tr>")
    return f'<table class="bars">{"".join(lines)}</table>'


def heat(
    matrix: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], behind: Callable[[int, int], str]
) -> str:
    """A table whose cells are shaded by their share of the row.

    Args:
        matrix: counts.
        rows: names of what is true.
        columns: names of what was predicted.
        behind: HTML that opens behind a cell; empty for none.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = []
    for i, (name, counts) in enumerate(zip(rows, matrix)):
        total = sum(counts)
        cells = []
        for j, count in enumerate(counts):
            share = count / total if total else 0.0
            words = f"{100 * share:.0f} %" if count else ""
            more = behind(i, j) if count else ""
            inner = f"<details><summary>{words}</summary>{more}</details>" if more else words
            cells.append(f'<td title="{count:g}" style="background:rgb(var(--heat) / {share:.2f})">{inner}</td>')
        lines.append(f"<tr><th>{html.escape(name)}</th>{''.join(cells)}</tr>")
    return f'<table class="heat"><tr><th>true \\ predicted</th>{head}</tr>{"".join(lines)}</table>'


def _grid(x0: float, x1: float, y0: float, y1: float, across: str) -> str:
    parts = [f'<rect class="band" x="{_LEFT}" y="{_TOP}" width="0" height="{_BOTTOM - _TOP}"/>']
    for value in _ticks(y0, y1):
        y = _BOTTOM - (value - y0) / (y1 - y0) * (_BOTTOM - _TOP)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        where = f'class="y" data-at="{value:.9g}" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end"'
        parts.append(f"<text {where}>{value:.4g}</text>")
    for value in _ticks(x0, x1):
        x = _LEFT + (value - x0) / (x1 - x0) * (_RIGHT - _LEFT)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>')
        where = f'class="x" data-at="{value:.9g}" x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="middle"'
        parts.append(f"<text {where}>{value:.6g}</text>")
    middle = (_LEFT + _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(across)}</text>')
    return "".join(parts)


def _spacing(low: float, high: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that cuts a range into at most five."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(part * power for part in (1, 2, 2.5, 5, 10) if part * power >= rough * (1 - 1e-9))


def _ticks(low: float, high: float) -> list[float]:
    """Round values within a range."""
    step = _spacing(low, high)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _rounded(ends: tuple[float, float]) -> tuple[float, float]:
    """A range that begins and ends at round values."""
    step = _spacing(*ends)
    return math.floor(ends[0] / step + 1e-9) * step, math.ceil(ends[1] / step - 1e-9) * step


def _thinned(points: Points) -> list[tuple[float, float]]:
    """At most so many points, the last one among them."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    step = max(1, math.ceil(len(finite) / _MOST_POINTS))
    return finite[::-1][::step][::-1]


def _reach(values: Iterable[float]) -> tuple[float, float]:
    known = list(values)
    low, high = min(known), max(known)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _share(value: float, most: float) -> float:
    return 220 * min(max(value / most, 0.0), 1.0)


def _css(colour: tuple[int, int, int]) -> str:
    return f"rgb({colour[0]} {colour[1]} {colour[2]})"
