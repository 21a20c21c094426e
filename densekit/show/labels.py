"""Where the words at boxes stand: beside their box, not on one another, on as little of other boxes as can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Rectangle = tuple[int, int, int, int]
"""(left, top, right, bottom)."""


def place_labels(
    boxes: Sequence[Rectangle], sizes: Sequence[tuple[int, int]], picture: tuple[int, int]
) -> list[Rectangle]:
    """Where each label goes.

    Args:
        boxes: that the labels belong to, the most important first: it gets its place first.
        sizes: (width, height) of each label.
        picture: (height, width) that the labels stay inside of.

    Returns:
        The place of each label: of those at its box the first that covers no other label and least of other boxes.
    """
    frames = np.array(boxes, np.float64).reshape(-1, 4)
    areas = np.maximum((frames[:, 2] - frames[:, 0]) * (frames[:, 3] - frames[:, 1]), 1)
    placed = np.zeros((len(frames), 4))
    found: list[Rectangle] = []
    for number, (box, size) in enumerate(zip(boxes, sizes)):
        places = [_inside(place, picture) for place in _places(box, size)]
        candidates = np.array(places, np.float64)
        # What covers other labels counts most, then what it buries of other boxes.
        buried = _shared(candidates, frames) / areas
        buried[:, number] = 0
        covered = _shared(candidates, placed[:number]).sum(1) / max(1, size[0] * size[1])
        found.append(places[int(np.argmin(100 * covered + buried.sum(1)))])
        placed[number] = found[-1]
    return found


def _places(box: Rectangle, size: tuple[int, int]) -> Iterator[Rectangle]:
    """The places at a box, the usual one first: above, below, inside its corners, right and left of it."""
    (left, top, right, bottom), (wide, tall) = box, size
    corners = (
        *((left, top - tall), (left, bottom), (right - wide, top - tall), (right - wide, bottom)),
        *((left, top), (left, bottom - tall), (right - wide, top), (right - wide, bottom - tall)),
        *((right, top), (left - wide, top), (right, bottom - tall), (left - wide, bottom - tall)),
    )
    for x, y in corners:
        yield x, y, x + wide, y + tall


def _inside(place: Rectangle, picture: tuple[int, int]) -> Rectangle:
    wide, tall = place[2] - place[0], place[3] - place[1]
    left = max(0, min(place[0], picture[1] - wide))
    top = max(0, min(place[1], picture[0] - tall))
    return left, top, left + wide, top + tall


def _shared(places: Floats, others: Floats) -> Floats:
    """[m, n] area that each rectangle shares with each of the others."""
    wide = np.minimum(places[:, None, 2], others[:, 2]) - np.maximum(places[:, None, 0], others[:, 0])
    tall = np.minimum(places[:, None, 3], others[:, 3]) - np.maximum(places[:, None, 1], others[:, 1])
    shared: Floats = np.maximum(wide, 0) * np.maximum(tall, 0)
    return shared
