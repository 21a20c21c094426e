"""Which files of a folder are images, which are their masks, and which are neither: by what their names share."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from densekit.data.formats.labels.listing import files_below, images_below
from densekit.data.formats.masks.files import MASK_SUFFIXES, read_colours, read_values
from densekit.data.formats.masks.pairs import Pair
from densekit.data.images.names import folded
from densekit.types import DensekitError

MASK_WORDS = re.compile(r"mask|masq|masc|label|seg|gt|truth|annot|target", re.IGNORECASE)
"""What folders and names of masks are called."""

LOSSY = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
"""Endings of files that can't hold classes, and so are images."""

_TRIED = 20  # names by which affixes are found
_FRONTS, _ENDS = 2, 3  # places in front and at the end where a name may be cut
_MOST = 0.5  # of the masks that must have an image
_LOOKED_AT = 3  # pairs by whose pixels masks are told from images
_EVEN = 0.75  # of neighbouring pixels that are equal in a mask; photographs have fewer

Affixes = tuple[tuple[str, str], tuple[str, str]]
"""(prefix, suffix) of images and of masks, around what a pair shares."""


@dataclasses.dataclass(frozen=True, slots=True)
class Matched:
    """The files of an image folder and a mask folder, which may be one.

    Attributes:
        pairs: sorted by image.
        images: without a mask.
        masks: without an image.
        affixes: that tell images from masks; None: by folder or ending.
    """

    pairs: list[Pair]
    images: list[str]
    masks: list[str]
    affixes: Affixes | None = None


def match(images: Path, masks: Path) -> Matched:
    """Pair the files of two folders, or of one; most masks must find an image, else there are no pairs.

    Where the names are not the same, the prefixes and suffixes that make the most pairs tell them apart. In one folder
    it must be clear which are the masks: by a word such as ``mask``, or by their pixels.

    Raises:
        DensekitError: an image has several masks.
    """
    one_folder = os.path.samefile(images, masks)
    names, others = images_below(images, deep=not one_folder), files_below(masks, MASK_SUFFIXES, deep=not one_folder)
    if one_folder:
        these = [n for n in names if os.path.splitext(n)[1].lower() in LOSSY]
        by_name = _by_core(these, others, (("", ""), ("", "")))  # 1.jpg and 1.png
    else:
        these, by_name = names, _by_core(names, others, (("", ""), ("", "")))
    if by_name and len(by_name) >= _MOST * len(others):
        return _told(by_name, these, others, None)
    best: tuple[int, int, Affixes] | None = None
    for affixes in _candidates(names, others, one_folder):
        pairs = _by_core(names, others, affixes)
        rank = (len(pairs), -sum(len(part) for both in affixes for part in both), affixes)
        if best is None or rank[:2] > best[:2]:
            if one_folder and not _says_which(affixes, pairs, images):
                continue
            best = rank
    if best is None or best[0] < _MOST * (min(len(names), len(others)) / (2 if one_folder else 1)):
        return Matched([], names, [] if one_folder else others)
    return _told(_by_core(names, others, best[2]), names, others, best[2])


def _told(pairs: list[Pair], names: Sequence[str], others: Sequence[str], affixes: Affixes | None) -> Matched:
    _refuse_several(pairs, others, affixes, one_folder=bool(set(names) & set(others)) and affixes is not None)
    images, masks = {p.image for p in pairs}, {p.mask for p in pairs}
    if affixes is None or not set(names) & masks:
        return Matched(pairs, sorted(set(names) - images), sorted(set(others) - masks), affixes)
    free = [n for n in sorted({*names, *others}) if n not in images and n not in masks]
    called = [n for n in free if (of_mask := _core(n, *affixes[1])) is not None and _core(n, *affixes[0]) != of_mask]
    lonely = set(called) if any(affixes[1]) else set[str]()
    return Matched(pairs, [n for n in free if n not in lonely], sorted(lonely), affixes)


def _refuse_several(pairs: Sequence[Pair], others: Sequence[str], affixes: Affixes | None, *, one_folder: bool) -> None:
    """An image with a mask for each object: one of them alone would make the others background."""
    around = affixes or (("", ""), ("", ""))
    cores = {core: pair for pair in pairs if (core := _core(pair.image, *around[0])) is not None}
    taken = {pair.mask for pair in pairs} | {pair.image for pair in pairs}
    free = [n for n in others if n not in taken and (not one_folder or MASK_WORDS.search(n.rpartition("/")[2]))]
    more = [(cores[core], n) for n in free for core in [next((c for c, _ in _cuts(n) if c in cores), None)] if core]
    if more and len(more) >= _MOST * len(pairs):
        pair, name = more[0]
        first, second = sorted((pair.mask, name))
        raise DensekitError(
            f"{pair.image} has several masks, {first} and {second}; join them into one mask of classes, or use COCO "
            f"json for an outline an object"
        )


def _by_core(names: Sequence[str], others: Sequence[str], affixes: Affixes) -> list[Pair]:
    """Pairs by what is left without the affixes; of two files of one such name the first."""
    masks: dict[str, str] = {}
    for name in others:
        if (core := _core(name, *affixes[1])) is not None:
            masks.setdefault(core, name)
    found: dict[str, Pair] = {}
    for name in names:
        core = _core(name, *affixes[0])
        if core is not None and core in masks:
            found.setdefault(core, Pair(name, masks[core]))
    return sorted(found.values(), key=lambda pair: pair.image)


def _core(name: str, prefix: str, suffix: str) -> str | None:
    """What a name shares with its partner's, with its folder, without ending; None where it lacks an affix."""
    folder, _, own = name.rpartition("/")
    stem = os.path.splitext(own)[0]
    if len(stem) <= len(prefix) + len(suffix) or not (stem.startswith(prefix) and stem.endswith(suffix)):
        return None
    return f"{folded(folder)}/{folded(stem[len(prefix) : len(stem) - len(suffix)])}"


def _candidates(names: Sequence[str], others: Sequence[str], one_folder: bool) -> list[Affixes]:
    """Affixes that some images and masks leave around what they share, the most frequent ones."""
    known: defaultdict[str, dict[tuple[str, str], None]] = defaultdict(dict)  # in the order of the names
    for name in others:
        for core, around in _cuts(name):
            known[core][around] = None
    tried: Counter[Affixes] = Counter()
    steps = np.linspace(0, max(0, len(names) - 1), min(_TRIED, len(names))).astype(int)
    for name in (names[i] for i in steps.tolist()):
        for core, around in _cuts(name):
            tried.update((around, other) for other in known.get(core, {}) if around != other or not one_folder)
    return [affixes for affixes, _ in tried.most_common(4 * _TRIED)]


def _cuts(name: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """What may be shared of a name, and the affixes that are then left."""
    folder, _, own = name.rpartition("/")
    stem = os.path.splitext(own)[0]
    fronts = [0, *(m.end() for m in re.finditer(r"[_.\- ]", stem))][: _FRONTS + 1]
    ends = [m.start() for m in re.finditer(r"[_.\- ]|(?<=\d)(?=[A-Za-z])", stem)][-_ENDS:]
    for front in fronts:
        for end in (*ends, len(stem)):
            if front < end:
                yield f"{folded(folder)}/{folded(stem[front:end])}", (stem[:front], stem[end:])


def _says_which(affixes: Affixes, pairs: Sequence[Pair], folder: Path) -> bool:
    """Whether those that are taken for masks are the masks: by a word in their names, or by their pixels."""
    image, mask = (bool(MASK_WORDS.search(" ".join(around))) for around in affixes)
    return mask if image != mask else by_pixels(folder, folder, pairs)


def by_pixels(images: Path, masks: Path, pairs: Sequence[Pair]) -> bool:
    """Whether the second of each pair looks like a mask, and the first does not."""
    some = pairs[:: max(1, len(pairs) // _LOOKED_AT)][:_LOOKED_AT]
    return bool(some) and all(
        _looks_like_mask(masks / pair.mask) and not _looks_like_mask(images / pair.image) for pair in some
    )


def _looks_like_mask(path: Path) -> bool:
    """Whether neighbouring pixels are mostly equal."""
    if path.suffix.lower() not in MASK_SUFFIXES:
        return False
    for read in (read_values, read_colours):
        try:
            pixels = read(path)
        except DensekitError:
            continue
        flat = pixels.reshape(*pixels.shape[:2], -1)
        return flat.size > 0 and float((flat[:, 1:] == flat[:, :-1]).all(2).mean() if flat.shape[1] > 1 else 1) >= _EVEN
    return False


def aside(matched: Matched, where: Mapping[str, Path]) -> list[str]:
    """Lines on the files without a partner; ``where`` are the folders of ``images`` and ``masks``."""
    lines = []
    for kind, other, names in (("images", "mask", matched.images), ("masks", "image", matched.masks)):
        if names:
            more = ", ..." if len(names) > 3 else ""
            some = ", ".join(names[:3])
            lines.append(f"{where[kind]}: {len(names)} {kind} without {other} are left aside: {some}{more}")
    return lines
