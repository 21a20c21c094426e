"""Where the words at boxes stand: beside their box, not on one another, on as little of other boxes as can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

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
    placed = np.zeros((0, 4))
    found: list[Rectangle] = []
    for number, (box, size) in enumerate(zip(boxes, sizes)):
        others = np.delete(frames, number, 0)
        places = [_inside(place, picture) for place in _places(box, size)]
        costs = [_cost(place, placed, others) for place in places]
        found.append(places[int(np.argmin(costs))])
        placed = np.concatenate([placed, [found[-1]]])
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


def _cost(place: Rectangle, placed: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> float:
    """Share of the label that covers other labels, which counts most, and of other boxes that it buries."""
    own = (place[2] - place[0]) * (place[3] - place[1])
    areas = np.maximum((others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1]), 1)
    return float(100 * _shared(place, placed).sum() / own + (_shared(place, others) / areas).sum())


def _shared(place: Rectangle, others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[n] area that a rectangle shares with each of the others."""
    wide = np.minimum(place[2], others[:, 2]) - np.maximum(place[0], others[:, 0])
    tall = np.minimum(place[3], others[:, 3]) - np.maximum(place[1], others[:, 1])
    shared: npt.NDArray[np.float64] = np.maximum(wide, 0) * np.maximum(tall, 0)
    return shared
