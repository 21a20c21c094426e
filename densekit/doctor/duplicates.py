"""Images that occur twice, byte by byte or to the eye, within a set and across its splits.

Images are compared by the correlation of small grey pictures: a coarse one finds candidates among all earlier images
(one matrix product), a finer one decides.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from densekit.doctor.defects import Defect
from densekit.doctor.image_checks import SIDE, Look

NEAR = 0.985
"""Correlation from which on two images are one that was saved anew, resized or retouched (a JPEG of quality 20 of half
the size keeps 0.995)."""

SIMILAR = 0.95
"""Correlation from which on two images show the same scene: the one field of BCCD that was photographed twice has
0.976, the next pair 0.65; the most alike of 334 images of different nuclei have 0.45."""

SMALLEST_SIDE = 48
"""Smaller images are compared byte by byte alone: two digits of 28 pixels may correlate by 0.98 and be two digits."""

_COARSE = 8  # side of the pictures by which candidates are found
_COARSE_ALIKE = 0.9
_CANDIDATES = 4  # earlier images that are looked at closely for each image
_FLATTEST = 2.0  # standard deviation in grey levels below which a picture shows nothing to compare
_COLOUR = 12.0  # grey levels that the mean colours of one image may differ by
_BLOCK = 512

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class _Copy:
    """One readable image of one split."""

    split: str
    look: Look


def identical_images(splits: Sequence[tuple[str, list[Look]]]) -> Iterator[Defect]:
    """Images that an earlier one equals, or all but equals; each is told once."""
    copies = [_Copy(name, look) for name, looks in splits for look in looks if look.digest and look.size is not None]
    groups: dict[bytes, list[_Copy]] = {}
    for copy in copies:
        group = groups.setdefault(copy.look.digest, [])
        if group:
            yield _identical(copy, group)
        group.append(copy)
    singles = [group[0] for group in groups.values() if _comparable(group[0].look)]
    for copy, others in _alike(singles):
        yield _near(copy, others)


def _identical(copy: _Copy, group: Sequence[_Copy]) -> Defect:
    other = next((c for c in group if c.split != copy.split), group[0])
    same = os.path.realpath(other.look.path) == os.path.realpath(copy.look.path)
    return _defect("identical", copy, other, "it is the same file as" if same else "it has the same bytes as")


def _near(copy: _Copy, others: Sequence[tuple[_Copy, float]]) -> Defect:
    other, alike = next(((c, a) for c, a in others if c.split != copy.split), others[0])
    what = "near_identical" if alike >= NEAR else "similar"
    return _defect(what, copy, other, f"its small picture correlates by {alike:.3f} with that of")


def _defect(how: str, copy: _Copy, other: _Copy, words: str) -> Defect:
    leaks = copy.split != other.split
    where = f" of {other.split or 'another set'}" if leaks else ""
    file = str(copy.look.path)
    message = f"{words} {other.look.path}{where}"
    return Defect(
        f"leak_{how}" if leaks else f"image_{how}", file, message, picture=copy.look.path, other=other.look.path
    )


def _comparable(look: Look) -> bool:
    """Whether an image is large and lively enough to be compared by its looks."""
    if look.small is None or look.size is None or min(look.size) < SMALLEST_SIDE:
        return False
    return float(look.small.std()) >= _FLATTEST


def _alike(copies: Sequence[_Copy]) -> Iterator[tuple[_Copy, list[tuple[_Copy, float]]]]:
    """Each image that looks like earlier ones, with these, the most alike first."""
    if len(copies) < 2:
        return
    pixels = np.stack([c.look.small for c in copies if c.look.small is not None]).astype(np.float32)
    colours = np.array([c.look.mean for c in copies], np.float32)
    step = SIDE // _COARSE
    coarse = _normalised(pixels.reshape(-1, _COARSE, step, _COARSE, step).mean((2, 4)))
    for start in range(0, len(copies), _BLOCK):
        rows = coarse[start : start + _BLOCK]
        alike = rows @ coarse[: start + len(rows)].T
        alike[np.arange(alike.shape[1])[None] >= start + np.arange(len(rows))[:, None]] = -1
        for row in np.flatnonzero(alike.max(1) >= _COARSE_ALIKE).tolist():
            best = np.argsort(alike[row])[::-1][:_CANDIDATES]
            best = best[np.abs(colours[best] - colours[start + row]).max(1) <= _COLOUR]
            fine = _normalised(pixels[[start + row, *best]])
            found = sorted(zip((fine[1:] @ fine[0]).tolist(), best.tolist()), reverse=True)
            near = [(copies[i], float(value)) for value, i in found if value >= SIMILAR]
            if near:
                yield copies[start + row], near


def _normalised(pictures: Floats) -> Floats:
    """[n, h, w] -> [n, h * w] of mean zero and length one, so that products are correlations."""
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6))
