"""What two pictures have in common: patches of one that are found near their place in the other.

A patch is found by its correlation, so that exposure and gain do not matter; patches count where they moved together,
as those of a camera that was held again do. Two pictures of the same kind (two retinas, two chests) share their layout,
but not what fills it.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import numpy.typing as npt

PICTURE = 128
"""Rows and columns of the grey pictures that are compared."""

_PATCH = 16  # rows and columns of a patch
_SIDE = PICTURE // _PATCH
PATCHES = _SIDE * _SIDE
_REACH, _NEAR = 20, 3  # how far all patches may have moved, and each of them beside the others
_FLAT, _FOUND = 2.5, 0.8  # standard deviation in grey levels from which on a patch shows something, and correlation
# from which on it is found again
_FINE, _FINE_FLAT, _FINE_FOUND = 3.0, 1.5, 0.9  # the same where detail alone is compared, finer than so many rows
_CORNER = 0.1  # edges across the main direction of a patch, as a part of those along it, for it to have a place
_TOGETHER = 2.0  # that patches which moved together may differ by
_FIRST, _VOTES = 16, 0.25  # patches that are looked for everywhere, and the part of them that must have moved together
_FEWEST = 12  # patches that must be found
_FEWEST_LIVELY = 8  # patches that must show something where a picture was saved anew
_LARGE = 256  # rows or columns of a file from which on what a JPEG loses is averaged away in its picture
_LOST, _LOST_MOST, _LOST_LIGHT, _LOST_ALIKE = 3.5, 14.0, 3.0, 0.15  # by saving anew, at that size: root mean square of
# each patch's grey levels, most of any, mean of all, and what is missing to a correlation of 1

Picture = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Shared:
    """Patches of a picture.

    Attributes:
        asked: [patches] that show something, and would lie in the other picture too.
        found: [patches] of these, that are there.
        move: how far (x, y) they moved.
    """

    asked: Flags
    found: Flags
    move: tuple[int, int] = (0, 0)

    @property
    def in_place(self) -> bool:
        """Whether they lie in the same place of both pictures."""
        return max(map(abs, self.move)) <= _TOGETHER

    def part(self, without: Flags | None = None) -> float:
        """Part of the patches that were found, ``without`` some; 0 where too few are left to tell."""
        asked = self.asked if without is None else self.asked & ~without
        found = int(self.found[asked].sum())
        return found / int(asked.sum()) if found >= _FEWEST else 0.0


def shared(picture: Picture, other: Picture, *, detail: bool = False) -> Shared:
    """Look for the patches of a picture in another one, moved as a whole.

    Args:
        picture: [PICTURE, PICTURE].
        other: [PICTURE, PICTURE].
        detail: compare fine detail alone, and strictly: for pictures whose shapes and shades are always alike.
    """
    a, b = (_fine(p) if detail else p.astype(np.float32) for p in (picture, other))
    flat, enough = (_FINE_FLAT, _FINE_FOUND) if detail else (_FLAT, _FOUND)
    lively = (a.reshape(_SIDE, _PATCH, _SIDE, _PATCH).std((1, 3)) >= flat).ravel()
    lively &= detail | _has_corners(a)
    asked, found = np.zeros_like(lively), np.zeros_like(lively)
    move = _common_move(a, b, np.flatnonzero(lively), enough)
    if move is None:
        return Shared(lively, found)
    for place in np.flatnonzero(lively).tolist():
        row, column = divmod(place, _SIDE)
        y, x = row * _PATCH + move[1], column * _PATCH + move[0]
        if min(y, x) >= 0 and max(y, x) <= PICTURE - _PATCH:
            asked[place] = True
            score, _ = _look_for(a, b, place, move, _NEAR)
            found[place] = score >= enough
    return Shared(asked, found, move)


def _fine(picture: Picture) -> Floats:
    grey = picture.astype(np.float32)
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), _FINE), np.float32)


def _has_corners(a: Floats) -> Flags:
    """[patches] whose edges run in several directions (Shi and Tomasi 1994): along a straight one all places match."""
    across, down = (cv2.Sobel(a, cv2.CV_32F, dx, 1 - dx) for dx in (1, 0))
    pairs = ((across, across), (down, down), (across, down))
    xx, yy, xy = ((p * q).reshape(_SIDE, _PATCH, _SIDE, _PATCH).mean((1, 3)) for p, q in pairs)
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    return np.asarray(middle - spread >= _CORNER * (middle + spread)).ravel()


def _common_move(a: Floats, b: Floats, places: npt.NDArray[np.int64], enough: float) -> tuple[int, int] | None:
    """How far (x, y) most of some patches moved; None where they did not move together."""
    some = places[np.linspace(0, len(places) - 1, min(_FIRST, len(places))).astype(int)] if len(places) else places
    votes = [
        move for place in some.tolist() for score, move in [_look_for(a, b, place, (0, 0), _REACH)] if score >= enough
    ]
    if len(votes) < max(2, _VOTES * len(some)):
        return None
    moves = np.array(votes)
    together = (np.abs(moves[:, None] - moves[None]).max(2) <= _TOGETHER).sum(1)
    best = int(together.argmax())
    return (int(moves[best, 0]), int(moves[best, 1])) if together[best] >= max(2, _VOTES * len(some)) else None


def _look_for(a: Floats, b: Floats, place: int, move: tuple[int, int], reach: int) -> tuple[float, tuple[int, int]]:
    """Best correlation of a patch around its moved place in the other picture, and how far (x, y) it moved."""
    row, column = divmod(place, _SIDE)
    y, x = row * _PATCH, column * _PATCH
    top, left = max(0, y + move[1] - reach), max(0, x + move[0] - reach)
    window = b[top : y + move[1] + _PATCH + reach, left : x + move[0] + _PATCH + reach]
    scores = cv2.matchTemplate(window, a[y : y + _PATCH, x : x + _PATCH], cv2.TM_CCOEFF_NORMED)
    _, best, _, (right, down) = cv2.minMaxLoc(scores)
    return best, (left + right - x, top + down - y)


def saved_anew(picture: Picture, other: Picture, side: int) -> bool:
    """Whether two pictures differ by no more than another quality, format or size of the file makes of one.

    They are compared at half their size, where most of what a JPEG loses has gone.

    Args:
        picture: [PICTURE, PICTURE].
        other: [PICTURE, PICTURE].
        side: rows or columns of the smaller file: the smaller, the more of it is lost.
    """
    scale = min(max(_LARGE / side, 1.0), 3.0)
    a, b = (_halved(p) for p in (picture, other))
    difference = a - b
    lost = float(np.sqrt((difference**2).mean((1, 3))).max())
    if lost > scale * _LOST or float(np.abs(difference).max()) > scale * _LOST_MOST:
        return False
    a, b = (p - p.mean((1, 3), keepdims=True) for p in (a, b))
    lengths = [np.sqrt((p**2).mean((1, 3))) for p in (a, b)]
    lively = np.minimum(*lengths) >= scale * _LOST  # in fainter patches what was lost is most of the difference
    if lively.sum() < _FEWEST_LIVELY or abs(float(difference.mean())) > _LOST_LIGHT:
        return False
    alike = (a * b).mean((1, 3))[lively] / (lengths[0] * lengths[1])[lively]
    return bool(alike.min() >= 1 - scale * _LOST_ALIKE)


def _halved(picture: Picture) -> Floats:
    """[PICTURE, PICTURE] -> [SIDE, PATCH / 2, SIDE, PATCH / 2]."""
    half = picture.astype(np.float32).reshape(PICTURE // 2, 2, PICTURE // 2, 2).mean((1, 3))
    return np.asarray(half.reshape(_SIDE, _PATCH // 2, _SIDE, _PATCH // 2), np.float32)
