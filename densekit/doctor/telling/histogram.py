"""Histograms as SVG that stands in a page, one a split over the same steps."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from densekit.files import printable

_WIDTH, _HEIGHT, _MOST = 300, 90, 16


def histograms(title: str, values: Mapping[str, Sequence[float]]) -> str:
    """A histogram of each, side by side, over steps that double.

    Args:
        title: what is counted.
        values: by name, above 0.
    """
    edges = _edges([v for of_one in values.values() for v in of_one])
    figures = "".join(
        f"<figure>{_svg(_counts(of_one, edges), edges)}"
        f"<figcaption>{html.escape(printable(name))}: half of {len(of_one):,} up to "
        f"{sorted(of_one)[(len(of_one) - 1) // 2]:.0f}</figcaption></figure>"
        for name, of_one in values.items()
    )
    return f"<h3>{html.escape(title[:1].upper() + title[1:])}</h3>{figures}"


def _edges(values: Sequence[float]) -> list[float]:
    """Powers of two, or of their roots where that makes few steps, around all values."""
    low, high = math.log2(min(values)), math.log2(max(values))
    parts = next((p for p in (4, 2) if (high - low) * p < _MOST - 1), 1)
    first, last = math.floor(low * parts), math.floor(high * parts) + 1
    return [2 ** (step / parts) for step in range(first, last + 1)]


def _counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    counts, steps = [0] * (len(edges) - 1), len(edges) - 1
    first, width = math.log2(edges[0]), math.log2(edges[1]) - math.log2(edges[0])
    for value in values:
        counts[min(steps - 1, max(0, math.floor((math.log2(value) - first) / width + 1e-9)))] += 1
    return counts


def _svg(counts: Sequence[int], edges: Sequence[float]) -> str:
    width, most = _WIDTH / len(counts), max(counts)
    bars = "".join(
        f'<rect x="{i * width + 1:.1f}" y="{_HEIGHT * (1 - count / most):.1f}" width="{max(1, width - 2):.1f}" '
        f'height="{_HEIGHT * count / most:.1f}" fill="#5b8fc7"><title>{edges[i]:.0f} to {edges[i + 1]:.0f}: '
        f"{count:,}</title></rect>"
        for i, count in enumerate(counts)
    )
    every = -(-len(edges) // 7)
    marks = "".join(
        f'<text x="{i * width:.1f}" y="{_HEIGHT + 13}" font-size="10" fill="#555">{edge:.0f}</text>'
        for i, edge in enumerate(edges)
        if i % every == 0
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH + 24} {_HEIGHT + 18}" width="{_WIDTH + 24}" height="{_HEIGHT + 18}" role="img">'
        f'<line x1="0" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}" stroke="#999"/>{bars}{marks}</svg>'
    )
