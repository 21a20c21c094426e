"""Images that occur twice: the same bytes, one that was saved anew, or pictures of one scene; within a set and across.

Every image has a short description (``outlines.py``) by which a few others are found that may show the same; these are
read once more and looked at closely (``likeness.py``), a block of pairs at a time. What hangs together, such as the
frames of a video, is told once.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from densekit.doctor.defects import Defect
from densekit.doctor.images.checks import Look, grey_picture, stored_pixels
from densekit.doctor.images.likeness import PATCHES, PICTURE, Picture, saved_anew, shared
from densekit.doctor.images.outlines import candidates, outlines
from densekit.doctor.parallel import over_files
from densekit.errors import DensekitError

SIMILAR = 0.6
"""Part of the patches that two pictures of one scene share at least."""

SMALLEST_SIDE = 48
"""Smaller images are compared pixel by pixel alone: two digits of 28 pixels may look alike and be two digits."""

_FLATTEST = 2.0  # standard deviation in grey levels below which a picture shows nothing to compare
_COLOUR = 6.0  # grey levels that the mean colours of an image may change by when it is saved anew
_CONTROLS = 3  # other pictures of the set: what they share too is its layout
_POOL = 8  # from which these are taken
_BLOCK = 1024  # images whose pictures, and those of their candidates, are held at a time
_RUN = 3  # pictures of one scene that are told within a set: two of them do no harm there
_REDUCED = 2 * PICTURE  # rows and columns below which a JPEG is not decoded

Likeness = Literal["", "similar", "saved anew"]


@dataclasses.dataclass(frozen=True, slots=True)
class Copy:
    """One readable image of one split."""

    split: str
    look: Look

    @property
    def path(self) -> Path:
        """The file."""
        return self.look.path


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """A picture and those to compare it with.

    Attributes:
        picture: [PICTURE, PICTURE].
        others: likewise.
        sides: rows or columns of the smaller file of each two.
        same_colours: whether the mean colours of each two are those of one image.
        controls: other pictures of the set that seem to be neither.
    """

    picture: Picture
    others: tuple[Picture, ...]
    sides: tuple[int, ...]
    same_colours: tuple[bool, ...]
    controls: tuple[Picture, ...]


def identical_images(
    splits: Sequence[tuple[str, list[Look]]], *, processes: int | None = 1, shown: bool = False
) -> Iterator[Defect]:
    """Images that others equal, or that show what others show."""
    copies = [Copy(name, look) for name, looks in splits for look in looks if look.digest and look.size is not None]
    groups: defaultdict[bytes, list[Copy]] = defaultdict(list)
    for copy in copies:
        group = groups[copy.look.digest]
        if group:
            yield _identical(copy, group)
        group.append(copy)
    singles = [group[0] for group in groups.values()]
    yield from _same_pixels([c for c in singles if c.look.size and min(c.look.size) < SMALLEST_SIDE])
    large = [c for c in singles if _comparable(c.look)]
    yield from _told(large, _alike(large, processes, shown))


def same_scenes(looks: Sequence[Look], *, processes: int | None = None, shown: bool = False) -> list[list[int]]:
    """Positions of images that show the same scene, or are one saved anew: each group once, those alone left out."""
    places = [i for i, seen in enumerate(looks) if seen.digest and _comparable(seen)]
    found = _alike([Copy("", looks[i]) for i in places], processes, shown)
    return [[places[p] for p in group] for group, _ in _groups(found)]


def _identical(copy: Copy, group: Sequence[Copy]) -> Defect:
    other = next((c for c in group if c.split != copy.split), group[0])
    same = os.path.realpath(other.path) == os.path.realpath(copy.path)
    return _defect("identical", copy, other, "it is the same file as" if same else "it has the same bytes as")


def _defect(how: str, copy: Copy, other: Copy, words: str) -> Defect:
    leaks = copy.split != other.split
    where = f" of {other.split or 'another set'}" if leaks else ""
    code = f"leak_{how}" if leaks else f"image_{how}"
    return Defect(code, str(copy.path), f"{words} {other.path}{where}", picture=copy.path, other=other.path)


def _same_pixels(copies: Sequence[Copy]) -> Iterator[Defect]:
    """Small images that another file holds too, in another format or packed in another way."""
    groups: defaultdict[bytes, list[Copy]] = defaultdict(list)
    for copy in copies:
        if copy.look.small is not None:
            groups[copy.look.small.tobytes() + repr((copy.look.size, copy.look.mean)).encode()].append(copy)
    for group in groups.values():
        for copy in group[1:]:
            if _same(group[0].look, copy.look):
                yield _defect("near_identical", copy, group[0], "it has the same pixels as")


def _comparable(look: Look) -> bool:
    """Whether an image is large and lively enough to be compared by its looks."""
    if look.small is None or look.size is None or min(look.size) < SMALLEST_SIDE:
        return False
    return float(look.small.std()) >= _FLATTEST


def _alike(copies: Sequence[Copy], processes: int | None, shown: bool) -> dict[tuple[int, int], Likeness]:
    """Pairs of positions that show the same."""
    smalls = [c.look.small for c in copies if c.look.small is not None]
    others: defaultdict[int, list[int]] = defaultdict(list)
    for first, second in candidates(outlines(np.stack(smalls))) if len(smalls) > 1 else ():
        others[first].append(second)
    drawn = np.random.default_rng(0).permutation(len(copies))[:_POOL].tolist()
    found: dict[tuple[int, int], Likeness] = {}
    firsts = list(others)
    for start in range(0, len(firsts), _BLOCK):
        block = {first: others[first] for first in firsts[start : start + _BLOCK]}
        places = sorted({*block, *drawn, *(p for several in block.values() for p in several)})
        looks = [copies[p].look for p in places]
        read = over_files(picture, looks, "pictures", _nothing, processes=processes, shown=shown)
        pictures = {place: p for place, p in zip(places, read) if p is not None}
        asked = {f: [p for p in several if p in pictures] for f, several in block.items() if f in pictures}
        tasks = [_task(copies, pictures, f, several, drawn, others) for f, several in asked.items()]
        answers = over_files(likenesses, tasks, "likeness", _no_likeness, processes=processes, shown=shown)
        for (first, several), answer in zip(asked.items(), answers):
            found.update({(first, p): how for p, how in zip(several, answer) if how})
    return found


def _task(
    copies: Sequence[Copy],
    pictures: Mapping[int, Picture],
    first: int,
    several: Sequence[int],
    drawn: Sequence[int],
    others: Mapping[int, Sequence[int]],
) -> Task:
    look, looks = copies[first].look, [copies[p].look for p in several]
    near = {first, *others[first], *(p for p in drawn if first in others.get(p, ()))}
    return Task(
        pictures[first],
        tuple(pictures[p] for p in several),
        tuple(min(*(look.size or (1, 1)), *(other.size or (1, 1))) for other in looks),
        tuple(max(abs(a - b) for a, b in zip(look.mean, other.mean)) <= _COLOUR for other in looks),
        tuple(pictures[p] for p in drawn if p in pictures and p not in near)[:_CONTROLS],
    )


def picture(look: Look) -> Picture | None:
    """[PICTURE, PICTURE] grey picture of a file; None where it can't be read any more."""
    width, height = look.size or (1, 1)
    reduce = max(r for r in (1, 2, 4, 8) if r == 1 or min(width, height) // r >= _REDUCED)
    try:
        return grey_picture(look, PICTURE, width * height, reduce)
    except (DensekitError, cv2.error, ValueError, MemoryError, OSError):
        return None


def _same(look: Look, other: Look) -> bool:
    """Whether two files hold the same pixels."""
    try:
        first, second = (stored_pixels(each, 2**16) for each in (look, other))
    except (DensekitError, cv2.error, ValueError, MemoryError, OSError):
        return False
    return np.array_equal(first, second)


def _nothing(look: Look) -> None:
    return None


def _no_likeness(task: Task) -> list[Likeness]:
    return [""] * len(task.others)


def likenesses(task: Task) -> list[Likeness]:
    """What a picture is to each of the others."""
    layout = np.zeros(PATCHES, np.bool_)
    common, found = [], _no_likeness(task)
    for k, other in enumerate(task.others):
        if task.same_colours[k] and saved_anew(task.picture, other, task.sides[k]):
            found[k] = "saved anew"
        elif shared(task.picture, other).part() >= SIMILAR:
            common.append(k)
    # What pictures that were drawn by chance have in the same place is the layout of the kind, not of a scene.
    controls = [shared(task.picture, control) for control in task.controls] if common else []
    controls = [control for control in controls if control.in_place]
    # Where even these are alike all of the set are: detail alone tells two of one scene.
    detail = any(control.part() >= SIMILAR for control in controls)
    for control in controls if not detail else ():
        layout |= control.found
    for k in common:
        if shared(task.picture, task.others[k], detail=detail).part(without=layout) >= SIMILAR:
            found[k] = "similar"
    return found


def _told(copies: Sequence[Copy], found: dict[tuple[int, int], Likeness]) -> Iterator[Defect]:
    """One finding for what hangs together: where it leaks that is told; else what was saved anew, or is alike."""
    for group, links in _groups(found):
        across = [p for p in links if copies[p[0]].split != copies[p[1]].split]
        anew = [p for p in across if found[p] == "saved anew"]
        if across:
            yield _of_group("near_identical" if anew else "similar", copies, group, (anew or across)[0])
        inside = [p for p in links if copies[p[0]].split == copies[p[1]].split]
        told = False
        for part, own in _groups([p for p in inside if found[p] == "saved anew"]):
            yield _of_group("near_identical", copies, part, own[0])
            told |= part == group
        if inside and not across and not told and len(group) >= _RUN:
            yield _of_group("similar", copies, group, inside[0])


def _groups(pairs: Iterable[tuple[int, int]]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Positions that hang together by pairs, sorted, and these pairs."""
    parent: dict[int, int] = {}

    def root(place: int) -> int:
        while parent.setdefault(place, place) != place:
            parent[place] = place = parent[parent[place]]
        return place

    pairs = list(pairs)
    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    places, links = defaultdict(list), defaultdict(list)
    for place in sorted(parent):
        places[root(place)].append(place)
    for pair in pairs:
        links[root(pair[0])].append(pair)
    return [(places[key], links[key]) for key in places]


def _of_group(how: str, copies: Sequence[Copy], places: Sequence[int], pair: tuple[int, int]) -> Defect:
    group, first, later = [copies[p] for p in places], copies[pair[0]], copies[pair[1]]
    words = "it shows the same, saved anew, as" if how == "near_identical" else "it shows the same scene as"
    defect = _defect(how, later, first, words)
    if len(group) == 2:
        return defect
    splits = Counter(c.split for c in group)
    where = "".join(f", {count} in {name}" for name, count in splits.items()) if len(splits) > 1 else ""
    row = f"{group[0].path.name} ... {group[-1].path.name}"
    return dataclasses.replace(
        defect, message=f"{defect.message}; {len(group)} pictures hang together so: {row}{where}"
    )
