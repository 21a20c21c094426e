"""Charts as SVG and HTML text that needs no other file; names are escaped, colours follow the page's own.

A page that shows them brings ``STYLE`` and ``SCRIPT``, by which a pointer over a chart reads off its values.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from densekit.show.drawing import colours

Points = Sequence[tuple[float, float]]

STYLE = """
svg.chart { width: 100%; max-width: 640px; height: auto; touch-action: pan-y } svg.chart text { fill: var(--soft);
font-size: 11px } .chart .grid { stroke: var(--line) } .chart polyline { fill: none; stroke-width: 1.6 }
.chart .ideal { stroke-dasharray: 4 4 } .legend span { margin-right: 1em; white-space: nowrap; font-size: 12px }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .3em } .read { font-size: 12px;
min-height: 1.4em; color: var(--soft) } .bars td { padding: .1em .6em } .bars svg { display: block }
.heat td, .heat th { padding: .2em .45em; font-size: 12px; text-align: center; max-width: 9em; overflow-wrap: anywhere }
.heat summary { list-style: none; cursor: pointer } .heat ul { text-align: left; padding-left: 1.2em }
"""

SCRIPT = """
for (const chart of document.querySelectorAll('svg.chart')) {
  const read = chart.parentElement.querySelector('.read'), lines = [...chart.querySelectorAll('polyline')];
  const known = lines.map(l => l.dataset.values.split(' ').map(p => p.split(',').map(Number)));
  chart.addEventListener('pointermove', event => {
    const box = chart.getBoundingClientRect(), [left, right, x0, x1] = chart.dataset.axis.split(' ').map(Number);
    const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
    const at = x0 + (x - left) / (right - left) * (x1 - x0);
    const words = known.map((points, i) => {
      const near = points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a);
      return lines[i].dataset.name + ' ' + near[1] + ' at ' + near[0];
    });
    read.textContent = words.join(', ');
  });
  chart.addEventListener('pointerleave', () => { read.textContent = ''; });
}
"""

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 260, 52, 34, 8
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
    y0, y1 = ranges[1] or _reach(p[1] for points in known.values() for p in points)

    def place(x: float, y: float) -> str:
        across_at = _LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - 8)
        up_at = _HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (_HEIGHT - _BOTTOM - _TOP)
        return f"{across_at:.1f},{min(max(up_at, 0), _HEIGHT):.1f}"

    parts = [_grid(x0, x1, y0, y1, across)]
    if ideal:
        parts.append(f'<path class="grid ideal" d="M{" L".join(place(*p) for p in ideal)}" fill="none"/>')
    palette = colours(len(known))
    for colour, (name, points) in zip(palette, known.items()):
        values = " ".join(f"{x:.6g},{y:.4g}" for x, y in points)
        parts.append(
            f'<polyline stroke="{_css(colour)}" points="{" ".join(place(*p) for p in points)}" '
            f'data-name="{html.escape(name)}" data-values="{values}"/>'
        )
    legend = "".join(
        f'<span><i style="background:{_css(colour)}"></i>{html.escape(name)}</span>'
        for colour, name in zip(palette, known)
    )
    return (
        f'<div><svg class="chart" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" data-axis="{_LEFT} {_WIDTH - 8} {x0:.9g} '
        f'{x1:.9g}">{"".join(parts)}</svg><div class="read"></div><div class="legend">{legend}</div></div>'
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
        svg = f'<svg width="220" height="16" viewBox="0 0 220 16">{marks}</svg>'
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
            cells.append(f'<td title="{count:g}" style="background:rgb(91 143 199 / {share:.2f})">{inner}</td>')
        lines.append(f"<tr><th>{html.escape(name)}</th>{''.join(cells)}</tr>")
    return f'<table class="heat"><tr><th>true \\ predicted</th>{head}</tr>{"".join(lines)}</table>'


def _grid(x0: float, x1: float, y0: float, y1: float, across: str) -> str:
    parts = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _LEFT + part * (_WIDTH - _LEFT - 8), _HEIGHT - _BOTTOM - part * (_HEIGHT - _BOTTOM - _TOP)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - 8}M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{y0 + part * (y1 - y0):.3g}</text>')
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 14}" text-anchor="middle">{x0 + part * (x1 - x0):.4g}</text>'
        )
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{html.escape(across)}</text>')
    return "".join(parts)


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
