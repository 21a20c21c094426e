"""Which images of a set may show the same: a short description of each by its edges, and the nearest ones of each.

The description is that of histograms of oriented gradients (Dalal and Triggs 2005) on the logarithm of a small grey
picture: exposure and gain fall out of it, and small shifts change it little. It is for candidates alone; what they have
in common is looked at closely in ``likeness.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_CELLS, _BINS = 8, 6  # rows and columns of histograms, and directions of each
_DARKEST = 8.0  # grey levels added before the logarithm, so that noise in the dark is no edge
_FAINT = 0.02  # edges below this are next to none
_OWN, _OWN_ALIKE = 3, 0.35  # nearest ones by what sets an image apart from the others, and how near
_WHOLE, _WHOLE_ALIKE = 2, 0.9  # nearest ones by all that it shows, and how near
_EXACT = 4096  # images up to which each is compared with all
_PROBES = 3  # cells in which a description is looked for, of more
_BLOCK = 1024


def outlines(pictures: npt.NDArray[np.uint8]) -> Floats:
    """[n, S, S] grey -> [n, d] descriptions of length one."""
    blocks = [_described(pictures[i : i + _BLOCK]) for i in range(0, len(pictures), _BLOCK)]
    return np.concatenate(blocks) if blocks else np.zeros((0, _CELLS * _CELLS * _BINS), np.float32)


def _described(pictures: npt.NDArray[np.uint8]) -> Floats:
    light = np.log(pictures.astype(np.float32) + _DARKEST)
    padded = np.pad(light, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across, down = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    strength = np.hypot(across, down)
    place = np.arctan2(down, across) / (2 * np.pi) * _BINS % _BINS
    pool = _pooling(pictures.shape[1])
    cells = np.empty((len(pictures), _BINS, _CELLS, _CELLS), np.float32)
    for direction in range(_BINS):
        distance = np.abs((place - direction + _BINS / 2) % _BINS - _BINS / 2)
        cells[:, direction] = pool @ (strength * np.clip(1 - distance, 0, None)) @ pool.T
    energy = np.pad((cells**2).sum(1), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    around = sum(energy[:, y : y + _CELLS, x : x + _CELLS] for y in range(3) for x in range(3)) / 9
    cells = np.minimum(cells / np.sqrt(around + _FAINT**2)[:, None], 0.8)
    return _unit(cells.reshape(len(cells), -1))


def _pooling(side: int) -> Floats:
    """[CELLS, side] weights of the rows of a picture in the rows of cells, wider than a cell: shifts change little."""
    step = side / _CELLS
    centres = (np.arange(_CELLS) + 0.5) * step - 0.5
    weights = np.exp(-(((np.arange(side) - centres[:, None]) / (0.6 * step)) ** 2) / 2)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6), np.float32)


def candidates(described: Floats) -> list[tuple[int, int]]:
    """Pairs of positions (first below second) that may show the same, a few for each image.

    What all images share (a round field of view, a ribcage) is taken out first, or it would hide what is alike; but a
    set may also show one scene throughout, so the nearest ones as a whole are taken too.
    """
    own = _unit(described - described.mean(0)) if len(described) > 1 else described
    by_own = _nearest(own, own, _OWN, _OWN_ALIKE)
    return sorted(by_own | _nearest(described, own, _WHOLE, _WHOLE_ALIKE))


def _nearest(described: Floats, own: Floats, most: int, least: float) -> set[tuple[int, int]]:
    """Pairs of each image and its nearest ones, ``most`` at most, that are at least so near."""
    parts = []
    for rows, others in _neighbourhoods(own):
        alike = described[rows] @ described[others].T
        alike[rows[:, None] == others[None]] = -1
        best = np.argpartition(-alike, min(most, len(others)) - 1, axis=1)[:, :most]
        values = np.take_along_axis(alike, best, 1)
        row, column = np.nonzero(values >= least)
        parts.append(np.stack((rows[row], others[best[row, column]], -values[row, column]), 1))
    found = np.concatenate(parts)
    found = found[np.lexsort((found[:, 2], found[:, 0]))]  # of an image the nearest first, from all cells
    starts = np.searchsorted(found[:, 0], found[:, 0])
    found = found[np.arange(len(found)) - starts < most][:, :2].astype(np.int64)
    found.sort(axis=1)
    return set(map(tuple, found.tolist()))


def _neighbourhoods(described: Floats) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Positions, and those among which their nearest ones are looked for."""
    count = len(described)
    everyone = np.arange(count)
    if count <= _EXACT:
        for start in range(0, count, _BLOCK):
            yield everyone[start : start + _BLOCK], everyone
        return
    # Cells around images drawn by chance: the work grows with the 1.5th power of their number.
    centres = described[np.random.default_rng(0).choice(count, round(count**0.5), replace=False)]
    probes = np.empty((count, _PROBES), np.int64)
    for start in range(0, count, _BLOCK):
        near = np.argpartition(-(described[start : start + _BLOCK] @ centres.T), _PROBES, axis=1)[:, :_PROBES]
        probes[start : start + _BLOCK] = near
    for cell in range(len(centres)):
        inside = np.flatnonzero((probes == cell).any(1))
        for start in range(0, len(inside), _BLOCK):
            yield inside[start : start + _BLOCK], inside
