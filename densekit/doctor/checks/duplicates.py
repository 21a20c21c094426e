"""The same image twice, byte by byte or to the eye, within a split and across splits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densekit.doctor.pictures import THUMBNAIL, Picture
from densekit.doctor.report import Defect
from densekit.doctor.sources import Split

ALIKE = 0.95
"""Correlation of two small grey pictures from which on their images are nearly identical. Measured: the one field of
BCCD that was photographed twice has 0.976, the next pair 0.65; the best of 334 different nuclei images have 0.45."""

SMALLEST_SIDE = 48
"""Smaller images are compared byte by byte alone: two digits of 28 pixels may correlate by 0.98 and be two digits."""

_COARSE = 8  # side of the still smaller pictures by which candidates are found
_COARSE_ALIKE = 0.9
_CANDIDATES = 4  # earlier images that are looked at closely for each image
_FLATTEST = 1.5  # standard deviation in grey levels below which a picture shows nothing to compare
_BLOCK = 512

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class _Copy:
    """One readable image of one split."""

    name: str
    split: int
    picture: Picture


def check_duplicates(splits: Sequence[Split], pictures: Mapping[Path, Picture]) -> Iterator[tuple[int, Defect]]:
    """Defects with the number of the split that they belong to; each image is told once at most."""
    copies = []
    for number, split in enumerate(splits):
        files = {item.path: item.name for item in split.items if item.path is not None}
        copies += [_Copy(name, number, pictures[p]) for p, name in files.items() if pictures[p].digest]
    names = [split.name or str(split.source) for split in splits]
    first_of: dict[bytes, list[_Copy]] = {}
    for copy in copies:
        group = first_of.setdefault(copy.picture.digest, [])
        if group:
            yield copy.split, _identical(copy, group, names)
        group.append(copy)
    singles = [group[0] for group in first_of.values() if _comparable(group[0].picture)]
    for copy, other in _near(singles):
        yield copy.split, _near_identical(copy, other, names)


def _identical(copy: _Copy, group: Sequence[_Copy], names: Sequence[str]) -> Defect:
    elsewhere = next((c for c in group if c.split != copy.split), None)
    if elsewhere is None:
        return _defect("image-identical", copy, group[0], f"has the same bytes as {group[0].name}")
    same = os.path.realpath(elsewhere.picture.path) == os.path.realpath(copy.picture.path)
    what = "is the same file as" if same else "has the same bytes as"
    where = f"{elsewhere.name} of {names[elsewhere.split]}"
    return _defect("leak-identical", copy, elsewhere, f"of {names[copy.split]} {what} {where}")


def _near_identical(copy: _Copy, others: Sequence[tuple[_Copy, float]], names: Sequence[str]) -> Defect:
    other, alike = next(((c, a) for c, a in others if c.split != copy.split), others[0])
    if other.split == copy.split:
        return _defect("image-near-identical", copy, other, f"looks like {other.name} (correlation {alike:.3f})")
    message = f"of {names[copy.split]} looks like {other.name} of {names[other.split]} (correlation {alike:.3f})"
    return _defect("leak-near-identical", copy, other, message)


def _defect(code: str, copy: _Copy, other: _Copy, message: str) -> Defect:
    readable = copy.picture.problem is None and other.picture.problem is None
    image, beside = (copy.picture.path, other.picture.path) if readable else (None, None)
    return Defect(code, copy.name, message, image=image, other=beside)


def _comparable(picture: Picture) -> bool:
    """Whether a picture is large and lively enough to be compared by its looks."""
    if picture.thumbnail is None or picture.size is None or min(picture.size) < SMALLEST_SIDE:
        return False
    return float(picture.thumbnail.std()) >= _FLATTEST


def _near(copies: Sequence[_Copy]) -> Iterator[tuple[_Copy, list[tuple[_Copy, float]]]]:
    """Each image that looks like earlier ones, with these, the most alike first."""
    if len(copies) < 2:
        return
    pixels = np.stack([c.picture.thumbnail for c in copies if c.picture.thumbnail is not None]).astype(np.float32)
    step = THUMBNAIL // _COARSE
    coarse = _normalised(pixels.reshape(-1, _COARSE, step, _COARSE, step).mean((2, 4)))
    for start in range(0, len(copies), _BLOCK):
        rows = coarse[start : start + _BLOCK]
        alike = rows @ coarse[: start + len(rows)].T
        later = np.arange(alike.shape[1])[None] >= start + np.arange(len(rows))[:, None]
        alike[later] = -1
        for row in np.flatnonzero(alike.max(1) >= _COARSE_ALIKE):
            best = np.argsort(alike[row])[::-1][:_CANDIDATES]
            fine = _normalised(pixels[[start + row, *best]])
            found = sorted(zip((fine[1:] @ fine[0]).tolist(), best.tolist()), reverse=True)
            near = [(copies[i], value) for value, i in found if value >= ALIKE]
            if near:
                yield copies[start + row], near


def _normalised(pictures: Floats) -> Floats:
    """[n, h, w] -> [n, h * w] of mean zero and length one, so that products are correlations."""
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6))
